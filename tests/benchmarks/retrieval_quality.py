"""Retrieval on photos with known answers, through the way a user takes: index, then search; every variant side by side.

    python tests/benchmarks/retrieval_quality.py DATA_FOLDER

DATA_FOLDER holds one folder for each set and `distractors`, each with a manifest.csv. For every set its gallery and the
distractors are indexed into a folder that is thrown away afterwards, and every query is searched there. The same as
`seenit evaluate retrieval`, for all sets at once.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it also runs as a file

from indexer import Backbone
from retrieval.evaluate.evaluate import RetrievalScores, evaluate_retrieval, scores_table

SETS = ("smvs_landmarks", "smvs_dvd_covers", "mcv_paintings", "paris", "grocery")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--backbone", default="auto")
    parser.add_argument("--precision", default="auto", help="auto, int8, bfloat16 or float32")
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--json", type=Path, help="write the scores here as well")
    arguments = parser.parse_args()
    backbone = Backbone.load(arguments.backbone, dtype=arguments.precision)
    distractors = arguments.data / "distractors" / "manifest.csv"
    print(f"{backbone.name} in {backbone.precision}, {arguments.resolution} px, distractors of {distractors}")
    scores: list[RetrievalScores] = []
    for name in arguments.sets:
        started = time.monotonic()
        of_set = evaluate_retrieval(
            arguments.data / name / "manifest.csv",
            distractors=distractors,
            backbone=backbone,
            resolution=arguments.resolution,
            say=lambda line: print(line, file=sys.stderr),
        )
        print(f"{scores_table(of_set)}\n{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
        scores += of_set
    print(scores_table(scores))
    if arguments.json:
        arguments.json.write_text(json.dumps([one.as_json() for one in scores], indent=1))


if __name__ == "__main__":
    main()
