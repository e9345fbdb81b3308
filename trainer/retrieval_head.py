"""A descriptor for one's own photos, in minutes: statistics of photos and of their views, for a backbone to carry.

Nothing is learnt by gradients; with few photos that overfits. Two closed forms are taken from the frozen features: how
photos differ from each other, which the index uses as its prior, and how views of one photo differ among themselves,
which the index's whitening then plays down (linear discriminant analysis). A quarter of the photos is kept aside; if
these are not found better from their views than before, by more than chance, nothing is written.
"""

import math
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from indexer.atomic_file import make_folder
from indexer.backbone.backbone import Backbone
from indexer.backbone.cache import backbone_path
from indexer.backbone.checkpoint import load_checkpoint, save_checkpoint
from indexer.backbone.layouts import EXTRA_PREFIX
from indexer.backbone.tensor_file import read_tensors
from indexer.descriptor.whitening_fit import fit_whitening, prior_from
from indexer.errors import SeenitError
from indexer.messages import Say, say_to_stderr
from indexer.printable import pasted

from .data.sources import ImageSource, open_source
from .evaluate.probes import format_table
from .evaluate.views import (
    JUDGED_DIFFICULTY,
    LEAST_PHOTOS,
    NUM_VIEWS,
    PhotoViews,
    ViewScores,
    embed_views,
    view_ranks,
    view_retrieval,
)

HELD_OUT = 0.25  # share of the photos that the head is judged on
NUM_PHOTOS = 1000


@dataclass(frozen=True)
class HeadSummary:
    """What came of it. `backbone` is None where unseen photos did not gain, and then nothing was written."""

    before: ViewScores  # photos that the head has not seen, with the backbone's own prior
    after: ViewScores
    backbone: Path | None
    num_photos: int  # that the head was fitted on

    def table(self) -> str:
        rows = [
            [name, f"{100 * s.recall_at_1:.1f}", f"{s.mean_reciprocal_rank:.3f}", str(s.num_photos)]
            for name, s in (("before", self.before), ("after", self.after))
        ]
        return format_table(["unseen photos", "recall@1 %", "mean 1/rank", "photos"], rows)


def train_head(
    images: str | Path | list[str | Path],
    out: str | Path,
    *,
    from_backbone: str | Path = "auto",
    num_photos: int = NUM_PHOTOS,
    num_views: int = NUM_VIEWS,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
    say: Say = say_to_stderr,
) -> HeadSummary:
    """Fit a head on photos and write OUT/backbone.safetensors, the same network with the head inside.

    images    a folder, tar shards or a list of paths (see `sources.open_source`)
    num_photos  how many of them at most; 1,000 photos with 4 views are 5,000 forwards

    An index made with the new file uses the head. Raises SeenitError where there are too few photos to judge it by.
    """
    out = Path(out)
    source = open_source(images, exclude_dirs=[out])
    places = [source.places[index] for index in np.random.default_rng(seed).permutation(len(source))[:num_photos]]
    aside = max(LEAST_PHOTOS, round(HELD_OUT * len(places)))
    if len(places) < 2 * aside:
        raise SeenitError(
            f"{len(places)} photos are too few to fit a head and judge it; give {2 * LEAST_PHOTOS} or more"
        )
    make_folder(out, "choose another --out")  # not after minutes of embedding
    backbone = Backbone.load(from_backbone, say=say)
    embed = partial(
        embed_views, backbone, num_photos=num_photos, workers=workers, seed=seed, progress=progress, say=say
    )
    seen = embed(ImageSource(tuple(places[aside:])), num_views=num_views)
    unseen = embed(ImageSource(tuple(places[:aside])), difficulty=JUDGED_DIFFICULTY)

    head = head_from(seen)
    searched = [unseen.photos, seen.photos]  # an index has statistics of all photos that it searches
    fits = [fit_whitening(searched, unseen.config, prior) for prior in (backbone.prior, head)]
    before, after = (view_retrieval(unseen, whitening, seen.photos.parts) for whitening in fits)
    scores = f"mean 1/rank {before.mean_reciprocal_rank:.3f} before, {after.mean_reciprocal_rank:.3f} after"
    if not gains(*(view_ranks(unseen, whitening, seen.photos.parts) for whitening in fits)):
        say(f"unseen photos do not gain ({scores}): the backbone stays as it is; more photos may help")
        return HeadSummary(before, after, None, len(seen))
    path = out / "backbone.safetensors"
    save_head(path, backbone, head, f"{len(seen)} photos, {num_views} views of each")
    say(f"unseen photos gain ({scores}); use it by: seenit index FOLDER --backbone {pasted(path)}")
    return HeadSummary(before, after, path, len(seen))


def head_from(views: PhotoViews) -> dict[str, Tensor]:
    """The tensors that a backbone carries: the descriptor's prior of these photos, and `within`.

    within  (L, D, D) float16, covariance of the views of one photo about their mean, scaled to a mean variance of 1
    """
    return {**prior_from([views.photos], views.config), "within": within_photo(views.parts).half()}


# n photos, V views of each, L parts of D channels
def within_photo(parts: Tensor) -> Tensor:
    """How a photo's views differ: for each part, the mean over the photos of the covariance of a photo and its views.

    parts    (n, 1 + V, L, D)
    returns  (L, D, D) float64, trace D
    """
    residuals = (parts - parts.mean(1, keepdim=True)).double().flatten(0, 1)  # (n * (1 + V), L, D)
    covariance = torch.einsum("nld,nle->lde", residuals, residuals)
    trace = covariance.diagonal(dim1=1, dim2=2).sum(1).clamp_min(1e-12)  # (L,)
    return covariance * (parts.shape[-1] / trace)[:, None, None]


def gains(before: Tensor, after: Tensor) -> bool:
    """Whether the mean of 1/rank rises by more than two standard errors over the photos.  (n, V) ranks each"""
    gain = (1 / after.double() - 1 / before.double()).mean(1)  # (n,)
    return float(gain.mean()) > 2 * float(gain.std()) / math.sqrt(len(gain))


def save_head(path: Path, backbone: Backbone, head: dict[str, Tensor], origin: str) -> None:
    """Write the backbone's file again, in the number format that it has, with another head; `origin` goes into it."""
    source = Path(backbone.spec) if os.path.isabs(backbone.spec) else backbone_path(backbone.spec)
    checkpoint = load_checkpoint(source)
    save_checkpoint(
        path,
        checkpoint.state,
        checkpoint.architecture,
        name=f"{backbone.name}_head",
        preprocessing=checkpoint.preprocessing,
        provenance=checkpoint.provenance | {"head": origin, "head_for": backbone.hash},
        extra={EXTRA_PREFIX + name: tensor for name, tensor in head.items()},
        dtype=_number_format(source),
    )


def _number_format(path: Path) -> Literal["float32", "float16", "int8"]:
    _, tensors, _ = read_tensors(path)
    weights = {tensor.dtype for name, tensor in tensors.items() if not name.startswith(EXTRA_PREFIX)}
    if torch.int8 in weights:
        return "int8"
    return "float16" if weights <= {torch.float16} else "float32"
