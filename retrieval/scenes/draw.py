"""The folder of the demo: photos, queries and the manifest with the answers. It appears whole or not at all."""

import csv
import json
import os
import shutil
from pathlib import Path

from indexer.errors import SeenitError

from .photo import save_photo
from .plan import plan
from .shoot import shoot

DRAWING = 2  # raise it when the images change, so that older folders are told apart


def draw_scenes(folder: Path, *, instances: int = 24, views: int = 5, distractors: int = 30, seed: int = 0) -> Path:
    """Write `photos/*.jpg`, `queries/*.jpg` and `manifest.csv` under `folder`; returns the folder.

    instances    how many things; the last of each kind is a look-alike of the first (same layout, other colours)
    views        images of each thing, at least 2: one becomes its query, the others go to `photos`
    distractors  images in `photos` that show none of the things
    seed         another seed draws another set

    The manifest has one row an image: path, role (gallery, query, distractor), instance, note, and the thing's box
    x, y, w, h in pixels of the upright image (empty for distractors).

    The folder appears whole or not at all: an interrupted call is redone, a finished folder is left as it is. A folder
    that holds anything else is never written to; that is a SeenitError.
    """
    if instances < 1 or views < 2 or distractors < 0:
        raise SeenitError("cannot draw scenes: at least 1 instance, 2 views and 0 distractors are needed")
    asked = dict(drawing=DRAWING, instances=instances, views=views, distractors=distractors, seed=seed)
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if _drawn(folder) == asked:
            return folder
        raise SeenitError(f"{folder} holds something else than the scenes asked for; remove it or name another folder")

    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / "photos").mkdir(parents=True)
    (unfinished / "queries").mkdir()
    with open(unfinished / "manifest.csv", "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "role", "instance", "note", "x", "y", "w", "h"])
        for shot in plan(instances, views, distractors, seed):
            image, box = shoot(shot)
            save_photo(image, unfinished / shot.path, shot.seed)
            rows.writerow([shot.path, shot.role, shot.thing.name if box else "none", shot.note, *(box or [""] * 4)])
    (unfinished / "drawn.json").write_text(json.dumps(asked), encoding="utf-8")
    if folder.exists():
        folder.rmdir()  # empty, see above; Windows does not rename onto a folder
    os.replace(unfinished, folder)
    return folder


def _drawn(folder: Path) -> object:
    """What a finished folder says it holds, None where it is not one of ours."""
    try:
        return json.loads((folder / "drawn.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
