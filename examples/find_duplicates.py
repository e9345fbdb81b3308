"""List the copies among the photos of a folder: resized, recompressed, cropped, mirrored, turned. Nothing is changed.

python examples/find_duplicates.py PHOTOS
"""

import sys
from pathlib import Path

from retrieval import build_index
from retrieval.duplicates import DuplicateOptions, find_duplicates


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    photos = Path(sys.argv[1])
    build_index(photos)
    found = find_duplicates(photos / ".seenit", DuplicateOptions(level="near", keep="resolution"))
    for group in found.groups:
        print(f"keep {group.file.path}")
        for member in group.members:
            stays = f" (stays: {member.stays})" if member.stays else ""
            for file in member.files:
                print(f"     {file.path}: {member.level}, {member.how}{stays}")
    print(f"{len(found.groups)} groups among {found.images} images")


if __name__ == "__main__":
    main()
