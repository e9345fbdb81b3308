"""Train a small backbone on photos, index the photos with it, and search with the first of them.

    python examples/train_and_use.py PHOTOS OUT [KEY=VALUE ...]

The network is `tiny` and random at the start, and 20 steps teach it little: this shows the way, not what training is
worth. Further arguments change the configuration, such as steps=1000. For photos of your own, start from a trained
backbone instead: seenit train PHOTOS --preset adapt --from auto --out OUT
"""

import sys
from pathlib import Path

from retrieval import Searcher, build_index
from retrieval.options import SearchOptions
from trainer.config import make_config
from trainer.train import train


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    photos, out = Path(sys.argv[1]), Path(sys.argv[2])
    config = make_config("tiny", changes=sys.argv[3:])
    trained = train(photos, out, config, progress=sys.stderr.isatty())
    print(f"{trained.steps} steps, loss {trained.loss:.2f}: {trained.backbone}")

    index = out / "index"
    built = build_index(photos, index, backbone=trained.backbone)
    print(f"{built.summary.images} images in {index}")
    with Searcher.open(index) as searcher:
        query = next(path for path in sorted(photos.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        for result in searcher.search(query, SearchOptions(top=3, include_self=True)):
            print(f"{result.rank}. {result.score:.3f} {result.path}")


if __name__ == "__main__":
    main()
