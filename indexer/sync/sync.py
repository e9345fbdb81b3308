"""Brings an index in line with folders: new, changed, renamed, copied and deleted files.

The store is the only truth. A run lists what the store has and what the folders have (`ledger`), reads the difference
in worker processes (`decode_pool`), embeds what has no vectors yet, and writes record by record; so a run that is
killed at any moment is continued by the next one. The descriptor's statistics are fitted on a sample of the corpus
that is embedded first; once the corpus has outgrown them they are fitted again.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ..backbone.load_once import LoadOnce, load_once
from ..errors import AwayError, SeenitError, StoreError
from ..images.decode import SNIFF_BYTES
from ..images.find import Unreadable
from ..images.jobs import Batch, BeginsLikeImage, Broken, Changed, Decoded, Hashed, Job, NotAnImage, Outcome, Vanished
from ..images.pool import DecodePool
from ..index.files import set_files
from ..index.manifest import MANIFEST_BLOB, Manifest, read_manifest, write_manifest
from ..index.place import located
from ..index.skipped import SkippedFile, write_skipped
from ..messages import Say, say_nothing
from ..printable import plural, quoted
from ..sources.open import spec_of
from ..store.index_folder import is_index_folder, refuse_foreign, remove_blank
from ..store.open import open_store
from ..store.protocol import Store, StoredFile, is_url
from .ledger import Ledger
from .options import SyncOptions
from .progress import Progress, counted_stage, stage
from .scan import Run, patterns_left_out, scopes_of, take_stock
from .summary import Summary, _skip_reasons

if TYPE_CHECKING:  # they import torch, which a run that embeds nothing does without
    from ..backbone.backbone import Backbone
    from ..descriptor.embedder import Embedder
    from ..descriptor.whitening import Whitening
    from .writer import Writer

# The statistics are fitted anew when the corpus is this many times what they saw. recall@1 of covers, landmarks with
# views of 10, 30, 100 and all 600 images: .84 .82 .90 .86, .73 .80 .78 .82, so few steps do
OUTGROWN = 8
OUTGROWN_STORED = 4  # where what is stored suffices for it; as often as match probabilities are learnt anew; not tuned
DEFAULT_RESOLUTION = 224  # pixels
SAVE_SKIPPED_EVERY_S = 60.0
NAMED = 10  # files in one line
# Chosen with sync_speed.py on 10,000 small files; flat from 16 to 256 files
BATCH_FILES, BATCH_BYTES = 64, 4_000_000


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
    is_new = not is_url(location) and not is_index_folder(location)
    if is_new and not is_url(location):
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
            _hash_likely_renames(run, stop, progress)
            return _dry_summary(run, manifest, str(location), started)
        if store is None:
            store = run.store = open_store(location, write=True, wait_s=options.wait_s)
        assert store is not None
        if manifest is not None:
            stored_roots = {key: roots.stored_form(path) for key, path in roots.folders.items()}
            manifest = replace(manifest, roots=stored_roots, sources=roots.stored_sources, exclude=run.exclude)
            write_manifest(store, manifest)
        interrupted = not _hash_likely_renames(run, stop, progress)
        if not interrupted and ledger.num_to_decode():
            manifest, interrupted = _embed_all(run, manifest, asked, progress, stop, say)
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
            _remember_skipped(run)
        notes = _verified_notes(run) if options.verify and not interrupted else []
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


# ---- taking stock ----


def _check_request(
    manifest: Manifest | None,
    backbone: LoadOnce,
    options: SyncOptions,
    location: object,
) -> None:
    """Refuse what does not fit an existing index."""
    resolution, tokens = options.resolution, options.tokens
    if resolution is not None and not 56 <= resolution <= 1036:
        raise SeenitError(f"a resolution of {resolution} pixels makes no sense; take one from 56 to 1036")
    if manifest is None:
        if tokens is not None:
            from ..descriptor.embedder import config_named

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
        from ..descriptor.embedder import config_named
        from ..index.statistics import config_of

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


# ---- reading and embedding ----


def _hash_likely_renames(run: Run, stop: Callable[[], bool], progress: Progress) -> bool:
    """Settle files whose size is a known one by their hash alone; False if stopped."""
    ledger = run.ledger
    total = ledger.num_to_hash()
    if not total:
        return True

    def files() -> Iterator[tuple[Job, int]]:
        return ((run.job(key, "hash"), size) for key, size in ledger.to_hash())

    with (
        DecodePool(workers=run.options.workers) as pool,
        stage("comparing", total, "file", progress) as report,
    ):
        for done, outcome in enumerate(pool.run(_in_batches(files())), start=1):
            key = run.key(outcome)
            report(done, total)
            if isinstance(outcome, Hashed) and ledger.is_known(outcome.id):
                ledger.assign(key, outcome.id, outcome.size, outcome.mtime_ns)
                ledger.done(key)
            if stop():
                return False
    return True


def _in_batches(files: Iterable[tuple[Job, int]]) -> Iterator[Batch]:
    """Jobs on files of so many bytes, as few as make BATCH_BYTES, or BATCH_FILES, together."""
    jobs: list[Job] = []
    held = 0
    for job, size in files:
        jobs.append(job)
        held += size
        if held >= BATCH_BYTES or len(jobs) >= BATCH_FILES:
            yield Batch(tuple(jobs))
            jobs, held = [], 0
    if jobs:
        yield Batch(tuple(jobs))


def _embed_all(
    run: Run,
    manifest: Manifest | None,
    asked: LoadOnce,
    progress: Progress,
    stop: Callable[[], bool],
    say: Say,
) -> tuple[Manifest | None, bool]:
    """Decode, embed and write what has no vectors of today's whitening; the manifest then, and whether stopped."""
    from ..descriptor.embedder import DEFAULT_TOKENS, Embedder, config_named
    from ..index.statistics import check_backbone, config_of, read_whitening
    from .refit import MOST_REFITTED, can_refit, refit_from_parts
    from .writer import FIT_SAMPLE, Writer

    assert run.store is not None
    ledger, options = run.ledger, run.options
    name, precision = (manifest.backbone, manifest.precision) if manifest else ("auto", "auto")
    backbone = asked.load(name, fetch=manifest is None, precision=precision)
    if manifest is not None:
        check_backbone(manifest, backbone, run.store.location)
    config = config_of(manifest, run.store.location) if manifest else config_named(options.tokens or DEFAULT_TOKENS)
    embedder = Embedder(backbone, manifest.resolution if manifest else options.resolution or DEFAULT_RESOLUTION, config)
    whitening, from_parts = None, False
    if manifest is not None:
        whitening = read_whitening(run.store, manifest, embedder.config)
        outgrown = manifest.fitted_on < FIT_SAMPLE and not manifest.fixed and options.ray is None
        from_parts = can_refit(whitening) and ledger.num_known() + ledger.num_to_decode() <= MOST_REFITTED
        factor = OUTGROWN_STORED if from_parts else OUTGROWN
        outgrown = outgrown and _has_grown_to(run, factor * max(manifest.fitted_on, 1), stop)
        from_parts = from_parts and outgrown
        if outgrown:
            say(
                f"the index has outgrown its statistics, which were fitted on {plural(manifest.fitted_on, 'image')}:"
                " fitting them again"
            )
            if not from_parts:
                ledger.make_all_stale()
                whitening = None
    if options.ray is not None:
        return _embed_on_cluster(run, manifest, embedder, whitening, progress, stop)
    writer = Writer(run.store, ledger, run.roots, embedder, manifest, whitening, run.exclude)
    keys = ledger.to_decode(0 if whitening else FIT_SAMPLE)
    began = time.monotonic()
    with counted_stage("indexing", ledger.num_to_decode(), "img", progress) as advance:
        interrupted = _decode_into(run, writer, embedder, keys, advance, stop)
        writer.finish(interrupted)
    run.embedding_s = time.monotonic() - began
    run.embedded, run.refitted = writer.written, writer.refitted
    if from_parts and whitening is not None and writer.manifest is not None and not interrupted:
        refitted = refit_from_parts(run.store, writer.manifest, whitening, backbone.prior, FIT_SAMPLE)
        run.refitted = refitted is not None
        return refitted or writer.manifest, False
    return writer.manifest, interrupted


