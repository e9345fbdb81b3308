"""Groups of duplicates as a table, as JSON, and as a page of images."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from indexer.printable import printable, quoted
from indexer.store.protocol import Record
from indexer.terminal import megabytes, plural

from ..show.results_page import PageQuery, PageResult, write_results_page
from .options import LEVELS
from .outcome import Duplicates, File, Group, GroupMember

PAGE_GROUPS = 500  # on one page; more would be no page to look at
LEVEL_WORDS = {"exact": "the same bytes", "near": "copies of one photograph", "scene": "photographs of one motif"}


def duplicates_table(found: Duplicates) -> str:
    """A line for each image to keep, below it one for each file that resembles it, and a summary."""
    lines = []
    for group in found.groups:
        why = f"; kept: {printable(group.why)}" if group.why else ""
        lines.append(f"keep   {quoted(group.file.path)}  ({facts(group.keeper, group.file.size)}{why})")
        for member, file in _files_of(group):
            reason = f"; stays: {printable(member.stays)}" if member.stays else ""
            lines.append(
                f"  {member.level:<5} {member.similarity:4.2f}  {quoted(file.path)}  ({member.how or 'motif'}{reason})"
            )
    return "\n".join([*lines, summary(found)])


def summary(found: Duplicates) -> str:
    """What was found, in one line: groups, files by level, bytes."""
    spare = [(member.level, file) for group in found.groups for member, file in _files_of(group) if not member.stays]
    looked = f"looked through {plural(found.images, 'image')} in {found.seconds:.1f} s"
    if not found.groups:
        return f"no duplicates up to level {found.options.level}; {looked}"
    count = Counter(level for level, _ in spare)
    by_level = ", ".join(f"{count[level]:,} {level}" for level in LEVELS if count[level])
    freed = megabytes(sum(file.size for _, file in spare))
    return (
        f"{plural(len(found.groups), 'group')}; {plural(len(spare), 'file')}"
        f"{f' ({by_level})' if by_level else ''} of {freed} could be given up; {looked}"
    )


def as_json(found: Duplicates) -> dict[str, object]:
    """All of it for programs."""
    return {
        "index": found.index,
        "level": found.options.level,
        "keep": found.options.keep,
        "prefer": [str(folder) for folder in found.options.prefer],
        "reference": [str(folder) for folder in found.options.reference],
        "images": found.images,
        "seconds": round(found.seconds, 3),
        "notes": list(found.notes),
        "groups": [
            {
                "keeper": _values(group.keeper, group.file),
                "why_kept": group.why or None,
                "bytes_freed": sum(file.size for file in group.spare),
                "members": [
                    {
                        **_values(member.record, file),
                        "level": member.level,
                        "similarity": member.similarity,
                        "how": member.how,
                        "spare": not member.stays,
                        "why_not": member.stays or None,
                        "differs_at": [asdict(one) for one in member.differs_at],
                    }
                    for member, file in _files_of(group)
                ],
            }
            for group in found.groups
        ],
    }


def write_duplicates_page(path: str | Path, found: Duplicates, made_by: Iterable[str] = ()) -> int:
    """The groups as images, one self-contained page; returns how many groups it shows, at most PAGE_GROUPS."""
    shown = min(len(found.groups), PAGE_GROUPS)
    lines = [summary(found), *(f"{level}: {words}" for level, words in LEVEL_WORDS.items()), *found.notes, *made_by]
    if shown < len(found.groups):
        lines.insert(1, f"this page shows {plural(shown, 'group')}, those that free most")
    write_results_page(path, _page_groups(found.groups[:shown]), title="Duplicates", made_by=lines)
    return shown


def _page_groups(groups: Iterable[Group]) -> Iterator[PageQuery]:
    for group in groups:
        spare = group.spare
        freed = f"frees {megabytes(sum(file.size for file in spare))} in {plural(len(spare), 'file')}" if spare else ""
        yield PageQuery(
            path=group.file.path,
            note="; ".join(
                part
                for part in (
                    f"keep: {facts(group.keeper, group.file.size)}",
                    f"kept: {group.why}" if group.why else "",
                    freed,
                )
                if part
            ),
            results=[
                PageResult(
                    path=file.path,
                    rank=rank,
                    score=member.similarity,
                    caption=(facts(member.record, file.size),),
                    verdict=member.level,
                    reason=f"{member.how}{'; stays: ' + member.stays if member.stays else ''}",
                )
                for rank, (member, file) in enumerate(_files_of(group), start=1)
            ],
        )


def facts(record: Record, size: int) -> str:
    """`4032 x 3024, JPEG, 3.1 MB, 2023-05-01`"""
    metadata = record.metadata
    date = f", {metadata.taken_at:%Y-%m-%d}" if metadata.taken_at else ""
    return f"{metadata.width} x {metadata.height}, {metadata.format}, {megabytes(size)}{date}"


def _files_of(group: Group) -> Iterator[tuple[GroupMember, File]]:
    for member in group.members:
        for file in member.files:
            yield member, file


def _values(record: Record, file: File) -> dict[str, object]:
    metadata = record.metadata
    return {
        "path": file.path,
        "id": record.id,
        "width": metadata.width,
        "height": metadata.height,
        "format": metadata.format,
        "bytes": file.size,
        "frames": metadata.frames,
        "raw": metadata.raw,
        "note": metadata.note,
        "date_source": metadata.date_source,
        "taken_at": metadata.taken_at.isoformat() if metadata.taken_at else None,
    }
