"""Test sets with known answers: which images to index, what to ask, which answers are right and which do not count.

Three kinds are read: manifests (a CSV with one row an image), the ground truth of the revisited Oxford and Paris
(Radenovic et al., CVPR 2018), and the lists of ILIAS (Kordopatis-Zilos et al., CVPR 2025).

Junk is neither right nor wrong: it is taken out before ranks are counted. The query itself is junk where it is in the
gallery (leave-one-out).
"""

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from indexer.errors import SeenitError, first_line
from indexer.images.decode import is_image
from indexer.images.find import FoundFile, find_files

from .plain_pickle import read_plain_pickle

JUNK = "junk"  # the instance of an image that every query ignores
NONE = "none"  # the instance of an image that shows nothing in the gallery
COLUMNS = ("path", "role", "instance")
GALLERY_ROLES = ("gallery", "both", "distractor")
QUERY_ROLES = ("query", "both")
ICONIC = "iconic"  # catalogue images; a set that has them asks with them as well, as a task of its own

DEPTH = 200  # answers of a ranking that count
LARGE_DEPTH = 1000  # ILIAS's own cut-off; the revisited sets have up to some 300 answers that are right or junk
PROTOCOLS = {  # of the revisited sets: right answers, junk
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}


@dataclass(frozen=True)
class LabelledImage:
    """One row of a manifest. `instances` is what the image shows, () for `none`."""

    path: Path
    role: str
    instances: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class JudgedQuery:
    """An image to search with, the answers that are right, and those that do not count."""

    path: Path
    correct: frozenset[Path]
    junk: frozenset[Path]
    region: tuple[float, float, float, float] | None = None  # x, y, width, height in pixels: only this part is asked


@dataclass(frozen=True)
class Task:
    """A gallery to index and the queries to ask of it, each with a path of its own."""

    gallery: tuple[Path, ...]
    queries: tuple[JudgedQuery, ...]
    name: str = ""
    depth: int = DEPTH


def read_tasks(source: str | Path, distractors: Sequence[Path] = ()) -> tuple[Task, ...]:
    """The tasks of a test set; all over the same gallery, to which the distractors are added.

    source  a manifest or its folder                                     one task, a second one where it has `iconic`s
            `gnd_NAME.pkl` with the images in `jpg` beside it           three tasks: easy, medium, hard
            ILIAS's folder, with `image_ids` and `ilias_core` in it       one task
    Raises SeenitError for anything else, or where one of its images is not there.
    """
    source = Path(source)
    if source.is_dir() and (source / "image_ids").is_dir():
        tasks = _ilias(source)
    elif source.suffix == ".pkl":
        tasks = _revisited(source)
    elif source.suffix == ".csv" or (source / "manifest.csv").is_file():
        tasks = _of_manifest(source if source.suffix == ".csv" else source / "manifest.csv")
    else:
        raise SeenitError(
            f"{source} is no test set that is known here; give a manifest.csv, a gnd_*.pkl of the revisited Oxford or"
            " Paris, or the folder of ILIAS"
        )
    tasks = tuple(Task((*task.gallery, *distractors), task.queries, task.name, task.depth) for task in tasks)
    named = dict.fromkeys([*tasks[0].gallery, *(query.path for task in tasks for query in task.queries)])
    missing = [path for path in named if not path.is_file()]
    if missing:
        raise SeenitError(
            f"{len(missing)} of the {len(named)} images of {source} are not there, the first is {missing[0]};"
            " put them there"
        )
    return tasks


def read_distractors(source: str | Path) -> tuple[Path, ...]:
    """Images that answer nothing: those of a manifest that go into a gallery, or every image below a folder."""
    source = Path(source)
    if source.is_dir() and not (source / "manifest.csv").is_file():
        found = [Path(one.path) for one in find_files([source], follow_links=True) if isinstance(one, FoundFile)]
        return tuple(path for path in found if is_image(path))
    images = read_ground_truth_csv(source / "manifest.csv" if source.is_dir() else source)
    return tuple(image.path for image in images if image.role in GALLERY_ROLES)


# ---- manifests ----


