"""Decoding, embedding and writing what has no vectors yet, on this machine or on a Ray cluster.

The statistics of a new index are fitted on a sample that is embedded first; an index that has outgrown them gets
others, from what it stores where that suffices (see `refit`).
"""

import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from ..backbone.load_once import LoadOnce
from ..descriptor.config import DEFAULT_TOKENS, config_named
from ..images.jobs import Decoded, Outcome
from ..images.pool import DecodePool
from ..index.manifest import Manifest, config_of
from ..messages import Say
from ..printable import plural
from .progress import Progress, counted_stage
from .reading import take_in, will_hold
from .scan import Run

if TYPE_CHECKING:  # they import torch, which a run that embeds nothing does without
    import numpy as np

    from ..descriptor.embedder import Embedder
    from ..descriptor.whitening import Whitening
    from .writer import Writer

# The statistics are fitted anew when the corpus is this many times what they saw. recall@1 of covers, landmarks with
# views of 10, 30, 100 and all 600 images: .84 .82 .90 .86, .73 .80 .78 .82, so few steps do
OUTGROWN = 8
OUTGROWN_STORED = 4  # where what is stored suffices for it; as often as match probabilities are learnt anew; not tuned
DEFAULT_RESOLUTION = 224  # pixels
RANGED_ON = 16  # images, see `cpu_int8.PHOTO_MARGIN`
FEWEST_RANGED = 8  # with fewer the ranges are those of drawn images; not tuned
MOST_TRIED = 4 * RANGED_ON  # files, some of which are no images


def embed_all(
    run: Run,
    manifest: Manifest | None,
    asked: LoadOnce,
    progress: Progress,
    stop: Callable[[], bool],
    say: Say,
) -> tuple[Manifest | None, bool]:
    """Decode, embed and write what has no vectors of today's whitening; the manifest then, and whether stopped."""
    from ..descriptor.embedder import Embedder
    from ..index.statistics import check_backbone, read_ranges, read_whitening
    from .refit import MOST_REFITTED, can_refit, refit_from_parts
    from .writer import FIT_SAMPLE, Writer

    assert run.store is not None
    ledger, options = run.ledger, run.options
    name, precision = (manifest.backbone, manifest.precision) if manifest else ("auto", "auto")
    own = None if manifest is None else partial(read_ranges, run.store, manifest)
    backbone = asked.load(name, fetch=manifest is None, precision=precision, ranges=own or (lambda: None))
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
        outgrown = outgrown and will_hold(run, factor * max(manifest.fitted_on, 1), stop)
        from_parts = from_parts and outgrown
        if outgrown:
            say(
                f"the index has outgrown its statistics, which were fitted on {plural(manifest.fitted_on, 'image')}:"
                " fitting them again"
            )
            if not from_parts:
                ledger.make_all_stale()
                whitening = None
    if whitening is None and backbone.precision == "int8" and backbone.ranges is None:
        embedder = Embedder(asked.fit_to(_some_images(run, embedder)), embedder.resolution, config)
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


def _some_images(run: Run, embedder: "Embedder") -> "list[np.ndarray]":
    """Images that 8-bit ranges are measured on, as the network sees them; none where too few can be read."""
    keys = islice(run.ledger.to_sniff(), MOST_TRIED)
    images: list[np.ndarray] = []
    with DecodePool(
        run.options.workers, resolution=embedder.resolution, patch_size=embedder.backbone.patch_size
    ) as pool:
        for outcome in pool.run(run.job(key, "decode") for key in keys):
            run.key(outcome)
            if isinstance(outcome, Decoded):
                images.append(embedder.lit(outcome.pixels))
            if len(images) == RANGED_ON:
                break
    return images if len(images) >= FEWEST_RANGED else []


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
            take_in(run, writer, run.key(outcome), outcome)
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
    """`embed_all` on a Ray cluster: the sample first, read by this machine, then all else by the cluster."""
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
                take_in(run, wanted, key, outcome)
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
