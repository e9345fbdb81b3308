"""How likely a result is the same thing: a curve learnt from photos with known answers, moved to where an index's
scores begin.

Three numbers speak for a result or against it: its score, how much an inlier stands out on average, and by how much the
inliers' colours differ. A logistic curve over the score (Platt, 1999) says how likely an answer with it is right. A
second one takes back what rests on inliers that might as well lie elsewhere, as on chequered cloth. Colours that differ
beyond what light explains lower the probability, as of packets of one brand in two flavours. All were fitted to real
photos, once, and ship as constants. Synthetic views of an index's own images were tried in their place: they are easier
than photos, and most right answers among photos of buildings came out as "no match".

What an index adds is where its scores begin, for that depends on backbone and statistics. Images of it that were drawn
at random have nothing to do with each other, and as much as these pairs score above or below those of the photos
behind the curve, the curve moves. Vectors and patches as they are stored suffice: no network, no file.
"""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np

from indexer.descriptor.features import CropFeatures
from indexer.descriptor.patch_codec import unpack_patches
from indexer.index.calibration import CALIBRATION_BLOB, Calibration, calibration_json
from indexer.index.index import WAIT_S, Index
from indexer.messages import Say, say_nothing
from indexer.store.protocol import Store

from .rerank.fuse import fuse_scores

IMAGES = 32  # that are compared with each other; not tuned
FEWEST = 8  # images with which there is something to learn
GROWN = 4  # times as many images: others may be among them by then
SETTLED = 20_000  # images from which on growing changes little

# Of the curve over scores, where unrelated pairs score BACKGROUND. Fitted on covers, paintings and every other
# landmark, asked of galleries with the thing and without, by their upright crops. That a thing is as likely in as out,
# as there, is the prior of these probabilities. Whole searches with the weights that ship today give 18.0 and -9.2
# (`match_probability.py --fit`): half the false alarms and a tenth fewer right matches, but over all sets probabilities
# are off by .063 in place of .043.
SLOPE, OFFSET = 13.9, -6.5
BACKGROUND = 0.038
# Of that over the inliers' mean distinctiveness: even odds at .075. Of right first answers among these covers and
# paintings 98 of 100 lie above it, of the landmarks 78; drawn pairs of one texture lie at .071 and below, controls at
# .101 and above.
CONSISTENCY_SLOPE, CONSISTENCY_OFFSET = 100.0, -7.5
# By how much a unit of the inliers' difference in colour takes from the log odds, and where it takes nothing. On the
# same covers, paintings and landmarks cross-entropy falls from .897 to .848, and between slopes of 1.5 and 2.5 and 1.7
# and 1.8 by .004 more or less. From 2 and 1.7 on right answers of the demo, which are drawn vividly, are no matches.
COLOUR_SLOPE, COLOUR_EVEN = 1.5, 1.8


def calibrate(
    index: "str | Path | Index",
    *,
    wait_s: float = WAIT_S,
    stop: Callable[[], bool] = lambda: False,
    say: Say = say_nothing,
) -> Calibration | None:
    """Learn an index's calibration and store it; nothing is done where the one it has still holds.

    index    its place, or one that is opened for writing
    returns  the calibration, None where the index is too small to learn from, or where `stop` said so
    Takes some tenths of a second.
    """
    if isinstance(index, Index):
        return _calibrate(index, stop, say)
    with Index.open(index, wait_s=wait_s) as reader:
        count = reader.count
        if still_holds(reader, count) or count < FEWEST:
            return reader.calibration
    with Index.open(index, write=True, wait_s=wait_s) as writer:
        return _calibrate(writer, stop, say)


def still_holds(index: Index, count: int) -> bool:
    """Whether an index of so many images needs no new calibration."""
    known = index.calibration
    return known is not None and (count < GROWN * known.images or known.images >= SETTLED)


def _calibrate(index: Index, stop: Callable[[], bool], say: Say) -> Calibration | None:
    count = index.count
    if still_holds(index, count) or count < FEWEST:
        return index.calibration
    say("learning from its own images how probable a match is")
    background = background_score(index.store, stop)
    if background is None:
        return None
    offset = OFFSET - SLOPE * (background - BACKGROUND)
    learnt = Calibration(
        slope=SLOPE,
        offset=offset,
        consistency_slope=CONSISTENCY_SLOPE,
        consistency_offset=CONSISTENCY_OFFSET,
        whitening_id=index.manifest.whitening_id,
        images=count,
        background=background,
        colour_slope=COLOUR_SLOPE,
        colour_even=COLOUR_EVEN,
    )
    index.store.write_blob(CALIBRATION_BLOB, calibration_json(learnt))
    index.refresh()
    return learnt


def background_score(store: Store, stop: Callable[[], bool] = lambda: False) -> float | None:
    """The median score of pairs of images that have nothing to do with each other; None where `stop` said so.

    Of an index a few images at random are such pairs, but for some; a median does not mind them.
    """
    from .rerank.rerank import Comparison  # it imports torch, which a run that learns nothing does without

    records = list(
        islice(store.scroll(vectors=True, batch=IMAGES), IMAGES)
    )  # ids are random, so the first are a sample
    seen = [(one.global_vector, one.patches) for one in records if one.global_vector is not None and one.patches]
    scores = []
    for n, (vector, packed) in enumerate(seen):
        if stop():
            return None
        others = seen[:n] + seen[n + 1 :]
        comparison = Comparison([stored_view(vector, packed)], [packed_other for _, packed_other in others])
        cosines = np.stack([other for other, _ in others]) @ vector
        scores.append(fuse_scores(cosines, comparison.inlier_weight, comparison.distinctiveness))
    return float(np.median(np.concatenate(scores)))


def stored_view(vector: np.ndarray, packed: bytes) -> CropFeatures:
    """An indexed image as a query, by what the index holds: its vector (G,) and the patches that it keeps.

    The tokens of the other patches are 0, which are like nothing.
    """
    patches = unpack_patches([packed])
    (grid,) = patches.grids
    tokens = np.zeros((grid[0] * grid[1], patches.tokens.shape[1]), np.float32)
    tokens[patches.positions[:, 0].astype(int) * grid[1] + patches.positions[:, 1]] = patches.tokens
    return CropFeatures(vector.astype(np.float32), tokens, grid)
