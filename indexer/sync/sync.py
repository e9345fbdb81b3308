"""Brings an index in line with folders: new, changed, renamed, copied and deleted files.

The store is the only truth. A run lists what the store has and what the folders have (`ledger`), reads the difference
in worker processes (`reading`), embeds what has no vectors yet, and writes record by record (`embedding`); so a run
that is killed at any moment is continued by the next one.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..backbone.load_once import LoadOnce, load_once
from ..descriptor.config import config_named
from ..errors import AwayError, SeenitError, StoreError
from ..index.files import set_files
from ..index.manifest import MANIFEST_BLOB, Manifest, config_of, read_manifest, write_manifest
from ..index.place import located
from ..messages import Say, say_nothing
from ..printable import plural, quoted
from ..sources.open import spec_of
from ..store.index_folder import refuse_foreign, remove_blank
from ..store.open import is_made, open_store
from ..store.protocol import Store, StoredFile
from .embedding import embed_all
from .ledger import Ledger
from .options import SyncOptions, check_resolution
from .progress import Progress, stage
from .reading import hash_likely_renames, remember_skipped
from .scan import NAMED, Run, patterns_left_out, scopes_of, take_stock
from .summary import Summary, _skip_reasons

if TYPE_CHECKING:  # they import torch, which a run that embeds nothing does without
    from ..backbone.backbone import Backbone


def default_index(folders: Sequence[str | Path]) -> Path:
    """`FOLDER/.seenit` for one folder; several, and what is no folder, need a place named by the user."""
    if len(folders) == 1 and spec_of(folders[0]) is not None:
        raise SeenitError(f"{folders[0]} is no folder, which needs a place for its index: add --index PATH")
    if len(folders) != 1:
        raise SeenitError("several folders need a place for their index: add --index PATH")
    return Path(folders[0]) / ".seenit"


def sync_folder(
    folders: str | Path | Sequence[str | Path] = (),
    index: str | Path | None = None,
    *,
    options: SyncOptions = SyncOptions(),
    backbone: "Backbone | LoadOnce | str | Path | None" = None,
    progress: Progress = False,
    stop: Callable[[], bool] = lambda: False,
    say: Say = say_nothing,
) -> Summary:
    """Bring the index in line with the folders; what it holds of other folders stays.

    folders      one or several; lists (.txt), tables (.csv, .parquet), tar shards and addresses (s3://...) count as
                 folders, see `indexer.sources`; none: everything that the index already mirrors
    index        a folder or a server's URL; default: `.seenit` in the one folder
    options      see SyncOptions
    backbone     a name, a path, a loaded Backbone or a LoadOnce; default: the index's own, for a new index `auto`
    progress     True: a bar on stderr; a function: gets what is being done, how much of it is done, and of how much
    stop         asked between images; once it says True the batch in hand is finished and the run ends
    say          gets one line for the user now and then

    Raises SeenitError (and its kin) in one line: a folder that is not there, an index in use, another backbone.
    """
    started = time.monotonic()
    folders = [folders] if isinstance(folders, (str, Path)) else list(folders)
    location = located(index if index is not None else default_index(folders))
    for folder in folders:
        if not Path(folder).is_dir() and spec_of(folder) is None:
            if Path(folder).exists():
                raise SeenitError(f"cannot index {folder}: it is a file, not a folder; name the folder that holds it")
            raise AwayError(f"cannot index {folder}: it is not there; nothing was changed")
    is_new = not is_made(location)
    if is_new:
        refuse_foreign(Path(location))
    store = None if is_new else open_store(location, write=not options.dry_run, wait_s=options.wait_s)
    asked = load_once(backbone, say)
    ledger = Ledger()
    try:
        manifest = read_manifest(store) if store else None
        if manifest is None and not folders:
            raise SeenitError(f"nothing is indexed at {location} yet; name a folder: seenit index FOLDER --index ...")
        roots, scopes, absorbed = scopes_of(str(location), manifest, folders, options)
        run = Run(store, ledger, roots, scopes, options, patterns_left_out(manifest, options))
        _check_request(manifest, asked, options, location)
        take_stock(run, manifest, location, absorbed)
        if manifest is None and not ledger.num_to_decode():
            raise AwayError(f"no files in {', '.join(map(str, folders))}; name a folder with images")
        if options.dry_run:
            hash_likely_renames(run, stop, progress)
            return _dry_summary(run, manifest, str(location), started)
        if store is None:
            store = run.store = open_store(location, write=True, wait_s=options.wait_s)
        assert store is not None
        if manifest is not None:
            stored_roots = {key: roots.stored_form(path) for key, path in roots.folders.items()}
            manifest = replace(manifest, roots=stored_roots, sources=roots.stored_sources, exclude=run.exclude)
            write_manifest(store, manifest)
        interrupted = not hash_likely_renames(run, stop, progress)
        if not interrupted and ledger.num_to_decode():
            manifest, interrupted = embed_all(run, manifest, asked, progress, stop, say)
        if manifest is None and not interrupted:
            reasons = ", ".join(f"{count} {reason}" for reason, count in _skip_reasons(ledger).items())
            raise AwayError(
                f"no images in {', '.join(map(str, folders))}"
                f"{f' ({reasons})' if reasons else ''}; name a folder with images"
            )
        if interrupted:
            ledger.keep_unread()
        if manifest is not None:
            _bring_files_in_line(store, ledger, interrupted)
            if absorbed and not interrupted:
                manifest = manifest.without_roots(absorbed)
                write_manifest(store, manifest)
            remember_skipped(run)
        notes = _verified_notes(run) if options.verify and not interrupted else []
        if run.num_gone:
            names = ", ".join(map(quoted, run.gone)) + (", ..." if run.num_gone > len(run.gone) else "")
            notes.append(f"left out {plural(run.num_gone, 'row')} whose image is not there: {names}")
        if run.twice:
            notes.append(f"left out {plural(run.twice, 'row')} whose key or path an earlier row has")
        if run.links_out:
            notes.append(f"not followed: {plural(run.links_out, 'link')} out of the folders; see --follow-links")
        if run.embedded and not interrupted:
            notes += _optimize(store, progress, stop)
            interrupted = stop()
        return Summary(
            index=str(location),
            changes=ledger.changes(),
            skipped=_skip_reasons(ledger),
            unreadable=tuple(run.unreadable),
            images=store.count() if manifest is not None else 0,
            embedded=run.embedded,
            refitted=run.refitted,
            seconds=time.monotonic() - started,
            images_per_s=run.embedded / run.embedding_s if run.embedded else 0.0,
            interrupted=interrupted,
            dry_run=False,
            backbone=manifest.backbone if manifest is not None else "",
            notes=tuple(notes),
        )
    finally:
        ledger.close()
        if store is not None:
            blank = is_new and store.read_blob(MANIFEST_BLOB) is None
            store.close()
            if blank:
                remove_blank(Path(location))  # made by this run, holds nothing


def _verified_notes(run: Run) -> list[str]:
    num_read, differ = run.ledger.verified()
    if not differ:
        read = f"{plural(num_read, 'file')} of unchanged size and time {'was' if num_read == 1 else 'were'} read again"
        return [f"{read}; all hold what was indexed"]
    names = ", ".join(quoted(run.roots.path(key)) for key in differ[:NAMED])
    return [
        f"{len(differ):,} of {plural(num_read, 'file')} of unchanged size and time hold something else than what was"
        f" indexed, or cannot be read: {names}{', ...' if len(differ) > NAMED else ''}"
    ]


def _optimize(store: Store, progress: Progress, stop: Callable[[], bool]) -> list[str]:
    """Build the graph of neighbours; what the user should know where that was not possible."""
    with stage("linking neighbours", 0, " images", progress) as report:
        try:
            store.optimize(progress=report, stop=stop)
        except StoreError as error:  # all is written; without the graph a search compares with every image
            return [f"searches are slower than need be: {error}"]
    return []


def _check_request(
    manifest: Manifest | None,
    backbone: LoadOnce,
    options: SyncOptions,
    location: object,
) -> None:
    """Refuse what does not fit an existing index."""
    resolution, tokens = options.resolution, options.tokens
    check_resolution(resolution)
    if manifest is None:
        if tokens is not None:
            config_named(tokens)
        return
    if resolution is not None and resolution != manifest.resolution:
        raise SeenitError(
            f"the index at {location} was made at --resolution {manifest.resolution}, not {resolution};"
            " make another one with --index"
        )
    if backbone.precision != "auto" and manifest.precision not in ("auto", backbone.precision):
        raise SeenitError(
            f"the index at {location} was made with --precision {manifest.precision}, not {backbone.precision};"
            " leave --precision out, or make another index with --index"
        )
    if tokens is not None:
        wanted, made_with = config_named(tokens), config_of(manifest, location)
        if (wanted.num_tokens, wanted.token_bits) != (made_with.num_tokens, made_with.token_bits):
            raise SeenitError(
                f"the index at {location} was not made with --tokens {tokens}; make another one with --index"
            )
    if backbone.spec in (None, "auto", manifest.backbone) and not backbone.is_loaded:
        return
    from ..backbone.resolve import would_be_fetched
    from ..index.statistics import check_backbone

    if not backbone.is_loaded and would_be_fetched(backbone.spec):  # it did not make this index: it was never here
        raise SeenitError(
            f"the index at {location} was made by backbone {manifest.backbone}, not {backbone.spec}; leave --backbone"
            " out, or make another index with --index"
        )
    check_backbone(manifest, backbone.load(manifest.backbone), location)


def _bring_files_in_line(store: Store, ledger: Ledger, interrupted: bool) -> None:
    """Renames, copies and deletions: only lists of files change. A run cut short deletes nothing."""
    moved: dict[str, tuple[StoredFile, ...]] = {}
    gone: list[str] = []
    for record_id, files in ledger.out_of_line():
        if files:
            moved[record_id] = files
        elif not interrupted:
            gone.append(record_id)
        if len(moved) >= 1000:
            set_files(store, moved)
            moved = {}
        if len(gone) >= 1000:
            store.delete(gone)
            gone = []
    if moved:
        set_files(store, moved)
    if gone:
        store.delete(gone)


def _dry_summary(run: Run, manifest: Manifest | None, location: str, started: float) -> Summary:
    """What a run would do: files still to be read count as added or updated."""
    for key in [*run.ledger.to_decode(0)]:
        run.ledger.assign(key, f"unread {key}", 0, 0)
    return Summary(
        index=location,
        changes=run.ledger.changes(),
        skipped=_skip_reasons(run.ledger),
        unreadable=tuple(run.unreadable),
        images=run.store.count() if run.store and manifest else 0,
        embedded=0,
        refitted=False,
        seconds=time.monotonic() - started,
        images_per_s=0.0,
        interrupted=False,
        dry_run=True,
        backbone=manifest.backbone if manifest else "",
    )
