"""The revisited Oxford and Paris as DINOv2's paper scores a backbone on them (table 9): by the cosine of CLS.

It is the last block's CLS. Nothing of seenit's own search takes part, so that the numbers can be held against published
ones. The whole ranking counts. The paper does not say at which size images are seen; here every image, and the box of
every query, is seen at about `resolution` x `resolution` pixels in its own shape.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from indexer.backbone.backbone import Backbone
from indexer.errors import ImageError, SeenitError
from indexer.images.batches import of_one_shape
from indexer.images.jobs import Decoded, Job
from indexer.images.pool import DecodePool
from indexer.images.preprocess import preprocess
from indexer.messages import Say, say_nothing
from indexer.progress_bar import progress_bar

from ..query.encoder import read_query
from ..query.query import Region
from .evaluate import RetrievalScores
from .ground_truth import Task, read_distractors, read_tasks
from .metrics import RankedAnswer, evaluate_ranking, match_quality

Benchmark = Literal["roxford5k", "rparis6k"]
PROTOCOLS = ("medium", "hard")  # those that are published
RESOLUTION = 224
BATCH_PIXELS = 32 * 224 * 224  # of the images that go through the network together
VARIANT = "CLS cosine"


def evaluate_benchmark(
    name: Benchmark,
    folder: str | Path,
    *,
    distractors: str | Path | None = None,
    backbone: Backbone | str | Path = "auto",
    resolution: int = RESOLUTION,
    workers: int | None = None,
    progress: bool = False,
    say: Say = say_nothing,
) -> tuple[RetrievalScores, ...]:
    """Scores of the medium and of the hard protocol.

    folder       holds gnd_NAME.pkl and the images in jpg, or a folder NAME with both, as their authors publish them
    distractors  a manifest or a folder of images to be added to the gallery
    resolution   pixels, see above
    progress     tell how far it is on stderr

    An image of the gallery that cannot be read is never found, a query is left out; both are reported. Raises
    SeenitError in one line for everything else.
    """
    added = read_distractors(distractors) if distractors is not None else ()
    tasks = [task for task in read_tasks(ground_truth_of(name, folder), added) if task.name.split()[-1] in PROTOCOLS]
    loaded = backbone if isinstance(backbone, Backbone) else Backbone.load(backbone, say=say)
    gallery, vectors = _embed_gallery(loaded, tasks[0].gallery, resolution, workers, progress, say)
    regions = {query.path: query.region for query in tasks[0].queries}
    rankings = _rank(gallery, vectors, _embed_queries(loaded, regions, resolution, say))
    return tuple(_scores(task, rankings, loaded, resolution) for task in tasks)


def ground_truth_of(name: Benchmark, folder: str | Path) -> Path:
    """The file of answers in a benchmark's folder; SeenitError where there is none."""
    folder = Path(folder)
    for place in (folder, folder / name):
        if (place / f"gnd_{name}.pkl").is_file():
            return place / f"gnd_{name}.pkl"
    raise SeenitError(
        f"{folder} has no gnd_{name}.pkl, nor has a folder {name} in it; put that file there, and its images beside it"
        " in jpg"
    )


# n images of the gallery, q queries, D channels
def _embed_gallery(
    backbone: Backbone, images: Sequence[Path], resolution: int, workers: int | None, progress: bool, say: Say
) -> tuple[list[Path], Tensor]:
    """The images that can be read, and their unit vectors (n, D)."""
    paths: list[Path] = []
    vectors: list[Tensor] = []

    def decoded() -> Iterator[Decoded]:
        for outcome in pool.run(Job(str(path)) for path in dict.fromkeys(images)):
            bar.update(1)
            if isinstance(outcome, Decoded):
                yield outcome
            else:
                reason = getattr(outcome, "reason", type(outcome).__name__.lower())
                say(f"{outcome.path} cannot be read and counts as never found: {reason}")

    with (
        DecodePool(workers, resolution=resolution, patch_size=backbone.patch_size) as pool,
        progress_bar(len(images), "embedding", "images", progress) as bar,
    ):
        for batch in of_one_shape(decoded(), max(1, round(BATCH_PIXELS / resolution**2))):
            paths.extend(Path(image.path) for image in batch)
            vectors.append(_unit_cls(backbone, np.stack([image.pixels for image in batch])))
    if not paths:
        raise SeenitError(f"none of the {len(images)} images of the gallery can be read; give images that can")
    return paths, torch.cat(vectors)


def _embed_queries(
    backbone: Backbone, regions: dict[Path, Region | None], resolution: int, say: Say
) -> dict[Path, Tensor]:
    """The unit vector (D,) of each query's box."""
    vectors = {}
    for path, region in regions.items():
        try:
            seen = read_query(path, region, resolution)
        except ImageError as error:
            say(f"left out a query: {error}")
            continue
        pixels = preprocess(seen.pixels, "aspect", resolution, backbone.patch_size)
        vectors[path] = _unit_cls(backbone, pixels[None])[0]
    if not vectors:
        raise SeenitError(f"none of the {len(regions)} queries can be read; give images that can")
    return vectors


def _unit_cls(backbone: Backbone, pixels: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, D) float32, of the last block after the final norm"""
    (features,) = backbone.intermediate(pixels, [backbone.depth - 1])
    return normalize(features.cls, dim=-1).cpu()


def _rank(gallery: list[Path], vectors: Tensor, queries: dict[Path, Tensor]) -> dict[Path, list[RankedAnswer]]:
    rankings = {}
    for path, query in queries.items():
        cosines, order = (vectors @ query).sort(descending=True, stable=True)  # (n,)
        places = zip(order.tolist(), cosines.tolist(), strict=True)
        rankings[path] = [RankedAnswer(gallery[n], cosine) for n, cosine in places]
    return rankings


def _scores(
    task: Task, rankings: dict[Path, list[RankedAnswer]], backbone: Backbone, resolution: int
) -> RetrievalScores:
    queries = [query for query in task.queries if query.path in rankings]
    places = {path: [answer.path for answer in answers] for path, answers in rankings.items()}
    return RetrievalScores(
        task=task.name,
        variant=VARIANT,
        backbone=backbone.name,
        resolution=resolution,
        num_gallery=len(task.gallery),
        quality=evaluate_ranking(places, queries),
        matches=match_quality(rankings, queries),
    )
