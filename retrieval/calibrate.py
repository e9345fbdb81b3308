"""How likely a result is the same thing: learnt from the index's own pictures.

A score means different things with another backbone, another collection, another number of pictures. So some of the
index's own pictures are photographed anew (see `rephotograph`) and searched with. Each view has one right answer, the
picture that it was made of, and one that is the best of the wrong: the top result that a photo of something unknown
would get here. A logistic curve between the scores of the two (Platt, 1999) turns a score into a probability. A second
one is learnt from the patches' agreement alone, and the lower of the two counts: two walls of the same brick look alike
as a whole, and only their patches tell them apart.

Views are made and no photos, so that they are easier than what a user takes; what is learnt is where the wrong answers
end. Other photos of the same thing lie among the wrong answers: those above the middle of the right ones are left out.
"""

import json
import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from indexer.decode_pool import DecodePool
from indexer.manifest import Manifest, read_manifest
from indexer.preprocess import MIDDLE
from indexer.read_picture import Decoded, Job
from indexer.rephotograph import make_view
from indexer.store import Store, open_store

if TYPE_CHECKING:
    from indexer.backbone import Backbone

    from .search import Searcher

BLOB = "calibration.json"
FORMAT = 2  # 2: agreement is what is distinct
VIEWS = 32  # that pictures are photographed in anew
FEWEST = 8  # pictures with which there is something to learn
DIFFICULTY = (0.8, 2.0)  # of the views
BELIEVED = 0.5  # probability from which on a result is believed to be the same thing
GROWN = 4  # times as many pictures: the wrong answers score higher by then
SETTLED = 20_000  # pictures from which on growing changes little


@dataclass(frozen=True)
class Calibration:
    """probability = 1 / (1 + exp(-(slope * x + offset))), the lower one of x = score and x = the patches' agreement."""

    slope: float
    offset: float
    agreement_slope: float
    agreement_offset: float
    fit: str  # of the descriptor, for whose scores it holds
    pictures: int  # in the index when it was made
    views: int  # that it was learnt from

    def probability(self, score: float, agreement: float) -> float:
        """That a result with this score and agreement shows the same thing, in (0, 1)."""
        of_agreement = _logistic(self.agreement_slope * agreement + self.agreement_offset)
        return min(_logistic(self.slope * score + self.offset), of_agreement)


def read_calibration(store: Store, manifest: Manifest) -> Calibration | None:
    """The index's calibration; None where there is none for today's vectors, or none that can be read."""
    data = store.read_blob(BLOB)
    try:
        values = json.loads(data or b"{}")
        if values.pop("format", None) != FORMAT:
            return None
        calibration = Calibration(**values)
        numbers = (calibration.slope, calibration.offset, calibration.agreement_slope, calibration.agreement_offset)
        if not all(math.isfinite(number) for number in numbers):
            return None
        return calibration if calibration.fit == manifest.fit else None  # vectors made anew have other scores
    except (ValueError, TypeError, AttributeError):
        return None


def calibrate(
    index: str | Path,
    *,
    backbone: "Backbone | None" = None,
    wait_s: float = 10.0,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda line: None,
) -> Calibration | None:
    """Learn an index's calibration and store it; nothing is done where the one it has still holds.

    backbone  the one that made the index, if it is loaded already
    wait_s    how long to wait for another process that writes the index
    returns   the calibration, None where the index is too small to learn from
    Takes about a tenth of a second for each of 32 views.
    """
    from .search import Searcher

    with closing(open_store(index, write=True, wait_s=wait_s)) as store:
        manifest = read_manifest(store)
        if manifest is None:
            return None
        count = store.count()
        known = read_calibration(store, manifest)
        if known is not None and (count < GROWN * known.pictures or known.pictures >= SETTLED):
            return known
        if count < FEWEST:
            return None
        say("learning from its own pictures how sure a match is")
        searcher = Searcher(store, manifest, say)
        if backbone is not None:
            searcher.use(backbone)
        answers = _answers(searcher, VIEWS, stop)
        if len(answers) < FEWEST // 2 or stop():
            return None
        scores, agreements = np.array(answers).transpose(1, 2, 0)  # each (2, n): right answers and wrong ones
        calibration = Calibration(*learn(*scores), *learn(*agreements), manifest.fit, count, len(answers))
        store.write_blob(BLOB, json.dumps({"format": FORMAT, **asdict(calibration)}).encode())
        return calibration


