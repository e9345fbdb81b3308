"""How honest match probabilities are, on photos with known answers, through the way a user takes: index, then search.

    python tests/benchmarks/match_probability.py DATA_FOLDER --work FOLDER
    python docs/draw_reliability.py FOLDER/answers.json docs/reliability.svg

DATA_FOLDER holds one folder for each set and `distractors`, each with a manifest.csv. FOLDER keeps each gallery's index
and the features of the queries, so that another calibration is judged in a minute or two: calibrations are learnt anew
each time. Every query is asked twice: of its gallery, and of the gallery without the right answers.

Columns: AUC of the first answer's probability with the thing in the gallery against without; matches (50 % and more)
among the first answers: precision, share of the queries with the thing in the gallery that have a right one, share of
the others that have one; expected calibration error (ECE) of first answers and of the first ten, by bins of equal mass
and of equal width.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it also runs as a file

from indexer import Backbone
from indexer.descriptor.features import CropFeatures
from indexer.images.metadata import content_id
from indexer.index.calibration import CALIBRATION_BLOB
from indexer.index.index import Index
from retrieval.calibrate import calibrate
from retrieval.evaluate.gallery_index import Gallery, open_gallery
from retrieval.evaluate.ground_truth import JudgedQuery, read_distractors, read_tasks
from retrieval.evaluate.reliability import calibration_error
from retrieval.options import SearchOptions
from retrieval.query.encoder import read_query
from retrieval.query.feature_cache import FeatureCache, FeatureKey, IdentifiedImage
from retrieval.search import Searcher

SETS = ("smvs_dvd_covers", "mcv_paintings", "smvs_landmarks", "paris", "grocery")
FITTED_ON = {"smvs_dvd_covers": 1, "mcv_paintings": 1, "smvs_landmarks": 2}  # of it every n-th query
TOP = 10  # answers that are listed
AT_ONCE = 16  # queries


@dataclass(frozen=True)
class JudgedAnswer:
    """An answer that a search listed.

    rank     from 1
    present  whether the query was asked of a gallery that has its thing
    """

    task: str
    query: str
    present: bool
    rank: int
    score: float
    probability: float
    right: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for indexes and features, which are kept")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--backbone", default="auto")
    parser.add_argument("--calibration", choices=("new", "kept"), default="new", help="kept: as the index has it")
    parser.add_argument("--fit", action="store_true", help="print the curve over scores that calibrate.py ships")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    backbone = Backbone.load(arguments.backbone)
    added = read_distractors(arguments.data / "distractors" / "manifest.csv")
    answers: list[JudgedAnswer] = []
    for name in arguments.sets:
        tasks = read_tasks(arguments.data / name / "manifest.csv", added)
        place = arguments.work / f"{backbone.name}-{name}"
        with open_gallery(tasks[0].gallery, place, backbone, None, False, _tell):
            pass  # it is made now
        if arguments.calibration == "new":
            with Index.open(place, write=True) as index:
                index.store.delete_blob(CALIBRATION_BLOB)
            calibrate(place)
        with open_gallery(tasks[0].gallery, place, backbone, None, False, _tell) as gallery:
            gallery.searcher._features = FeatureCache(max_bytes=8 << 30)
            features = arguments.work / f"{backbone.name}-{name}-queries.npz"
            restored = restore(gallery.searcher, features)
            for task in tasks:
                answers += judge(task.name, task.queries, gallery)
            if len(gallery.searcher._features._kept) > restored:
                keep(gallery.searcher, features)
    print(table(answers))
    if arguments.fit:
        print("slope {:.1f}, offset {:.1f}".format(*fit_curve(answers)))
    (arguments.work / "answers.json").write_text(json.dumps([asdict(one) for one in answers]))


def judge(task: str, queries: Sequence[JudgedQuery], gallery: Gallery) -> Iterator[JudgedAnswer]:
    """The answers to every query, with the right answers in the gallery where there are any, and without them."""
    searcher = gallery.searcher
    stored = {
        original: searcher.roots.path(record.files[0].key)
        for record in searcher.store.scroll()
        for original in gallery.paths[record.id]
    }
    for start in range(0, len(queries), AT_ONCE):
        group = queries[start : start + AT_ONCE]
        encoded = searcher.encode([_identified(query, searcher) for query in group])
        for present in (True, False):
            asked = [
                (one, replace(given, exclude_paths=tuple(stored[path] for path in left_out if path in stored)))
                for one, given in zip(group, encoded, strict=True)
                for left_out in [one.junk if present else one.junk | one.correct]
                if one.correct or not present
            ]
            found = searcher.search_batch([given for _, given in asked], SearchOptions(top=TOP))
            for (one, _), results in zip(asked, found, strict=True):
                for result in results:
                    assert result.evidence is not None and result.evidence.probability is not None
                    right = any(path in one.correct for path in gallery.paths[result.id])
                    probability = result.evidence.probability
                    yield JudgedAnswer(task, str(one.path), present, result.rank, result.score, probability, right)


def table(answers: Sequence[JudgedAnswer]) -> str:
    """Markdown, a row for each task and one for all."""
    lines = [
        "| set | AUC | precision | recall | false alarms | ECE first: mass | width | ECE listed: mass | width |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for task in (*dict.fromkeys(one.task for one in answers), None):
        lines.append(f"| {_row(task or 'all', [one for one in answers if task in (None, one.task)])} |")
    return "\n".join(lines)


def _row(name: str, answers: Sequence[JudgedAnswer]) -> str:
    first = [one for one in answers if one.rank == 1]
    present, absent = ([one for one in first if one.present == is_present] for is_present in (True, False))
    matches = [one for one in first if one.probability >= 0.5]
    values = [
        auc([one.probability for one in present], [one.probability for one in absent]),
        np.mean([one.right for one in matches]) if matches else float("nan"),
        np.mean([one.right and one.probability >= 0.5 for one in present]),
        np.mean([one.probability >= 0.5 for one in absent]),
    ]
    for some in (first, answers):
        probabilities, right = [one.probability for one in some], [one.right for one in some]
        values += [calibration_error(probabilities, right, "mass"), calibration_error(probabilities, right, "width")]
    return " | ".join([name, *(f"{value:.3f}" for value in values)])


def auc(above: Sequence[float], below: Sequence[float]) -> float:
    """How often a number of the first is above one of the second; half for equal ones."""
    ordered = np.sort(below)
    counts = np.searchsorted(ordered, above, "left") + np.searchsorted(ordered, above, "right")
    return float(counts.mean() / 2 / len(ordered))


def fit_curve(answers: Sequence[JudgedAnswer]) -> tuple[float, float]:
    """Slope and offset of the logistic curve of least cross-entropy over the first answers' scores (Platt, 1999).

    On the sets of FITTED_ON, each of the same weight.
    """
    scores, right, weights = [], [], []
    for task, step in FITTED_ON.items():
        fitted_on = set(sorted({one.query for one in answers if one.task == task})[::step])
        first = [one for one in answers if one.query in fitted_on and one.task == task and one.rank == 1]
        scores += [one.score for one in first]
        right += [float(one.right) for one in first]
        weights += [1 / len(first)] * len(first)
    x, y, w = np.stack([scores, np.ones(len(scores))], axis=1), np.array(right), np.array(weights)
    curve = np.zeros(2)
    for _ in range(30):  # Newton's method
        probability = 1 / (1 + np.exp(-x @ curve))
        curvature = (x * (w * probability * (1 - probability))[:, None]).T @ x
        curve -= np.linalg.solve(curvature, x.T @ (w * (probability - y)))
    return float(curve[0]), float(curve[1])


# ---- features of queries, kept on disk ----


def _identified(query: JudgedQuery, searcher: Searcher) -> IdentifiedImage:
    resolution = searcher.manifest.resolution
    return IdentifiedImage(
        content_id(query.path.read_bytes()), None, (1, 1), lambda: read_query(query.path, None, resolution)
    )


def restore(searcher: Searcher, path: Path) -> int:
    """Put the features of a file into the searcher's cache; how many images' crops these are."""
    if not path.exists():
        return 0
    with np.load(path, allow_pickle=False) as file:
        if str(file["whitening_id"]) != searcher.manifest.whitening_id or "with colours" not in file:
            return 0
        names = json.loads(str(file["names"]))
        for name, turned, count in names:
            crops = []
            for n in range(count):
                parts = (file[f"{name} {turned} {n} {part}"] for part in ("v", "t", "f", "s", "c"))
                vector, tokens, frame, shape, colours = parts
                rows, columns, turn = map(int, shape)
                grid = (rows, columns)
                crops.append(CropFeatures(vector, tokens.astype(np.float32), grid, frame, turn, colours=colours))
            key = FeatureKey(name, None, searcher.manifest.whitening_id, bool(turned))
            searcher._features.put(key, crops, (1, 1))
    return len(names)


def keep(searcher: Searcher, path: Path) -> None:
    arrays: dict[str, np.ndarray] = {
        "whitening_id": np.array(searcher.manifest.whitening_id),
        "with colours": np.array(True),
    }
    names = []
    for key, kept in searcher._features._kept.items():
        names.append((key.id, int(key.turned), len(kept.crops)))
        for n, crop in enumerate(kept.crops):
            where = f"{key.id} {int(key.turned)} {n}"
            arrays |= {f"{where} v": crop.vector, f"{where} t": crop.tokens.astype(np.float16)}
            arrays |= {f"{where} f": crop.frame, f"{where} s": np.array([*crop.grid, crop.turn])}
            assert crop.colours is not None, "the encoder knows the colours of every image"
            arrays |= {f"{where} c": crop.colours}
    arrays["names"] = np.array(json.dumps(names))
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
