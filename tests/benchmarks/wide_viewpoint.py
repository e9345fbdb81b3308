"""Pairs of photos from extreme viewpoints: how many are found to be matches, beside SIFT with RANSAC.

    python tests/benchmarks/wide_viewpoint.py DATA_FOLDER/evd

The folder holds photos of the same names in `1` and `2`, and for each the homography from the first to the second in
`h/NAME.txt`, in pixels. `2` is indexed into a folder that is thrown away afterwards, and every photo of `1` is searched
there. A pair is *verified* where its photo is a match; it is *in its place* where, besides, half of its inliers or more
lie within PLACE of the image's diagonal from where the homography has them. *false*: of as many pairs of photos of
different things, each with the next name's, those that are a match.

SIFT (Lowe, 2004; OpenCV, where it is installed) is run on the photos as they are, with the ratio test, one match for
each place and a homography by RANSAC (Fischler and Bolles, 1981). It verifies a pair with LEAST_INLIERS and more.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it also runs as a file

from indexer import Backbone
from indexer.images.decode import decode_file
from indexer.sync.options import SyncOptions
from retrieval.build import build_index
from retrieval.options import SearchOptions
from retrieval.search import Searcher

PLACE = 0.05  # of the diagonal: a patch of 224 px is .06 of it wide
LEAST_INLIERS = 15  # usual for SIFT with a homography
RATIO = 0.8  # of the distances to the nearest and the second nearest (Lowe, 2004)
RANSAC_PX = 5.0


@dataclass(frozen=True)
class ScenePair:
    """Two photos of one scene; `homography` (3, 3) carries pixels of the first to pixels of the second."""

    first: Path
    second: Path
    homography: np.ndarray


@dataclass(frozen=True)
class Verified:
    """What a method says of two photos.

    strength  probability of a match, or inliers
    error     median distance of the inliers from where the homography has them, as a share of the diagonal; nan of
              photos of different things, and without inliers
    """

    is_match: bool
    strength: float
    error: float


def read_pairs(folder: Path) -> list[ScenePair]:
    """The pairs of a folder by name; SystemExit in one line where there are none."""
    pairs = [
        ScenePair(folder / "1" / path.name, path, np.loadtxt(folder / "h" / f"{path.stem}.txt"))
        for path in sorted((folder / "2").iterdir())
    ]
    if len(pairs) < 2:
        raise SystemExit(f"{folder / '2'} holds {len(pairs)} photos; give a folder with `1`, `2` and `h`")
    return pairs


def placed(points: np.ndarray, homography: np.ndarray, size: tuple[int, int], size_to: tuple[int, int]) -> float:
    """The median error of matched points, see `Verified`.

    points         (M, 4) x, y in the first photo, x, y in the second, in fractions
    size, size_to  width and height of the photos in pixels
    """
    if not len(points):
        return float("nan")
    start = np.concatenate([points[:, :2] * size, np.ones((len(points), 1))], axis=1) @ homography.T  # (M, 3)
    missed = start[:, :2] / start[:, 2:] - points[:, 2:] * size_to
    return float(np.median(np.hypot(*missed.T)) / np.hypot(*size_to))


def size_of(path: Path) -> tuple[int, int]:
    decoded = decode_file(path, target_px=64)
    return decoded.width, decoded.height


def by_search(pairs: Sequence[ScenePair], backbone: Backbone, resolution: int) -> list[list[Verified]]:
    """Of each pair the right one and the false one, by searches of an index of the second photos."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        built = build_index(
            pairs[0].second.parent,
            Path(folder) / "index",
            options=SyncOptions(resolution=resolution),
            backbone=backbone,
        )
        assert built.calibration is not None, "there are photos enough to learn from"
        with Searcher.open(Path(folder) / "index") as searcher:
            searcher.use(backbone)
            for n, pair in enumerate(pairs):
                results = searcher.search(pair.first, SearchOptions(top=len(pairs), exact=True))
                evidence = {Path(one.path).name: one.evidence for one in results}
                of_pair = []
                for other in (pair, pairs[(n + 1) % len(pairs)]):
                    seen = evidence[other.second.name]
                    assert seen is not None and seen.probability is not None
                    error = float("nan")
                    if other is pair:
                        error = placed(seen.pairs[:, :4], pair.homography, size_of(pair.first), size_of(pair.second))
                    of_pair.append(Verified(seen.is_match, seen.probability, error))
                found.append(of_pair)
    return found


