"""How far a student's features of a view are from a teacher's of the photo, in the terms of the descriptor."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from indexer.backbone.vit import TokenFeatures
from indexer.descriptor.config import DescriptorConfig
from indexer.descriptor.pooling import parts_of, token_features

RAW_WEIGHT, PARTS_WEIGHT = 2.0, 0.5  # of the losses beside that of whitened patches; not tuned
MOST_DIFFICULT = 0.8  # a view that strays further shows too little of the crop for its global vector; not tuned
INSET = 0.25  # of a patch: no nearer to the crop's edge than this are places compared; not tuned


# B images of S pixels a side, g x g = N patches of each, D channels, L parts of a descriptor, T token dimensions
@dataclass(frozen=True)
class FeatureSpace:
    """What the descriptor makes of features, with the statistics of the teacher's.

    token_mean        (D,)
    token_projection  (D, T)
    part_means        (L, D)
    """

    config: DescriptorConfig
    depth: int
    token_mean: Tensor
    token_projection: Tensor
    part_means: Tensor

    def tokens(self, patches: Tensor) -> Tensor:
        """Patches as they are matched, but for their length.  (B, N, D) -> (B, N, T)"""
        return (patches - self.token_mean) @ self.token_projection


def view_loss(
    teacher: Sequence[TokenFeatures],
    student: Sequence[TokenFeatures],
    places: Tensor,
    difficulties: Tensor,
    space: FeatureSpace,
) -> Tensor:
    """How far the student's views are from the teacher's crops; at least 0.

    teacher, student  of the blocks that the descriptor reads, `DescriptorConfig.layers_of`
    places            (B, g, g, 2)  where in the crop the patches of a view lie, see `relit_views.seen_places`
    difficulties      (B,)          how far each view strays
    returns           ()

    Over all patches p of views that show a place q of their crop, with s the student's patches, t the teacher's,
    interpolated at q, and w the map to the space that patches are matched in:

        mean_p (1 - cos(w(s[p]), w(t[q])))  +  RAW_WEIGHT * mean_p (1 - cos(s[p], t[q]))

    and over the views that stray little PARTS_WEIGHT times 1 - cosine of the centred parts of the global vector.
    """
    theirs, own = (token_features(one, space.config, space.depth) for one in (teacher, student))
    targets = _sampled(theirs, places)  # (B, N, D)
    inside = (places.abs().amax(-1) < 1 - 2 * INSET / theirs.grid[0]).flatten(1)  # (B, N)
    whitened = 1 - F.cosine_similarity(space.tokens(own.patches), space.tokens(targets), dim=-1)  # (B, N)
    raw = 1 - F.cosine_similarity(own.patches, targets, dim=-1)
    views, crops = (parts_of(one, space.config, space.depth) for one in (student, teacher))  # (B, L, D)
    apart = 1 - F.cosine_similarity(views - space.part_means, crops - space.part_means, dim=-1).mean(1)  # (B,)
    near = difficulties < MOST_DIFFICULT
    return _mean_where(whitened + RAW_WEIGHT * raw, inside) + PARTS_WEIGHT * _mean_where(apart, near)


def _mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    return (values * chosen).sum() / chosen.sum().clamp_min(1)


def _sampled(features: TokenFeatures, places: Tensor) -> Tensor:
    """The patches' features at places between their middles, bilinear.  (B, g, g, 2) -> (B, N, D)"""
    grid = features.patches.transpose(1, 2).unflatten(2, features.grid)  # (B, D, g, g)
    sampled = F.grid_sample(grid, places, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled.flatten(2).transpose(1, 2)
