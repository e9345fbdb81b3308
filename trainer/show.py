"""Pictures for the eye: what the patches of a photo have in common, where CLS looks, and what is near to what.

They show collapse and progress long before a number does: patch features of a trained network fall into objects and
their parts, those of a random or collapsed one into noise, stripes or one colour.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from indexer.backbone import Backbone
from indexer.decode_pool import DecodePool
from indexer.errors import SeenitError
from indexer.read_picture import Decoded
from indexer.vit import Block, TokenFeatures

from .sources import PictureSource, cut_square, square_job

THUMB_PX = 168
GAP_PX = 4
NEIGHBOURS_SHOWN = 5
SHOWN_CHANNELS = 3  # red, green, blue


def patch_colours(features: TokenFeatures) -> np.ndarray:
    """The first three principal components of all pictures' patches as red, green and blue.

    returns  (B, rows, cols, 3) uint8; equal colours mean similar patches, also across the pictures
    """
    patches = torch.nan_to_num(features.patches.float()).cpu()  # (B, N, D)
    rows = patches.flatten(0, 1)
    rows = rows - rows.mean(0)
    _, directions = torch.linalg.eigh(rows.T @ rows)  # (D, D), ascending
    directions = directions[:, -SHOWN_CHANNELS:].flip(1)
    directions = directions * directions.sum(0).sign()  # so that a step later red is still red
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
        project: Any = (
            block.attn.qkv if isinstance(block, Block) else block.qkv
        )  # or rearranged, see indexer.cpu_fusion
        rows = project(block.norm1(tokens.flatten(0, 1)))  # (B * L, 3 * D)
        qkv = rows.view(len(tokens), -1, 3, heads, rows.shape[-1] // 3 // heads)  # (B, L, 3, h, d)
        query, key = qkv[:, 0, 0].float(), qkv[:, :, 1].float()  # (B, h, d), (B, L, h, d)
        scores = torch.einsum("bhd,blhd->bhl", query, key) / query.shape[-1] ** 0.5
        attention = scores.softmax(-1).mean(1)[:, -before.patches.shape[1] :]  # (B, N)
    return attention.unflatten(1, before.grid).cpu().numpy()


def feature_sheet(backbone: Backbone, pixels: np.ndarray) -> Image.Image:
    """One column a picture: the picture, its patches in colours, the attention of CLS.

    pixels  (B, H, W, 3) uint8
    """
    (features,) = backbone.intermediate(pixels, [backbone.depth - 1])
    attention = cls_attention(backbone, pixels)
    bright = attention / np.maximum(attention.max((1, 2), keepdims=True), 1e-12) * 255
    return _sheet([list(pixels), list(patch_colours(features)), [_heat(one) for one in bright.astype(np.uint8)]])


def neighbour_sheet(
    pixels: np.ndarray, vectors: Tensor, queries: Sequence[int], count: int = NEIGHBOURS_SHOWN
) -> Image.Image:
    """One row a query: the query, then the pictures nearest to it by cosine, itself left out.

    pixels   (B, H, W, 3) uint8
    vectors  (B, D)
    """
    unit = normalize(torch.nan_to_num(vectors.float()).cpu(), dim=-1)
    cosines = unit[list(queries)] @ unit.T
    cosines[range(len(queries)), list(queries)] = -2
    nearest = cosines.topk(min(count, len(pixels) - 1)).indices.tolist()
    return _sheet([[pixels[query], *pixels[found]] for query, found in zip(queries, nearest, strict=True)])


class Watched:
    """Fixed photos of a run, looked at again and again: `Watched(source).save(backbone, folder, step)`.

    They are spread evenly over the source, so that a resumed run has the same ones. `save` writes
    `step_NNNNNNN_features.png` and `step_NNNNNNN_neighbours.png`.
    """

    def __init__(
        self,
        source: PictureSource,
        *,
        photos: int = 4,
        gallery: int = 60,
        queries: int = 4,
        size_px: int = 224,
        patch: int = 14,
    ) -> None:
        side = max(1, size_px // patch) * patch
        step = max(1, len(source) // gallery)
        places = {str(number): place for number, place in enumerate(source.places[::step][:gallery])}
        with DecodePool(1, resolution=side, patch_size=patch, mode="crop", work=cut_square) as pool:
            outcomes = list(pool.run(square_job(name, place) for name, place in places.items()))
        decoded = {int(one.path): one.pixels for one in outcomes if isinstance(one, Decoded)}
        if len(decoded) < 2:
            raise SeenitError("fewer than 2 of the photos to be shown can be read; give others")
        self.photos, self.queries = photos, queries
        self.pixels = np.stack([decoded[number] for number in sorted(decoded)])  # (B, S, S, 3)

    def save(self, backbone: Backbone, folder: str | Path, step: int) -> list[Path]:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        layer = [backbone.depth - 1]
        vectors = torch.cat([backbone.intermediate(part, layer)[0].cls for part in _parts(self.pixels)])
        sheets = {
            "features": feature_sheet(backbone, self.pixels[: self.photos]),
            "neighbours": neighbour_sheet(self.pixels, vectors, range(min(self.queries, len(self.pixels)))),
        }
        paths = []
        for name, sheet in sheets.items():
            paths.append(folder / f"step_{step:07d}_{name}.png")
            sheet.save(paths[-1])
        return paths


def _parts(pixels: np.ndarray) -> list[np.ndarray]:
    return [pixels[at : at + 16] for at in range(0, len(pixels), 16)]


def _heat(values: np.ndarray) -> np.ndarray:
    """(rows, cols) uint8 -> (rows, cols, 3): black, red, yellow, white."""
    steps = values.astype(np.int16)[..., None] * 3 - np.array([0, 255, 510])
    return steps.clip(0, 255).astype(np.uint8)


def _sheet(rows: Sequence[Sequence[np.ndarray]]) -> Image.Image:
    """A table of pictures (H, W, 3), each enlarged or shrunk to a thumbnail; patches stay squares."""
    cell = THUMB_PX + GAP_PX
    sheet = Image.new("RGB", (max(map(len, rows)) * cell - GAP_PX, len(rows) * cell - GAP_PX), (255, 255, 255))
    for y, row in enumerate(rows):
        for x, values in enumerate(row):
            image = Image.fromarray(np.ascontiguousarray(values))
            how = Image.Resampling.NEAREST if image.width < 64 else Image.Resampling.BICUBIC
            sheet.paste(image.resize((THUMB_PX, THUMB_PX), how), (x * cell, y * cell))
    return sheet
