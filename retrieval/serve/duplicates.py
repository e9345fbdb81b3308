"""Duplicates under review: the last run, its pages, and the choices that are applied and undone.

Files are moved by the same code as `seenit duplicates --move-to` moves them: nothing is deleted or overwritten, every
byte is compared first, and a manifest is written that puts all back.
"""

import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import filelock

from indexer.errors import LockedError, SeenitError, os_reason
from indexer.index.index import Index

from ..duplicates.options import DuplicateOptions
from ..duplicates.outcome import Duplicates, File, Group, GroupMember
from .answers import (
    AppliedManifest,
    DuplicateDifference,
    DuplicateFile,
    DuplicateGroup,
    DuplicateMember,
    DuplicatesAnswer,
    DuplicatesRun,
    MovedAnswer,
    duplicate_values,
)
from .kept_run import KeptRun, Run
from .refusal import Refusal
from .requests import ApplyBody, DuplicatesBody
from .tasks import Handle, Outcome, Stopped

MANIFEST = re.compile(r"seenit-moved-[0-9-]{1,40}\.jsonl")
MOST_MANIFESTS = 20  # that are listed
LOCK_NAME = ".seenit-moving.lock"
LOCK_WAIT_S = 10.0  # for another process that moves files


class DuplicateReview:
    """What a server knows of duplicates; its calls block, and come from any thread.

    index    that is looked through
    move_to  the folder that spare files go to; None where there is none, so that nothing can be applied
    """

    def __init__(self, index: Index, move_to: str | None) -> None:
        self._index = index
        self.move_to = move_to
        self._lock = threading.Lock()  # one change of files at a time
        self._kept = KeptRun(index)

    def find(self, body: DuplicatesBody, handle: Handle) -> Outcome:
        """Look for duplicates and keep what was found; the work of a task."""
        from ..duplicates.find import find_duplicates
        from ..duplicates.present import summary

        def progress(stage: str, done: int, total: int) -> None:
            if handle.stopped():
                raise Stopped
            handle.progress(stage, done, total)

        options = DuplicateOptions(level=body.level, keep=body.keep)
        found = find_duplicates(self._index.location, options, progress=progress)
        run = self._kept.put(found)
        return Outcome(summary(found), _run_answer(run).model_dump(), found.notes)

    def page(self, offset: int, limit: int) -> DuplicatesAnswer:
        """Groups of the last run, and what can be undone."""
        run = self._kept.read()
        groups, moved = (run.found.groups, run.moved) if run else ((), frozenset())
        return DuplicatesAnswer(
            run=_run_answer(run) if run else None,
            total=len(groups),
            offset=offset,
            groups=tuple(
                _group(number, groups[number], moved) for number in range(offset, min(offset + limit, len(groups)))
            ),
            applied=tuple(self._applied()),
        )

    def apply(self, body: ApplyBody) -> MovedAnswer:
        """Move what was chosen, or say what would be. Refusal for choices that leave nothing of a group."""
        from ..duplicates.move import check_target, move_spare

        target = self._target()
        with self._lock:
            run, found = self._chosen(body)
            check_target(found, target, self._index.roots)
            spare = [file for group in found.groups for file in group.spare]
            if body.dry_run or not spare:
                return _moved(body.dry_run, len(spare), sum(file.size for file in spare), target)
            with _alone_in(target):
                run, found = self._chosen(body)  # another server may have moved some of it meanwhile
                moved = move_spare(found, target)
                self._kept.put_moved(run, run.moved | set(moved.moved))
            notes = self._forget(found.index, moved.moved)
        return MovedAnswer(
            dry_run=False,
            files=moved.files,
            bytes=moved.size,
            left=moved.left,
            manifest=os.path.basename(moved.manifest) if moved.manifest else None,
            to=target,
            moved=moved.moved,
            notes=tuple(notes),
        )

    def undo(self, name: str) -> MovedAnswer:
        """Put back what a manifest in the target folder names; Refusal 404 where there is no such manifest."""
        from ..duplicates.move import read_moves, undo_moves

        target = self._target()
        path = os.path.join(target, name)
        if not MANIFEST.fullmatch(name) or not os.path.isfile(path) or os.path.islink(path):
            raise Refusal(404, f"no manifest {name} in {target}")
        with self._lock:
            manifest = read_moves(path)
            with _alone_in(target):
                moved = undo_moves(manifest)
                run = self._kept.read()
                back = {move.source for move in manifest.moves if os.path.lexists(move.source)}
                files = [file for group in run.found.groups for file in _files(group)] if run else []
                restored = tuple(file.key for file in files if run and file.path in back and file.key in run.moved)
                if run is not None and restored:
                    self._kept.put_moved(run, run.moved - set(restored))
        return MovedAnswer(
            dry_run=False,
            files=moved.files,
            bytes=moved.size,
            left=moved.left,
            manifest=name,
            to=None,
            moved=restored,
            notes=("bring the index in line, so that what was put back is found again",) if moved.files else (),
        )

    def _target(self) -> str:
        if self.move_to is None:
            raise Refusal(422, "no folder of the index is here to move files within; name one with --move-to")
        return self.move_to

    def _chosen(self, body: ApplyBody) -> tuple[Run, Duplicates]:
        """The run that was chosen from, and what of it is to be moved; Refusal 409 where it is not the last one."""
        run = self._kept.read()
        if run is None or run.id != body.run:
            raise Refusal(409, "the choices belong to another run; look at the groups again")
        chosen: dict[int, set[str]] = {}
        for choice in body.choices:
            chosen.setdefault(choice.group, set()).update(choice.move)
        narrowed = (_narrowed(run, number, keys) for number, keys in sorted(chosen.items()))
        return run, replace(run.found, groups=tuple(group for group in narrowed if group is not None))

    def _forget(self, index: str, keys: Sequence[str]) -> list[str]:
        """The index lets go of what was moved; what is to be said where it cannot now."""
        from ..duplicates.forget import forget_files

        if not keys:
            return []
        try:
            forget_files(index, keys)
        except SeenitError as error:
            return [f"the index still names what was moved ({error}); bring it in line"]
        return []

    def _applied(self) -> list[AppliedManifest]:
        """The manifests whose files are still where they were moved to."""
        from ..duplicates.move import read_moves, what_to_undo

        if self.move_to is None or not os.path.isdir(self.move_to):
            return []
        names = sorted((name for name in os.listdir(self.move_to) if MANIFEST.fullmatch(name)), reverse=True)
        found = []
        for name in names[:MOST_MANIFESTS]:
            try:
                moves = what_to_undo(read_moves(os.path.join(self.move_to, name)))
            except SeenitError:
                continue  # not one that can be obeyed; it is not ours to say more
            if moves:
                size = sum(move.size for move in moves)
                found.append(AppliedManifest(manifest=name, files=len(moves), bytes=size))
        return found


