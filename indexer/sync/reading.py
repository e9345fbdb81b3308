"""Reading files of which only the books need to know: renamed ones by their hash, new ones by their first bytes.

Also how an outcome of the decoders is entered into those books.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from ..images.decode import SNIFF_BYTES
from ..images.find import Unreadable
from ..images.jobs import Batch, BeginsLikeImage, Broken, Changed, Decoded, Hashed, Job, NotAnImage, Outcome, Vanished
from ..images.pool import DecodePool
from ..index.skipped import SkippedFile, write_skipped
from .progress import Progress, stage
from .scan import Run

SAVE_SKIPPED_EVERY_S = 60.0
# Chosen with sync_speed.py on 10,000 small files; flat from 16 to 256 files
BATCH_FILES, BATCH_BYTES = 64, 4_000_000


class TakesImages(Protocol):
    """What gets the images that have no vectors yet: a writer."""

    def add(self, image: Decoded) -> None: ...


def hash_likely_renames(run: Run, stop: Callable[[], bool], progress: Progress) -> bool:
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


def will_hold(run: Run, count: int, stop: Callable[[], bool]) -> bool:
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


def take_in(run: Run, writer: TakesImages, key: str, outcome: Outcome) -> None:
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
        remember_skipped(run)


def remember_skipped(run: Run) -> None:
    assert run.store is not None
    write_skipped(run.store, run.ledger.skipped())
    run.skipped_saved = time.monotonic()


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
