"""Recall and mean average precision on photos with known answers, through the way a user takes: index, then search.

    python tests/benchmarks/retrieval_quality.py DATA_FOLDER

DATA_FOLDER holds one folder for each set and `distractors`, each with a manifest.csv. For every set its gallery and the
distractors are indexed into a folder that is thrown away afterwards, and every query is searched there.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it also runs as a file

from indexer import Backbone, sync_folder
from retrieval import Searcher
from retrieval.evaluate import Quality, Task, evaluate_ranking, make_task, read_manifest

SETS = ("smvs_landmarks", "smvs_dvd_covers", "mcv_paintings")
TOP = 200  # answers asked for; a correct one further down counts as never found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--backbone", default="auto")
    parser.add_argument("--resolution", type=int, default=224)
    arguments = parser.parse_args()
    backbone = Backbone.load(arguments.backbone)
    distractors = read_manifest(arguments.data / "distractors" / "manifest.csv")
    print(f"{backbone.name}, {arguments.resolution} px, {len(distractors)} distractors")
    print("| set | queries | gallery | rerank | recall@1 | recall@10 | mAP |\n|---|---|---|---|---|---|---|")
    for name in arguments.sets:
        task = make_task(read_manifest(arguments.data / name / "manifest.csv"), distractors)
        for reranked, quality in search_all(task, backbone, arguments.resolution).items():
            print(
                f"| {name} | {quality.num_queries} | {len(task.gallery)} | {'yes' if reranked else 'no'} |"
                f" {quality.recall[1]:.2f} | {quality.recall[10]:.2f} | {quality.mean_average_precision:.3f} |",
                flush=True,
            )


def search_all(task: Task, backbone: Backbone, resolution: int) -> dict[bool, Quality]:
    """Index the gallery's pictures, search all queries; the quality without and with reranking."""
    with tempfile.TemporaryDirectory(prefix="seenit-quality-") as scratch:
        photos, index = Path(scratch).resolve() / "photos", Path(scratch).resolve() / "index"
        photos.mkdir()
        original = {}  # copy -> the gallery's path
        for number, path in enumerate(task.gallery):
            copy = photos / f"{number:06}{path.suffix}"
            shutil.copyfile(path, copy)
            original[str(copy)] = path
        sync_folder(photos, index, backbone=backbone, resolution=resolution)
        qualities = {}
        asked = [query.path for query in task.queries]
        with Searcher.open(index) as searcher:
            for reranked in (False, True):
                answers = searcher.search_batch(asked, TOP, rerank=reranked, exact=True, include_self=True)
                rankings = {
                    path: [original[copy] for result in results for copy in (result.path, *result.copies)]
                    for path, results in zip(asked, answers, strict=True)
                }
                qualities[reranked] = evaluate_ranking(rankings, task.queries)
    return qualities


if __name__ == "__main__":
    main()
