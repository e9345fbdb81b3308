"""Whether training helped: photos that it did not see, scored by the backbone before and after.

Two questions are asked of the same images each time. Is a photo found again among others from a synthetic view of it
(another perspective, other light), by the descriptor that an index would make? And, where the photos lie in one folder
a class, do the nearest neighbours of its CLS tell its class?
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import PurePath

import numpy as np
import torch
from torch import Tensor

from indexer.backbone.backbone import Backbone
from indexer.descriptor.config import DescriptorConfig
from indexer.descriptor.pooling import PooledFeatures, pool
from indexer.descriptor.whitening_fit import fit_whitening
from indexer.images.jobs import Cut, Job, Outcome, Settings
from indexer.images.pool import DecodePool

from ..data.sources import ImageSource
from ..data.views import cut_views, view_job
from ..evaluate.labelled import LabelledFeatures
from ..evaluate.probes import knn
from ..evaluate.views import JUDGED_DIFFICULTY, PhotoViews, view_ranks

HELD_SHARE = 0.1  # of the images
MOST_HELD, FEWEST_HELD = 100, 8
MOST_OTHERS = 200  # images that were trained on and make the search harder
VIEWS = 2  # of each held photo
NEIGHBOURS = 10
BOOTSTRAPS = 2000  # draws; the bounds then vary by about 1 % of the interval
CHUNK = 16  # images that are embedded together


@dataclass(frozen=True)
class TrialScores:
    """What one backbone reached."""

    reciprocal_ranks: Tensor  # of the right photo for each view
    knn: float | None  # accuracy in [0, 1]; None where there are no classes
    num_held: int

    @property
    def retrieval(self) -> float:
        """Mean reciprocal rank, in (0, 1]."""
        return float(self.reciprocal_ranks.mean())

    def line(self) -> str:
        classes = "" if self.knn is None else f", {NEIGHBOURS}-NN accuracy {self.knn:.3f}"
        return f"retrieval {self.retrieval:.3f} (mean reciprocal rank){classes}"


# n photos held out, V views of each, m others, S side in pixels, D channels, L parts of a descriptor
@dataclass(frozen=True)
class HeldOutTrial:
    """Decoded images with their questions."""

    held: np.ndarray  # (n, 1 + V, S, S, 3) uint8, each photo and behind it its synthetic views
    others: np.ndarray  # (m, S, S, 3) uint8
    held_labels: tuple[str, ...]
    other_labels: tuple[str, ...]

    def score(self, backbone: Backbone) -> TrialScores:
        """Statistics are those of the photos searched, without a prior: the trained backbone has none of its own."""
        num_held, num_views = self.held.shape[:2]
        seen, cls = _embed(backbone, np.concatenate([self.held.reshape(-1, *self.held.shape[2:]), self.others]))
        border = num_held * num_views
        views = seen.parts[:border].unflatten(0, (num_held, num_views))  # (n, 1 + V, L, D)
        photos = [*range(0, border, num_views), *range(border, len(cls))]  # (n + m,), those without the views
        searched = PooledFeatures(seen.parts[photos], seen.tokens[photos], seen.positions[photos])
        descriptor_config = DescriptorConfig()
        ranks = view_ranks(
            PhotoViews(searched, views, descriptor_config),
            fit_whitening([searched], descriptor_config),
            seen.parts[border:],
        )
        gallery = cls[photos] - cls[photos].mean(0)  # the mean says nothing, and in some backbones is most of a CLS
        return TrialScores(1 / ranks.flatten().float(), self._knn(gallery[:num_held], gallery[num_held:]), num_held)

    def _knn(self, held: Tensor, others: Tensor) -> float | None:
        classes = tuple(sorted(set(self.other_labels)))
        known = [n for n, label in enumerate(self.held_labels) if label in classes]
        if len(classes) < 2 or len(classes) > len(others) // 3 or not known:
            return None
        train = _labelled(others, self.other_labels, classes)
        val = _labelled(held[known], [self.held_labels[n] for n in known], classes)
        return knn(train, val, neighbours=[min(NEIGHBOURS, len(others))]).best


def split_source(source: ImageSource, batch_size: int, seed: int) -> tuple[ImageSource, ImageSource]:
    """Images to train on, and images held out for the trial.

    Where there are too few to spare any, all are in both.
    """
    count = min(MOST_HELD, max(FEWEST_HELD, round(HELD_SHARE * len(source))))
    if len(source) - count < max(batch_size, FEWEST_HELD):
        return source, source
    order = np.random.default_rng([seed, len(source)]).permutation(len(source))
    held, rest = sorted(order[:count].tolist()), sorted(order[count:].tolist())
    return _pick(source, rest), _pick(source, held)


def prepare_trial(
    train: ImageSource, held: ImageSource, *, size_px: int, patch_size: int, workers: int, seed: int
) -> HeldOutTrial | None:
    """Decode the images and make the views; None where no two of them can be read."""
    held = _pick(held, range(min(len(held), MOST_HELD)))
    step = max(1, len(train) // MOST_OTHERS)
    seen = set(held.places)
    others = ImageSource(tuple(place for place in train.places[::step] if place not in seen)[:MOST_OTHERS])
    jobs = [
        view_job(f"held {n}", place, held.places[n - 1], (seed, n), VIEWS, JUDGED_DIFFICULTY)
        for n, place in enumerate(held.places)
    ] + [view_job(f"other {n}", place, place, (seed, n), 0) for n, place in enumerate(others.places)]
    settings = Settings(size_px, patch_size, "squash")
    pixels = {o.path: o.pixels for o in _cut(jobs, settings, workers) if isinstance(o, Cut)}
    found = [n for n in range(len(held)) if f"held {n}" in pixels]
    beside = [n for n in range(len(others)) if f"other {n}" in pixels]
    if len(found) + len(beside) < 2 or not found:
        return None
    stacks = np.stack([pixels[f"held {n}"] for n in found])  # (n, 1 + V, S, S, 3)
    empty = np.empty((0, *stacks.shape[2:]), np.uint8)
    return HeldOutTrial(
        held=stacks,
        others=np.concatenate([empty, *(pixels[f"other {n}"] for n in beside)]),
        held_labels=tuple(_folder_of(held, n) for n in found),
        other_labels=tuple(_folder_of(others, n) for n in beside),
    )


def got_worse(before: TrialScores, after: TrialScores) -> bool:
    """Whether the photos are found less well, or their classes told less well, by more than chance."""
    if retrieval_change(before, after)[1] < 0:
        return True
    if before.knn is None or after.knn is None:
        return False
    noise = math.sqrt(before.knn * (1 - before.knn) / before.num_held)  # one standard error
    return after.knn < before.knn - noise


def retrieval_change(before: TrialScores, after: TrialScores) -> tuple[float, float]:
    """The 95 % interval of the change of the mean reciprocal rank: a paired bootstrap over the photos.

    Views of one photo are no independent queries, so photos are drawn, each with all of its views.
    """
    change = (after.reciprocal_ranks - before.reciprocal_ranks).double()
    photos = min(before.num_held, len(change))
    by_photo = change.reshape(photos, -1).mean(1).numpy()  # (n,)
    drawn = np.random.default_rng(0).integers(photos, size=(BOOTSTRAPS, photos))
    low, high = np.quantile(by_photo[drawn].mean(1), [0.025, 0.975])
    return float(low), float(high)


def _cut(jobs: list[Job], settings: Settings, workers: int) -> Iterable[Outcome]:
    if not workers:
        return [cut_views(job, settings) for job in jobs]
    with DecodePool(
        workers, resolution=settings.resolution, patch_size=settings.patch_size, mode=settings.mode, work=cut_views
    ) as decoders:
        return list(decoders.run(jobs))


def _embed(backbone: Backbone, pixels: np.ndarray) -> tuple[PooledFeatures, Tensor]:
    """What the index keeps of (B, S, S, 3) uint8 before its statistics, and the deepest CLS that it reads, (B, D)."""
    descriptor_config = DescriptorConfig()
    layers = descriptor_config.layers_of(backbone.depth)
    pooled, cls = [], []
    for at in range(0, len(pixels), CHUNK):
        features = backbone.intermediate(pixels[at : at + CHUNK], layers)
        pooled.append(pool(features, descriptor_config, backbone.depth))
        cls.append(features[-1].cls.cpu())
    whole = PooledFeatures(
        torch.cat([one.parts for one in pooled]),
        torch.cat([one.tokens for one in pooled]),
        torch.cat([one.positions for one in pooled]),
    )
    return whole, torch.cat(cls)


def _labelled(vectors: Tensor, labels: Iterable[str], classes: tuple[str, ...]) -> LabelledFeatures:
    numbers = torch.tensor([classes.index(label) for label in labels])
    return LabelledFeatures(vectors[:, None], vectors, numbers, classes)


def _pick(source: ImageSource, indices: Iterable[int]) -> ImageSource:
    return replace(source, places=tuple(source.places[n] for n in indices))


def _folder_of(source: ImageSource, index: int) -> str:
    """The name of the folder that an image lies in, in its tar file where it is in one."""
    place = source.places[index]
    return str(PurePath(place.member or place.path).parent)