def _decode_into(
    run: Run,
    writer: "Writer",
    embedder: "Embedder",
    keys: Iterable[str],
    advance: Callable[[int], None],
    stop: Callable[[], bool],
) -> bool:
    """Decode files in this machine's processes and hand them to the writer; whether it was stopped."""
    with DecodePool(
        run.options.workers, resolution=embedder.resolution, patch_size=embedder.backbone.patch_size
    ) as pool:
        for outcome in pool.run(run.job(key, "decode") for key in keys):
            advance(1)
            _take(run, writer, run.key(outcome), outcome)
            if stop():
                return True
    return False


def _embed_on_cluster(
    run: Run,
    manifest: Manifest | None,
    embedder: "Embedder",
    whitening: "Whitening | None",
    progress: Progress,
    stop: Callable[[], bool],
) -> tuple[Manifest | None, bool]:
    """`_embed_all` on a Ray cluster: the sample first, read by this machine, then all else by the cluster."""
    from .on_cluster import open_work
    from .writer import FIT_SAMPLE, Writer

    assert run.store is not None
    ledger, began = run.ledger, time.monotonic()
    keys = ledger.to_decode(0 if whitening else FIT_SAMPLE)
    interrupted = False
    with (
        open_work(run, embedder) as work,
        counted_stage("indexing", ledger.num_to_decode(), "img", progress) as advance,
    ):
        writer = Writer(
            run.store, ledger, run.roots, work.embedder(embedder), manifest, whitening, run.exclude, fixed=True
        )
        while writer.whitening is None and not interrupted and (sample := list(islice(keys, FIT_SAMPLE))):
            interrupted = _decode_into(run, writer, embedder, sample, advance, stop)
        writer.finish(interrupted)
        run.embedded, run.refitted = writer.written, writer.refitted
        if not interrupted and writer.whitening is not None:

            def enter(key: str, outcome: Outcome) -> bool:
                wanted = _Wanted()
                _take(run, wanted, key, outcome)
                return wanted.is_new

            written, interrupted = work.embed(
                run, writer.whitening, embedder.backbone.patch_size, keys, enter, advance, stop
            )
            run.embedded += written
    run.embedding_s = time.monotonic() - began
    return writer.manifest, interrupted