def read_ground_truth_csv(path: str | Path) -> list[LabelledImage]:
    """The rows of a set's `manifest.csv`; images' paths are joined to the manifest's folder.

    Columns `path, role, instance, note`; several instances are separated by spaces.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
            if missing:
                raise SeenitError(f"{path} has no column {', '.join(missing)}; a manifest has {', '.join(COLUMNS)}")
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SeenitError(f"cannot read the manifest {path}: {error}; name a set's manifest.csv") from error
    images = []
    for line, row in enumerate(rows, start=2):
        if not all(row[name] for name in COLUMNS):
            raise SeenitError(f"{path} line {line} lacks one of {', '.join(COLUMNS)}; fill it in or remove the line")
        instances = () if row["instance"] == NONE else tuple(row["instance"].split())
        images.append(LabelledImage(path.parent / row["path"], row["role"], instances, row.get("note") or ""))
    return images


def make_task(
    images: Sequence[LabelledImage],
    distractors: Sequence[LabelledImage] = (),
    *,
    ask: Sequence[str] = QUERY_ROLES,
    name: str = "",
) -> Task:
    """The retrieval task of a set: each query with the gallery images that are right for it and those that are junk.

    Junk are: the query itself (role `both`), images of the instance `junk`, and neighbours (see `is_neighbour`).
    An image of the instance `junk` asks nothing.

    ask  the roles of the images that are queries
    """
    gallery = [image for image in (*images, *distractors) if image.role in GALLERY_ROLES]
    showing: dict[str, set[Path]] = {}
    for image in gallery:
        for instance in image.instances:
            showing.setdefault(instance, set()).add(image.path)
    always_junk = showing.pop(JUNK, set())
    queries = []
    for asked in images:
        if asked.role not in ask or JUNK in asked.instances:
            continue
        junk = always_junk | ({asked.path} if asked.role in GALLERY_ROLES else set())
        correct = {path for instance in asked.instances for path in showing.get(instance, ())} - junk
        for instance, paths in showing.items():
            if any(is_neighbour(instance, own) for own in asked.instances):
                junk |= paths - correct
        queries.append(JudgedQuery(asked.path, frozenset(correct), frozenset(junk)))
    return Task(tuple(image.path for image in gallery), tuple(queries), name)


def is_neighbour(a: str, b: str) -> bool:
    """Whether two instances may show the same corner: `landmarks/012` and `landmarks/014`, numbers within 2."""
    numbers = [re.fullmatch(r"landmarks/(\d+)", instance) for instance in (a, b)]
    if not (numbers[0] and numbers[1]):
        return False
    return abs(int(numbers[0][1]) - int(numbers[1][1])) <= 2


def _of_manifest(path: Path) -> tuple[Task, ...]:
    images, name = read_ground_truth_csv(path), path.resolve().parent.name
    tasks = [make_task(images, name=name)]
    if any(image.role == ICONIC for image in images):
        tasks.append(make_task(images, ask=(ICONIC,), name=f"{name} {ICONIC}"))
    tasks = [task for task in tasks if task.queries]
    if not tasks or not tasks[0].gallery:
        raise SeenitError(f"{path} has no queries, or nothing to find; give rows the roles gallery and query")
    return tuple(tasks)


# ---- revisited Oxford and Paris ----


def _revisited(path: Path) -> tuple[Task, ...]:
    """The three protocols of `gnd_roxford5k.pkl` or `gnd_rparis6k.pkl`; queries are cut to their box."""
    data = read_plain_pickle(path)
    try:
        gallery = [_named_image(path, name) for name in data["imlist"]]
        asked = [_named_image(path, name) for name in data["qimlist"]]
        answers = [
            {grade: frozenset(gallery[n] for n in _indices(known[grade])) for grade in ("easy", "hard", "junk")}
            for known in data["gnd"]
        ]
        regions = [_region(known["bbx"]) for known in data["gnd"]]
        if len({len(asked), len(set(asked)), len(answers)}) != 1 or not asked:
            raise ValueError(f"{len(asked)} queries with {len(answers)} answers")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise SeenitError(
            f"{path} is no ground truth of the revisited Oxford or Paris ({type(error).__name__} {first_line(error)});"
            " fetch gnd_roxford5k.pkl or gnd_rparis6k.pkl from its authors"
        ) from None
    tasks = []
    for protocol, (right, ignored) in PROTOCOLS.items():
        queries = [
            JudgedQuery(
                image,
                correct=frozenset(answer for grade in right for answer in known[grade]),
                junk=frozenset(answer for grade in ignored for answer in known[grade]),
                region=region,
            )
            for image, known, region in zip(asked, answers, regions, strict=True)
        ]
        name = f"{path.stem.removeprefix('gnd_')} {protocol}"
        tasks.append(Task(tuple(gallery), tuple(queries), name, LARGE_DEPTH))
    return tuple(tasks)


def _named_image(path: Path, name: Any) -> Path:
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w .-]*", name):
        raise ValueError("an image's name that is no file name")
    return path.parent / "jpg" / f"{name}.jpg"


def _indices(values: Any) -> list[int]:
    """Positions in the list of images, counted from 0."""
    indices = np.asarray(values).ravel()
    if len(indices) and (indices.dtype.kind not in "iu" or indices.min() < 0):
        raise ValueError("answers that are no positions")
    return [int(index) for index in indices]


def _region(corners: Any) -> tuple[float, float, float, float]:
    """x, y, width, height of a box given as left, top, right, bottom; whole pixels, as its authors crop."""
    left, top, right, bottom = (float(round(float(value))) for value in corners)
    if not (math.isfinite(left + top) and right - left >= 2 and bottom - top >= 2):
        raise ValueError("a box without content")
    return left, top, right - left, bottom - top


# ---- ILIAS ----


def _ilias(folder: Path) -> tuple[Task, ...]:
    """Queries and positives as `image_ids/image_query_ids.txt` and `positive_ids.txt` list them.

    A line is `OBJECT/query/NAME.jpg` or `OBJECT/pos/NAME.jpg` below `ilias_core`, and more after a comma that is not
    read here. A query's right answers are all positives of its object; the whole query image is asked.
    """
    core = folder / "ilias_core"
    gallery = _listed(folder / "image_ids" / "positive_ids.txt", core)
    showing: dict[str, set[Path]] = {}
    for path in gallery:
        showing.setdefault(path.relative_to(core).parts[0], set()).add(path)
    asked = _listed(folder / "image_ids" / "image_query_ids.txt", core)
    queries = [
        JudgedQuery(path, frozenset(showing.get(path.relative_to(core).parts[0], ())), frozenset())
        for path in dict.fromkeys(asked)
    ]
    return (Task(tuple(gallery), tuple(queries), folder.resolve().name, LARGE_DEPTH),)


def _listed(path: Path, core: Path) -> list[Path]:
    """The images below `core` that a list names, one a line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SeenitError(f"cannot read {path}: {first_line(error)}; ILIAS's lists are named so") from None
    names = [line.split(",")[0].strip() for line in lines if line.strip()]
    wrong = [name for name in names if name.startswith("/") or ".." in name.split("/") or "/" not in name]
    if wrong or not names:
        raise SeenitError(f"{path} is not one of ILIAS's lists: {wrong[0] if wrong else 'it is empty'}; fetch it again")
    return [core / name for name in names]
