"""Index a folder of photos and search it with an image.

python examples/search_folder.py PHOTOS QUERY
"""

import sys
from pathlib import Path

from retrieval import Searcher, build_index
from retrieval.options import SearchOptions


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    photos, query = Path(sys.argv[1]), Path(sys.argv[2])
    built = build_index(photos)  # the second time only what has changed is read
    print(f"{built.summary.images} images in {built.summary.index}")
    with Searcher.open(photos / ".seenit") as searcher:
        for result in searcher.search(query, SearchOptions(top=5)):
            why = result.evidence.in_words if result.evidence else "patches were not compared"
            print(f"{result.rank}. {result.score:.3f} {result.path} ({why})")


if __name__ == "__main__":
    main()
