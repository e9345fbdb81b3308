"""What the network makes of an image, patch by patch: which patches are alike, and what CLS attends to."""

from typing import Any

import numpy as np
import torch

from ..backbone.backbone import Backbone
from ..backbone.vit import Block, TokenFeatures

SHOWN_CHANNELS = 3  # red, green, blue


def patch_colours(features: TokenFeatures) -> np.ndarray:
    """The first three principal components of all images' patches as red, green and blue.

    returns  (B, rows, cols, 3) uint8; equal colours mean similar patches, also across the images
    """
    patches = torch.nan_to_num(features.patches.float()).cpu()  # (B, N, D)
    rows = patches.flatten(0, 1)
    rows = rows - rows.mean(0)
    _, directions = torch.linalg.eigh(rows.T @ rows)  # (D, D), ascending
    directions = directions[:, -SHOWN_CHANNELS:].flip(1)
    directions = directions * directions.sum(0).sign()  # so that a little later in a training red is still red
    values = rows @ directions  # (B * N, 3)
    low, high = (torch.quantile(values[:: 1 + len(values) // 100_000], q, dim=0) for q in (0.01, 0.99))
    colours = ((values - low) / (high - low).clamp_min(1e-12)).clamp(0, 1) * 255
    return colours.round().byte().unflatten(0, (len(patches), *features.grid)).numpy()


def cls_attention(backbone: Backbone, pixels: np.ndarray) -> np.ndarray:
    """How much CLS attends to each patch in the last block, the mean over its heads.

    pixels   (B, H, W, 3) uint8
    returns  (B, rows, cols) float32; with the attention to CLS itself and the registers, it sums to 1
    """
    assert backbone.depth > 1, "the last block's input is the output of the one before"
    (before,) = backbone.intermediate(pixels, [backbone.depth - 2], norm=False)
    with torch.inference_mode():
        tokens = torch.cat([before.cls[:, None], before.registers, before.patches], 1).to(backbone.dtype)  # (B, L, D)
        block: Any = backbone.model.blocks[-1]
        heads = backbone.architecture.num_heads
        project: Any = block.attn.qkv if isinstance(block, Block) else block.qkv  # or rearranged, see cpu_fusion
        rows = project(block.norm1(tokens.flatten(0, 1)))  # (B * L, 3 * D)
        qkv = rows.view(len(tokens), -1, 3, heads, rows.shape[-1] // 3 // heads)  # (B, L, 3, h, d)
        query, key = qkv[:, 0, 0].float(), qkv[:, :, 1].float()  # (B, h, d), (B, L, h, d)
        scores = torch.einsum("bhd,blhd->bhl", query, key) / query.shape[-1] ** 0.5
        attention = scores.softmax(-1).mean(1)[:, -before.patches.shape[1] :]  # (B, N)
    return attention.unflatten(1, before.grid).cpu().numpy()
