"""Images for the eye: what the patches of a photo have in common, what CLS attends to, and what is near to what.

They show collapse and progress long before a number does: patch features of a trained network fall into objects and
their parts, those of a random or collapsed one into noise, stripes or one colour.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from indexer.backbone.backbone import Backbone
from indexer.descriptor.patch_maps import cls_attention, patch_colours
from indexer.errors import SeenitError
from indexer.images.jobs import Cut
from indexer.images.pool import DecodePool

from ..data.sources import ImageSource, cut_square, square_job

THUMB_PX = 168
GAP_PX = 4
NEIGHBOURS_SHOWN = 5


def feature_sheet(backbone: Backbone, pixels: np.ndarray) -> Image.Image:
    """One column an image: the image, its patches in colours, the attention of CLS.

    pixels  (B, H, W, 3) uint8
    """
    (features,) = backbone.intermediate(pixels, [backbone.depth - 1])
    attention = cls_attention(backbone, pixels)
    bright = attention / np.maximum(attention.max((1, 2), keepdims=True), 1e-12) * 255
    return _sheet([list(pixels), list(patch_colours(features)), [_heat(one) for one in bright.astype(np.uint8)]])


def neighbour_sheet(
    pixels: np.ndarray, vectors: Tensor, queries: Sequence[int], count: int = NEIGHBOURS_SHOWN
) -> Image.Image:
    """One row a query: the query, then the images nearest to it by cosine, itself left out.

    pixels   (B, H, W, 3) uint8
    vectors  (B, D)
    """
    unit = normalize(torch.nan_to_num(vectors.float()).cpu(), dim=-1)
    cosines = unit[list(queries)] @ unit.T
    cosines[range(len(queries)), list(queries)] = -2
    nearest = cosines.topk(min(count, len(pixels) - 1)).indices.tolist()
    return _sheet([[pixels[query], *pixels[found]] for query, found in zip(queries, nearest, strict=True)])


class Watched:
    """Fixed photos of a run, shown again and again: `Watched(source).save(backbone, folder, step)`.

    They are spread evenly over the source, so that a resumed run has the same ones. `save` writes
    `step_NNNNNNN_features.png` and `step_NNNNNNN_neighbours.png`.
    """

    def __init__(
        self,
        source: ImageSource,
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
        decoded = {int(one.path): one.pixels for one in outcomes if isinstance(one, Cut)}
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
    """A table of images (H, W, 3), each enlarged or shrunk to a thumbnail; patches stay squares."""
    cell = THUMB_PX + GAP_PX
    sheet = Image.new("RGB", (max(map(len, rows)) * cell - GAP_PX, len(rows) * cell - GAP_PX), (255, 255, 255))
    for y, row in enumerate(rows):
        for x, values in enumerate(row):
            image = Image.fromarray(np.ascontiguousarray(values))
            how = Image.Resampling.NEAREST if image.width < 64 else Image.Resampling.BICUBIC
            sheet.paste(image.resize((THUMB_PX, THUMB_PX), how), (x * cell, y * cell))
    return sheet