def by_sift(pairs: Sequence[ScenePair], cv2: Any, least: int) -> list[list[Verified]]:
    """The same by SIFT with RANSAC."""
    sift = cv2.SIFT_create()

    def features(path: Path) -> tuple[np.ndarray, np.ndarray]:
        keypoints, descriptors = sift.detectAndCompute(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), None)
        return np.array([one.pt for one in keypoints]), descriptors

    def verified(first: Path, second: Path, homography: np.ndarray | None) -> Verified:
        (at, of_first), (to, of_second) = features(first), features(second)
        nearest = cv2.BFMatcher().knnMatch(of_first, of_second, k=2)
        good = [one for one, other in nearest if one.distance < RATIO * other.distance]
        # one for each place: many that meet in one are consistent with a homography that shrinks everything
        good = list({one.trainIdx: one for one in sorted(good, key=lambda one: -one.distance)}.values())
        if len(good) < 4:
            return Verified(False, 0.0, float("nan"))
        start, end = at[[one.queryIdx for one in good]], to[[one.trainIdx for one in good]]
        cv2.setRNGSeed(0)
        _, mask = cv2.findHomography(start, end, cv2.RANSAC, RANSAC_PX)
        inliers = np.zeros(len(good), bool) if mask is None else mask.ravel().astype(bool)
        size, size_to = size_of(first), size_of(second)
        points = np.concatenate([start / size, end / size_to], axis=1)[inliers]
        error = float("nan") if homography is None else placed(points, homography, size, size_to)
        return Verified(int(inliers.sum()) >= least, float(inliers.sum()), error)

    return [
        [
            verified(pair.first, pair.second, pair.homography),
            verified(pair.first, pairs[(n + 1) % len(pairs)].second, None),
        ]
        for n, pair in enumerate(pairs)
    ]


def row(method: str, found: Sequence[Sequence[Verified]]) -> str:
    verified = sum(right.is_match for right, _ in found)
    in_place = sum(right.is_match and right.error < PLACE for right, _ in found)
    false = sum(wrong.is_match for _, wrong in found)
    above = sum(right.strength > max(wrong.strength for _, wrong in found) for right, _ in found)
    return f"| {method} | {len(found)} | {verified} | {in_place} | {false} | {above} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--backbone", default="auto")
    parser.add_argument("--resolutions", type=int, nargs="*", default=[224, 336, 448])
    parser.add_argument("--inliers", type=int, default=LEAST_INLIERS, help="with which SIFT verifies a pair")
    arguments = parser.parse_args()
    pairs, backbone = read_pairs(arguments.data), Backbone.load(arguments.backbone)
    print("| method | pairs | verified | in their place | false | stronger than every false one |")
    print("|---|---|---|---|---|---|")
    names = [pair.first.stem for pair in pairs]
    for resolution in arguments.resolutions:
        found = by_search(pairs, backbone, resolution)
        print(row(f"{backbone.name}, {resolution} px", found), flush=True)
        told = [f"{name} {right.strength:.2f}" for name, (right, _) in zip(names, found, strict=True)]
        print(", ".join(told), file=sys.stderr)
    try:
        import cv2
    except ImportError:
        print("SIFT was left out: OpenCV is not installed (pip install opencv-python-headless)", file=sys.stderr)
        return
    found = by_sift(pairs, cv2, arguments.inliers)
    print(row(f"SIFT and RANSAC, {arguments.inliers} inliers", found))
    told = [f"{name} {right.strength:.0f}" for name, (right, _) in zip(names, found, strict=True)]
    print(", ".join(told), file=sys.stderr)


if __name__ == "__main__":
    main()