class _Wanted:
    """Takes the place of a writer where an image is only to be known as one that has to be embedded."""

    def __init__(self) -> None:
        self.is_new = False

    def add(self, image: Decoded) -> None:
        self.is_new = True


def _has_grown_to(run: Run, count: int, stop: Callable[[], bool]) -> bool:
    """Whether the index will hold so many images, as far as the first bytes of new files tell.

    Photo services lay a side file beside each image; they are set apart here, and remembered like any that is no image.
    """
    ledger = run.ledger
    missing = count - ledger.num_known()
    if missing <= 0 or ledger.num_to_decode() - ledger.num_stale() < missing:
        return missing <= 0

    def files() -> Iterator[tuple[Job, int]]:
        return ((run.job(key, "sniff"), SNIFF_BYTES) for key in ledger.to_sniff())

    with DecodePool(run.options.workers) as pool:
        for outcome in pool.run(_in_batches(files())):
            key = run.key(outcome)
            if isinstance(outcome, NotAnImage):
                ledger.skip(SkippedFile(key, outcome.size, outcome.mtime_ns, None))
                ledger.done(key)
            elif isinstance(outcome, BeginsLikeImage):
                missing -= 1
            if missing <= 0 or stop():
                break
    return missing <= 0


def _take(run: Run, writer: "Writer | _Wanted", key: str, outcome: Outcome) -> None:
    """Enter one outcome of the pool into the books."""
    ledger = run.ledger
    if isinstance(outcome, Decoded):
        ledger.assign(key, outcome.id, outcome.size, outcome.mtime_ns)
        if ledger.claim(outcome.id):
            writer.add(outcome)
    elif isinstance(outcome, NotAnImage):
        ledger.skip(SkippedFile(key, outcome.size, outcome.mtime_ns, None))
    elif isinstance(outcome, Broken):
        ledger.skip(SkippedFile(key, outcome.size, outcome.mtime_ns, outcome.reason))
    elif isinstance(outcome, Unreadable):
        ledger.keep(key)
        ledger.skip(SkippedFile(key, -1, 0, outcome.reason))
    elif isinstance(outcome, Changed):
        ledger.keep(key)  # the next run takes it
    else:
        assert isinstance(outcome, Vanished), outcome
    if time.monotonic() - run.skipped_saved > SAVE_SKIPPED_EVERY_S:
        _remember_skipped(run)


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


def _remember_skipped(run: Run) -> None:
    assert run.store is not None
    write_skipped(run.store, run.ledger.skipped())
    run.skipped_saved = time.monotonic()


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
