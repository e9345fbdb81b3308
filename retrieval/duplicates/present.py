"""Groups of duplicates as a table, as JSON, and as a page of images."""

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from markupsafe import Markup

from indexer.errors import ImageError
from indexer.pages.render import data_uri, write_page
from indexer.printable import megabytes, plural, printable, quoted
from indexer.store.protocol import Record

from ..show.results_page import TEMPLATES, thumbnail
from .options import LEVELS
from .outcome import Duplicates, File, Group, GroupMember

PAGE_GROUPS = 500  # on one page; more would be no page to look at
TILE_PX = 420  # longer side of an image on it
PAGE = Path(__file__).parents[1] / "serve" / "page"  # the server's page, whose look and choices this one shares
SCRIPT = TEMPLATES / "duplicates.js"
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


def write_duplicates_page(
    path: str | Path, found: Duplicates, made_by: Iterable[str] = (), move_to: str | None = None
) -> int:
    """The groups as images on one self-contained page, where it is chosen what is moved; see `choices`.

    move_to  folder that the page offers to move to
    Returns how many groups it shows, at most PAGE_GROUPS.
    """
    groups = found.groups[:PAGE_GROUPS]
    notes = list(found.notes)
    if len(groups) < len(found.groups):
        notes.insert(0, f"this page shows {plural(len(groups), 'group')}, those that free most")
    data = _page_data(found, groups, move_to or "")
    script = "\n".join(
        [*((PAGE / name).read_text("utf-8") for name in ("dom.js", "choices.js")), SCRIPT.read_text("utf-8")]
    )
    script = re.sub(r"^import .*$", "", script, flags=re.MULTILINE)  # all of it is one module here
    write_page(
        path,
        TEMPLATES,
        "duplicates.html",
        title="Duplicates",
        made_by=[*(f"{level}: {words}" for level, words in LEVEL_WORDS.items()), *made_by],
        summary=summary(found),
        notes=notes,
        groups=enumerate(groups),
        tiles=_tiles,
        look=Markup((PAGE / "style.css").read_text("utf-8")),
        data=Markup(json.dumps(data).replace("<", "\\u003c")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )
    return len(groups)


@dataclass(frozen=True)
class _Tile:
    """One file of a group as the page shows it; `uri` is empty where it cannot be shown, and `missing` says why."""

    path: str
    key: str  # on the keyboard
    state: str
    level: str  # with the similarity; empty for the keeper
    facts: tuple[str, ...]
    lines: tuple[str, ...]
    uri: str
    missing: str


def _tiles(group: Group) -> Iterator[_Tile]:
    yield _tile(group.file, group.keeper, "0", "keep", "", (f"kept: {group.why}" if group.why else "",))
    for number, (member, file) in enumerate(_files_of(group), start=1):
        words = member.how, f"stays: {member.stays}" if member.stays else ""
        level = f"{member.level} {member.similarity:.2f}"
        state = "stays" if member.stays else "could move"
        yield _tile(file, member.record, str(number) if number < 10 else "", state, level, words)


def _tile(file: File, record: Record, key: str, state: str, level: str, words: Iterable[str]) -> _Tile:
    uri, missing = "", ""
    try:
        uri = data_uri(thumbnail(file.path, TILE_PX))
    except ImageError as error:
        missing = error.reason
    lines = tuple(line for line in words if line)
    return _Tile(file.path, key, state, level, tuple(facts(record, file.size).split(", ")), lines, uri, missing)


def _page_data(found: Duplicates, groups: Iterable[Group], move_to: str) -> dict[str, object]:
    """What the page's script knows; see `choices.js` for the groups."""

    def values(file: File, spare: bool, stays: str) -> dict[str, object]:
        return {"file": file.key, "id": file.id, "bytes": file.size, "spare": spare, "why_not": stays or None}

    listed = [
        {
            "group": number,
            "keeper": values(group.file, True, ""),
            "members": [values(file, not member.stays, member.stays) for member, file in _files_of(group)],
        }
        for number, group in enumerate(groups)
    ]
    digest = hashlib.sha256(json.dumps([found.index, listed]).encode()).hexdigest()
    return {"run": digest[:32], "index": found.index, "move_to": move_to, "groups": listed}


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
