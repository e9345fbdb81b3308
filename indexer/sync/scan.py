"""Which files there are, against what is indexed."""

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeGuard

from ..errors import AwayError, SeenitError
from ..images.find import FoundFile, Unreadable, find_files, left_out_by
from ..images.jobs import Job, Kind, Outcome
from ..index.keys import Roots, relative_parts
from ..index.manifest import Manifest
from ..index.skipped import read_skipped
from ..item_files import items_folder
from ..sources.entry import UNKNOWN_NS, Entry, GoneEntry, UnreadableEntry
from ..sources.open import open_spec, settled, spec_of
from ..sources.place import is_address
from ..store.protocol import Store, StoredFile
from .ledger import FoundEntry, Ledger
from .options import SyncOptions

NAMED = 10  # images in one line


@dataclass
class Run:
    """What one run carries from step to step."""

    store: Store | None
    ledger: Ledger
    roots: Roots
    scopes: list[str]  # folder keys that this run brings in line
    options: SyncOptions
    exclude: tuple[str, ...]  # patterns of what is left out: the index's own and those of this run
    links_out: int = 0  # that were met and not followed
    unreadable: list[str] = field(default_factory=list)
    embedded: int = 0
    embedding_s: float = 0.0
    refitted: bool = False
    num_gone: int = 0  # images that lists and tables name and that are not there
    gone: list[str] = field(default_factory=list)  # the first NAMED of them
    twice: int = 0  # images of tables whose key an earlier row has
    skipped_saved: float = field(default_factory=time.monotonic)
    asked: dict[str, str] = field(default_factory=dict)  # keys of the files that the decoders have, by path

    listed: set[str] = field(default_factory=set)  # sources whose images' places the ledger has

    def job(self, key: str, kind: Kind) -> Job:
        """What a decoder is to do with a file; its outcome is told by path, and `key` has the file's again."""
        root = key.split("/")[0]
        if root not in self.roots.sources:
            path = self.roots.path(key)
            self.asked[path] = key
            return Job(path, kind)
        if root not in self.listed:  # it is outside of this run's scopes, and its images are to be embedded again
            self.listed.add(root)
            self.ledger.add_read_by(entry for entry in entries_below(self, root, stat=False) if _is_entry(entry))
        self.asked[key] = key
        read_by = self.ledger.read_by(key)
        return Job(key, kind, json.loads(read_by) if read_by else {"place": None})

    def key(self, outcome: Outcome) -> str:
        return self.asked.pop(outcome.path)


def scopes_of(
    location: str, manifest: Manifest | None, folders: Sequence[str | Path], options: SyncOptions
) -> tuple[Roots, list[str], set[str]]:
    """The roots with the new folders among them, the folder keys in scope, and the roots that a new one contains.

    Other sources than folders are roots of their own, the same ones whenever they are named.
    """
    known = dict(manifest.roots) if manifest else {}
    sources = manifest.source_specs if manifest else {}
    roots = Roots(location, known, sources)
    scopes: list[str] = [*known, *sources] if not folders else []
    absorbed: set[str] = set()
    added = items_folder(location)
    for folder in folders:
        spec = spec_of(folder, path_column=options.path_column, key_column=options.key_column)
        if spec is not None:
            spec = settled(spec, allow_private=options.allow_private)
            there = next((key for key, one in sources.items() if one.address == spec.address), None)
            if there is not None and sources[there] != spec:
                raise SeenitError(
                    f"{folder} is indexed with other columns (paths {sources[there].path_column or 'by name'}, keys"
                    f" {sources[there].key_column or 'by name'}); name these, or make another index with --index"
                )
            there = there or _new_root({**known, **sources})
            sources[there] = spec
            roots = Roots(location, known, sources)
            scopes.append(there)
            continue
        inside = [key for key in roots.keys_in_folders(folder) if key.split("/")[0] not in absorbed]
        if added is not None and Path(folder).absolute() == added.absolute():
            # a root of its own even where a folder above is one: that one leaves hidden folders such as .seenit out
            inside = [key for key in inside if "/" not in key]
        if not inside:
            within = {key for key, path in roots.folders.items() if relative_parts(path, str(Path(folder).absolute()))}
            absorbed |= within
            key = _new_root({**known, **sources})
            known[key] = roots.stored_form(folder)
            roots = Roots(location, known, sources)
            inside = [key]
        scopes += inside
    return roots, sorted({*scopes, *absorbed}), absorbed


def _new_root(known: Iterable[str]) -> str:
    return str(1 + max((int(key) for key in known if key.isdigit()), default=-1))