def _narrowed(run: Run, number: int, keys: set[str]) -> Group | None:
    """A group with what is to be moved as its only members, and one of the others as its keeper."""
    if number >= len(run.found.groups):
        raise Refusal(422, f"there is no group {number} in this run")
    group = run.found.groups[number]
    keeper = GroupMember(group.keeper, (group.file,), "exact", 1.0, "")
    choosable = [keeper, *(member for member in group.members if not member.stays)]
    known = {file.key for member in choosable for file in member.files}
    if wrong := keys - known:
        raise Refusal(422, f"group {number}: {min(wrong)[:200]!r} is not among its files that may be moved")
    keys = keys - run.moved
    if not keys:
        return None
    kept = next(
        (
            (member, file)
            for member in choosable
            for file in member.files
            if file.key not in keys and file.key not in run.moved
        ),
        None,
    )
    if kept is None:
        raise Refusal(422, f"group {number}: nothing of it would stay; leave one file out")
    members = (replace(member, files=tuple(file for file in member.files if file.key in keys)) for member in choosable)
    return Group(kept[0].record, kept[1], tuple(member for member in members if member.files))


@contextmanager
def _alone_in(target: str) -> Iterator[None]:
    """Nobody else moves files there meanwhile, in whichever process: two choices together might leave nothing."""
    try:
        os.makedirs(target, exist_ok=True)
        if os.path.islink(place := os.path.join(target, LOCK_NAME)):
            raise SeenitError(f"{place} is a link; remove it")
        lock = filelock.FileLock(place, timeout=LOCK_WAIT_S, is_singleton=False, thread_local=False)
        lock.acquire()
    except filelock.Timeout:
        raise LockedError(f"another process moves files to {target}; try again when it has ended") from None
    except OSError as error:
        raise SeenitError(f"cannot move to {target}: {os_reason(error)}; name another folder") from None
    try:
        yield
    finally:
        lock.release()


def _run_answer(run: Run) -> DuplicatesRun:
    spare = [file for group in run.found.groups for file in group.spare]
    return DuplicatesRun(
        id=run.id,
        level=run.found.options.level,
        keep=run.found.options.keep,
        images=run.found.images,
        seconds=round(run.found.seconds, 3),
        notes=run.found.notes,
        groups=len(run.found.groups),
        spare_files=len(spare),
        spare_bytes=sum(file.size for file in spare),
        finished_at=run.finished_at.isoformat(timespec="seconds"),
    )


def _files(group: Group) -> list[File]:
    return [group.file, *(file for member in group.members for file in member.files)]


def _group(number: int, group: Group, moved: frozenset[str]) -> DuplicateGroup:
    return DuplicateGroup(
        group=number,
        keeper=DuplicateFile(**duplicate_values(group.keeper, group.file, group.file.key in moved)),
        why_kept=group.why or None,
        bytes_freed=sum(file.size for file in group.spare),
        members=tuple(
            DuplicateMember(**_member_values(member, file, moved)) for member in group.members for file in member.files
        ),
    )


def _member_values(member: GroupMember, file: File, moved: frozenset[str]) -> dict[str, Any]:
    return {
        **duplicate_values(member.record, file, file.key in moved),
        "level": member.level,
        "similarity": float(member.similarity),
        "how": member.how,
        "spare": not member.stays,
        "why_not": member.stays or None,
        "differs_at": tuple(DuplicateDifference(**asdict(one)) for one in member.differs_at),
        "transform": None if member.transform is None else member.transform.tolist(),
    }


def _moved(dry_run: bool, files: int, size: int, target: str) -> MovedAnswer:
    """What would be moved."""
    return MovedAnswer(dry_run=dry_run, files=files, bytes=size, left=(), manifest=None, to=target, moved=(), notes=())