def learn(right: np.ndarray, wrong: np.ndarray) -> tuple[float, float]:
    """Slope and offset of the logistic curve between scores of right answers (n,) and of wrong ones (m,).

    Targets are a little inside 0 and 1, as Platt proposes: few scores that are far apart would else make the curve a
    step. Wrong answers above the median of the right ones are left out.
    """
    kept = wrong[wrong < np.median(right)]
    wrong = kept if len(kept) else wrong
    scores = np.concatenate([right, wrong])
    middle, spread = scores.mean(), scores.std() + 1e-9
    x = np.stack([(scores - middle) / spread, np.ones(len(scores))], axis=1)  # (n + m, 2)
    target = np.concatenate(
        [np.full(len(right), (len(right) + 1) / (len(right) + 2)), np.full(len(wrong), 1 / (len(wrong) + 2))]
    )
    weight = np.concatenate([np.full(len(right), 0.5 / len(right)), np.full(len(wrong), 0.5 / len(wrong))])
    parameters = np.zeros(2)
    for _ in range(50):  # Newton's method on the cross-entropy
        probability = 1 / (1 + np.exp(-np.clip(x @ parameters, -30, 30)))
        gradient = x.T @ (weight * (probability - target))
        curvature = (x * (weight * probability * (1 - probability))[:, None]).T @ x + 1e-6 * np.eye(2)
        parameters = parameters - np.linalg.solve(curvature, gradient)
    slope = float(parameters[0] / spread)
    return slope, float(parameters[1] - slope * middle)


Answers = tuple[tuple[float, float], tuple[float, float]]  # scores, agreements; of the right answer and the best wrong


def _answers(searcher: "Searcher", count: int, stop: Callable[[], bool]) -> list[Answers]:
    """What `count` views of the index's pictures are answered; of a small index several of each."""
    records = list(islice(searcher.store.scroll(batch=count), count))  # ids are random, so the first are a sample
    paths = {searcher.roots.path(record.files[0].key): record.id for record in records if record.files}
    resolution = round(searcher.manifest.resolution / MIDDLE)  # as queries are decoded
    with DecodePool(resolution=resolution, patch_size=1) as pool:
        found = {one.path: one.pixels for one in pool.run(Job(path) for path in paths) if isinstance(one, Decoded)}
    answers = []
    rng = np.random.default_rng(0)
    pixels = [found[path] for path in paths if path in found]
    ids = [paths[path] for path in paths if path in found]
    for n in range(count if pixels else 0):
        if stop():
            break
        picture, behind = pixels[n % len(pixels)], pixels[(n - 1) % len(pixels)][::-1, ::-1]
        height, width = picture.shape[:2]
        view = make_view(rng, picture, behind, height, width, rng.uniform(*DIFFICULTY))
        (found_here,) = searcher.candidates([view])
        right = [(one.score, one.agreement) for one in found_here if one.id == ids[n % len(ids)]]
        wrong = [(one.score, one.agreement) for one in found_here if one.id != ids[n % len(ids)]]
        if wrong:
            best = (max(score for score, _ in wrong), max(agreement for _, agreement in wrong))
            score, agreement = right[0] if right else (min(score for score, _ in wrong), 0.0)  # it was not among them
            answers.append(((score, best[0]), (agreement, best[1])))
    return answers


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-min(max(value, -30.0), 30.0)))