def patterns_left_out(manifest: Manifest | None, options: SyncOptions) -> tuple[str, ...]:
    """What is left out from now on; SeenitError where a pattern is to be forgotten that is not remembered."""
    remembered = manifest.exclude if manifest else ()
    for pattern in options.no_exclude:
        if pattern not in remembered:
            known = ", ".join(remembered) or "none"
            raise SeenitError(f"no pattern {pattern!r} is remembered by the index; those that are: {known}")
    for pattern in options.exclude:
        if not pattern.strip() or pattern.startswith("#") or "\n" in pattern:
            raise SeenitError(f"{pattern!r} leaves nothing out; write a pattern as in a .gitignore: *.tif, private/")
    kept = (pattern for pattern in remembered if pattern not in options.no_exclude)
    return tuple(dict.fromkeys([*kept, *options.exclude]))


def take_stock(run: Run, manifest: Manifest | None, location: object, absorbed: set[str]) -> None:
    """Fill the ledger from store and disk, and settle what is unchanged."""
    ledger = run.ledger
    if run.store is not None and manifest is not None:
        ledger.add_known(run.store.list_files(), manifest.whitening_id)
        ledger.add_skipped(read_skipped(run.store))
    for scope in run.scopes:
        if scope in run.roots.sources:
            run.listed.add(scope)
            run.twice += ledger.add_entries(_told(run, scope))
        elif scope.split("/")[0] not in absorbed:
            ledger.add_found(_files_below(run, scope, location))
    for scope in run.scopes:
        if scope in absorbed or run.options.allow_empty:
            continue
        held = ledger.num_known_in(scope)
        if held and not ledger.num_found_in(scope):
            why = "a drive that is not mounted" + (", or all of it excluded?" if run.exclude else "?")
            raise AwayError(
                f"{run.roots.path(scope)} is empty now, but the index holds {held} of its images ({why}); if they are"
                " meant to go: seenit index --allow-empty"
            )
    ledger.settle(run.scopes, retry=run.options.retry, verify=run.options.verify)


def _told(run: Run, root: str) -> Iterator[FoundEntry]:
    """The entries of a source; those that cannot be asked for are noted, and what is known of them is kept."""
    for found in entries_below(run, root):
        if isinstance(found, FoundEntry):
            yield found
            continue
        if isinstance(found, GoneEntry):
            run.num_gone += 1
            run.gone += [found.path] * (len(run.gone) < NAMED)
            continue
        run.unreadable.append(f"{found.path}: {found.reason}")
        if found.key:
            run.ledger.keep_key(f"{root}/{found.key}")


def _is_entry(found: FoundEntry | UnreadableEntry | GoneEntry) -> TypeGuard[FoundEntry]:
    return isinstance(found, FoundEntry)


def entries_below(run: Run, root: str, *, stat: bool = True) -> Iterator[FoundEntry | UnreadableEntry | GoneEntry]:
    """The entries of a source with their keys in the index, without what is left out by patterns."""
    source = open_spec(run.roots.sources[root], allow_private=run.options.allow_private)
    leave_out = left_out_by(run.exclude)
    for entry in source.entries(stat=stat):
        if isinstance(entry, (UnreadableEntry, GoneEntry)):
            yield entry
        elif not leave_out(entry.key):
            yield found_entry(root, entry)


def found_entry(root: str, entry: Entry) -> FoundEntry:
    """An entry as the books have it; what is not known of it is read again in each run."""
    order = {
        "place": list(entry.place),
        "size": entry.size,
        "stamp_ns": UNKNOWN_NS if entry.stamp_ns is None else entry.stamp_ns,
        "about": dict(entry.about),
    }
    return FoundEntry(f"{root}/{entry.key}", entry.size, entry.stamp_ns, json.dumps(order), bool(entry.about))


def _files_below(run: Run, scope: str, location: object) -> Iterator[StoredFile]:
    folder = run.roots.path(scope)
    start = os.path.join(os.path.abspath(folder), "")  # of every path that is found
    exclude = [] if is_address(str(location)) else [str(Path(str(location)).absolute())]

    def count_link(link: str) -> None:
        run.links_out += 1

    for found in find_files(
        [folder],
        exclude_dirs=exclude,
        follow_links=run.options.follow_links,
        exclude=run.exclude,
        within=run.roots.path(scope.split("/")[0]),
        on_link_out=count_link,
    ):
        rest = found.path[len(start) :]
        key = f"{scope}/{rest if os.sep == '/' else rest.replace(os.sep, '/')}" if rest else scope
        if isinstance(found, Unreadable):
            run.unreadable.append(f"{found.path}: {found.reason}")
            run.ledger.keep_under(key)
        else:
            assert isinstance(found, FoundFile)
            yield StoredFile(key, found.size, found.mtime_ns)
