"""How likely a result is the same thing: learnt from the index's own images.

A score means different things with another backbone, another collection, another number of images. So some of the
index's own images are searched with as synthetic views (see `synthetic_views`). Each view has one right answer, the
image that it was made of, and one that is the best of the wrong: the top result that a photo of something unknown
would get here. A logistic curve between the scores of the two (Platt, 1999) turns a score into a probability. A second
one is learnt from the consistency of the patches alone, and the lower of the two counts: two walls of the same brick
look alike as a whole, and only their patches tell them apart.

Views are made and no photos, so that they are easier than what a user takes; what is learnt is where the wrong answers
end. Other photos of the same thing lie among the wrong answers: those above the middle of the right ones are left out.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from indexer.images.jobs import Decoded, Job
from indexer.images.synthetic_views import render_view
from indexer.index.calibration import CALIBRATION_BLOB, Calibration, calibration_json
from indexer.index.index import WAIT_S, Index
from indexer.messages import Say, say_nothing

if TYPE_CHECKING:
    from indexer.backbone.backbone import Backbone
    from indexer.backbone.load_once import LoadOnce

    from .results import Candidate
    from .search import Searcher

# None of these was tuned. More views cost a forward each, once an index.
VIEWS = 32  # synthetic views
TOGETHER = 8  # of them, in one batch of forwards; not tuned
FEWEST = 8  # images with which there is something to learn
DIFFICULTY = (0.8, 2.0)  # of the views
GROWN = 4  # times as many images: the wrong answers score higher by then
SETTLED = 20_000  # images from which on growing changes little


def calibrate(
    index: "str | Path | Index",
    *,
    backbone: "Backbone | LoadOnce | None" = None,
    wait_s: float = WAIT_S,
    stop: Callable[[], bool] = lambda: False,
    say: Say = say_nothing,
) -> Calibration | None:
    """Learn an index's calibration and store it; nothing is done where the one it has still holds.

    index     its place, or one that is opened for writing
    backbone  the one that made the index, if it is loaded already
    returns   the calibration, None where the index is too small to learn from
    Takes about a tenth of a second for each of 32 views.
    """
    if isinstance(index, Index):
        return _calibrate(index, backbone, stop, say)
    with Index.open(index, wait_s=wait_s) as reader:  # learnt beside other writers, who are kept out for the end only
        count = reader.count
        if still_holds(reader, count) or count < FEWEST:
            return reader.calibration
        learnt = _learn_from(reader, backbone, count, stop, say)
    if learnt is not None:
        with Index.open(index, write=True, wait_s=wait_s) as writer:
            _keep(writer, learnt)
    return learnt


def still_holds(index: Index, count: int) -> bool:
    """Whether an index of so many images needs no new calibration."""
    known = index.calibration
    return known is not None and (count < GROWN * known.images or known.images >= SETTLED)


def _calibrate(
    index: Index, backbone: "Backbone | LoadOnce | None", stop: Callable[[], bool], say: Say
) -> Calibration | None:
    count = index.count
    if still_holds(index, count) or count < FEWEST:
        return index.calibration
    learnt = _learn_from(index, backbone, count, stop, say)
    if learnt is not None:
        _keep(index, learnt)
    return learnt


def _keep(index: Index, learnt: Calibration) -> None:
    index.store.write_blob(CALIBRATION_BLOB, calibration_json(learnt))
    index.refresh()


def _learn_from(
    index: Index,
    backbone: "Backbone | LoadOnce | None",
    count: int,
    stop: Callable[[], bool],
    say: Say,
) -> Calibration | None:
    from .search import Searcher

    say("learning from its own images how probable a match is")
    searcher = Searcher(index, say)
    if backbone is not None:
        searcher.use(backbone)
    answers = _answers(searcher, VIEWS, stop)
    if len(answers) < FEWEST // 2 or stop():
        return None
    scores, consistencies = np.array(answers).transpose(1, 2, 0)  # each (2, n): right answers and wrong ones
    return Calibration(*learn(*scores), *learn(*consistencies), searcher.manifest.whitening_id, count, len(answers))


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


Answers = tuple[
    tuple[float, float], tuple[float, float]
]  # scores, consistencies; of the right answer and the best wrong


def _answers(searcher: "Searcher", count: int, stop: Callable[[], bool]) -> list[Answers]:
    """What `count` views of the index's images are answered; of a small index several of each."""
    records = list(islice(searcher.store.scroll(batch=count), count))  # ids are random, so the first are a sample
    paths = {searcher.roots.path(record.files[0].key): record.id for record in records if record.files}
    with searcher.encoder.query_pool() as pool:
        found = {one.path: one.pixels for one in pool.run(Job(path) for path in paths) if isinstance(one, Decoded)}
    answers: list[Answers] = []
    rng = np.random.default_rng(0)
    pixels = [found[path] for path in paths if path in found]
    ids = [paths[path] for path in paths if path in found]
    for start in range(0, count if pixels else 0, TOGETHER):
        numbers = [n % len(pixels) for n in range(start, min(start + TOGETHER, count))]
        views = []
        for n in numbers:
            if stop():
                return answers
            image, behind = pixels[n], pixels[n - 1][::-1, ::-1]
            height, width = image.shape[:2]
            views.append(render_view(rng, image, behind, height, width, rng.uniform(*DIFFICULTY)))
        for n, found_here in zip(numbers, searcher.candidates(views), strict=True):
            answers += _answer(ids[n], found_here)
    return answers


def _answer(id: str, candidates: "Sequence[Candidate]") -> list[Answers]:
    """What the candidates say of a view of the image with this id; nothing where there is no wrong answer."""
    right = [(one.score, one.consistency) for one in candidates if one.id == id]
    wrong = [(one.score, one.consistency) for one in candidates if one.id != id]
    if not wrong:
        return []
    best = (max(score for score, _ in wrong), max(consistency for _, consistency in wrong))
    score, consistency = right[0] if right else (min(score for score, _ in wrong), 0.0)  # it was not among them
    return [((score, best[0]), (consistency, best[1]))]
