"""From a frozen backbone's tokens to the raw material of descriptors: CLS and mean patch of some blocks, a few patches.

No statistics come in yet: what is pooled of an image depends on the image alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .config import DescriptorConfig, block_at

if TYPE_CHECKING:
    from ..backbone.vit import TokenFeatures

# B images, N patches, K of them kept, D channels of the backbone, L layers read


@dataclass(frozen=True)
class PooledFeatures:
    """What is kept of B images before any statistics: about 55 kB each with a ViT-S.

    parts      (B, L, D)  float32, L2-normalised
    tokens     (B, K, D)  float16
    positions  (B, K, 2)  uint8, row and column of each token
    colours    (B, K, 2)  int8, mean colour of each token's patch, see `mean_colours`; None where nobody asks for them
    """

    parts: Tensor
    tokens: Tensor
    positions: Tensor
    colours: Tensor | None = None

    def row(self, n: int) -> "PooledFeatures":
        """Image n alone, as a batch of one; a copy, which does not keep the others in memory."""
        parts, tokens, positions = (one[n : n + 1].clone() for one in (self.parts, self.tokens, self.positions))
        return PooledFeatures(
            parts, tokens, positions, None if self.colours is None else self.colours[n : n + 1].clone()
        )


def pool(features: "Sequence[TokenFeatures]", config: DescriptorConfig, depth: int) -> PooledFeatures:
    """The raw material of B images of one shape; which patches are kept depends on the images alone.

    features  of the blocks `config.layers_of(depth)`, in that order, after the final norm
    depth     how many blocks the backbone has
    """
    source = token_features(features, config, depth)
    patches = source.patches.float()  # (B, N, D)
    kept = select_patches(patches, config.num_tokens)  # (B, K)
    tokens = patches.gather(1, kept[..., None].expand(-1, -1, patches.shape[-1]))  # (B, K, D)
    cols = source.grid[1]
    positions = torch.stack([kept // cols, kept % cols], dim=-1)  # (B, K, 2)
    return PooledFeatures(
        parts_of(features, config, depth).cpu(),
        torch.nan_to_num(tokens).clamp(-65504, 65504).half().cpu(),
        positions.to(torch.uint8).cpu(),
    )


def parts_of(features: "Sequence[TokenFeatures]", config: DescriptorConfig, depth: int) -> Tensor:
    """What the global vectors of B images are made of, on the features' device: (B, L, D) float32, L2-normalised."""
    at = dict(zip(config.layers_of(depth), features, strict=True))
    cls = [at[block_at(fraction, depth)].cls for fraction in config.cls_depths]
    means = [at[block_at(fraction, depth)].patches.float().mean(1) for fraction in config.mean_depths]
    parts = torch.stack([part.float() for part in (*cls, *means)], dim=1)  # (B, L, D)
    return normalize(torch.nan_to_num(parts), dim=-1)


def token_features(features: "Sequence[TokenFeatures]", config: DescriptorConfig, depth: int) -> "TokenFeatures":
    """Of the blocks `config.layers_of(depth)` the one whose patches are matched."""
    return features[config.layers_of(depth).index(block_at(config.token_depth, depth))]


def select_patches(patches: Tensor, count: int) -> Tensor:
    """Indices (B, K), ascending, of patches that are unlike each other; K is `count` or all there are.

    patches  (B, N, D)
    Farthest-point sampling by cosine: first the patch least like the image's mean, then again and again

        argmax_n min_{s already chosen} 1 - cos(patches[n], patches[s])

    so that a wall or a sky costs a token or two, not half of them.
    """
    if count >= patches.shape[1]:
        return torch.arange(patches.shape[1], device=patches.device).expand(len(patches), -1)
    unit = normalize(patches, dim=-1)
    similarity = unit @ unit.mT  # (B, N, N)
    rows = torch.arange(len(patches), device=patches.device)
    chosen = (unit * unit.mean(1, keepdim=True)).sum(-1).argmin(1)  # (B,)
    kept, nearest = [chosen], similarity[rows, chosen]  # (B, N), likeness to the nearest chosen one
    for _ in range(count - 1):
        nearest[rows, chosen] = torch.inf  # never chosen twice, even where all patches are equal
        chosen = nearest.argmin(1)
        kept.append(chosen)
        nearest = torch.maximum(nearest, similarity[rows, chosen])
    return torch.stack(kept, dim=1).sort(dim=1).values
