"""How well a backbone finds a photo again from other views of it: retrieval on anyone's photos, without labels.

Views are made as `data/views.py` says. The descriptor is the index's own: pooled by its config, with statistics fitted
on the photos that are searched.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from indexer.backbone.backbone import Backbone
from indexer.descriptor.config import DescriptorConfig
from indexer.descriptor.pooling import PooledFeatures, pool
from indexer.descriptor.whitening import Whitening
from indexer.descriptor.whitening_fit import fit_whitening
from indexer.errors import SeenitError
from indexer.images.jobs import Broken, Cut
from indexer.images.pool import DecodePool
from indexer.messages import Say, say_to_stderr
from indexer.progress_bar import progress_bar

from ..data.sources import ImageSource
from ..data.views import cut_views, view_job
from .probes import format_table

NUM_PHOTOS = 200
NUM_VIEWS = 4
LEAST_PHOTOS = 10  # below which a score says nothing
JUDGED_DIFFICULTY = 2.0  # of views that backbones or heads are compared by: the usual ones are found too easily


# n photos, V views of each, L parts of D channels (see indexer.descriptor.pooling)
@dataclass(frozen=True)
class PhotoViews:
    """What a backbone outputs for photos and for synthetic views of them, before any statistics.

    photos  of n, the photos themselves
    parts   (n, 1 + V, L, D) float32; [:, 0] are the photos, the rest their views
    """

    photos: PooledFeatures
    parts: Tensor
    config: DescriptorConfig

    def __len__(self) -> int:
        return len(self.parts)


@dataclass(frozen=True)
class ViewScores:
    """Each view asks for its photo among all photos."""

    recall_at_1: float  # [0, 1]
    mean_reciprocal_rank: float  # [0, 1]
    num_photos: int
    num_queries: int

    def table(self) -> str:
        cells = [f"{100 * self.recall_at_1:.1f}", f"{self.mean_reciprocal_rank:.3f}", str(self.num_photos)]
        return format_table(["recall@1 %", "mean 1/rank", "photos", "queries"], [[*cells, str(self.num_queries)]])


def embed_views(
    backbone: Backbone,
    source: ImageSource,
    *,
    num_photos: int = NUM_PHOTOS,
    num_views: int = NUM_VIEWS,
    difficulty: float = 1.0,
    descriptor_config: DescriptorConfig | None = None,
    resolution: int = 224,
    workers: int | None = None,
    seed: int = 0,
    progress: bool = False,
    say: Say = say_to_stderr,
) -> PhotoViews:
    """Draw photos from a source, make views of each, and send all through the frozen backbone once.

    difficulty  in [0, 2], how far views stray from their photo
    The same seed draws the same photos and views, whatever the backbone. SeenitError if fewer than LEAST_PHOTOS remain.
    """
    descriptor_config = descriptor_config or DescriptorConfig()
    layers = descriptor_config.layers_of(backbone.depth)
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(source))[:num_photos].tolist()
    others = rng.integers(len(source), size=len(chosen)).tolist()
    jobs = [
        view_job(str(number), source.places[index], source.places[other], (seed, index), num_views, difficulty)
        for number, (index, other) in enumerate(zip(chosen, others, strict=True))
    ]
    pooled: dict[int, PooledFeatures] = {}
    with (
        DecodePool(workers, resolution=resolution, patch_size=backbone.patch_size, work=cut_views) as decoders,
        progress_bar(len(jobs), "cutting views", "photos", progress) as bar,
    ):
        for outcome in decoders.run(jobs):
            bar.update(1)
            number = int(outcome.path)
            if isinstance(outcome, Cut):
                pooled[number] = pool(backbone.intermediate(outcome.pixels, layers), descriptor_config, backbone.depth)
            else:
                reason = outcome.reason if isinstance(outcome, Broken) else "its decoder crashed or took too long"
                say(f"left out {source.places[chosen[number]].name}: {reason}")
    if len(pooled) < LEAST_PHOTOS:
        raise SeenitError(f"{len(pooled)} photos can be read, at least {LEAST_PHOTOS} are needed; give more")
    return PhotoViews(_first_rows(pooled), torch.stack([pooled[n].parts for n in sorted(pooled)]), descriptor_config)


def view_retrieval(
    views: PhotoViews, whitening: Whitening | None = None, distractors: Tensor | None = None
) -> ViewScores:
    """Retrieve each view's photo among all photos, by cosine.

    whitening  how to describe them; None: the statistics of these photos alone
    distractors  (m, L, D) parts of further photos to search among
    """
    ranks = view_ranks(views, whitening or fit_whitening([views.photos], views.config), distractors).double()
    return ViewScores(
        recall_at_1=float((ranks == 1).double().mean()),
        mean_reciprocal_rank=float((1 / ranks).mean()),
        num_photos=len(views),
        num_queries=ranks.numel(),
    )


def view_ranks(views: PhotoViews, whitening: Whitening, distractors: Tensor | None = None) -> Tensor:
    """The rank of each view's photo, from 1; an equal score counts as a better one, so that collapse fails.  (n, V)"""
    vectors = _vectors(views.parts, whitening)  # (n, 1 + V, G)
    gallery = vectors[:, 0] if distractors is None else torch.cat([vectors[:, 0], _vectors(distractors, whitening)])
    ranks = []
    for index, queries in enumerate(vectors[:, 1:]):
        cosines = queries @ gallery.T  # (V, n + m)
        ranks.append((cosines >= cosines[:, index, None]).sum(1))
    return torch.stack(ranks)


def _vectors(parts: Tensor, whitening: Whitening) -> Tensor:
    """(..., L, D) -> (..., G)"""
    return normalize((parts.flatten(-2) - whitening.mean) @ whitening.projection, dim=-1)


def _first_rows(pooled: dict[int, PooledFeatures]) -> PooledFeatures:
    """The photos themselves, out of the pooled batches of photo and views."""
    kept = [pooled[number] for number in sorted(pooled)]
    fewest = min(one.tokens.shape[1] for one in kept)  # a tiny image has fewer patches
    return PooledFeatures(
        torch.cat([one.parts[:1] for one in kept]),
        torch.cat([one.tokens[:1, :fewest] for one in kept]),
        torch.cat([one.positions[:1, :fewest] for one in kept]),
    )
