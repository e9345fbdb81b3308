"""What the descriptor keeps of one image: which patches are alike, which count, which are kept."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

from indexer.backbone.vit import TokenFeatures
from indexer.descriptor.embedder import Embedder
from indexer.descriptor.patch_maps import cls_attention, patch_colours
from indexer.descriptor.pooling import pool
from indexer.descriptor.whitening import Whitening, apply_whitening
from indexer.images.preprocess import preprocess

from .contact_sheet import BOX, INK, PAPER, write_line
from .draw_match import EDGE, heat_image

# R, C rows and columns of patches; N = R * C, D channels, L layers read


@dataclass(frozen=True, eq=False)
class Inspection:
    """An image as the descriptor sees it, on the grid of its patches.

    colours    (R, C, 3) uint8: the main directions of the patches' features as red, green, blue; like means alike
    share      (R, C) float32: what the patch adds to the global descriptor through the mean patch, see `patch_share`
    attention  (R, C) float32: of CLS in the last block
    kept       (R, C) bool: stored as a token
    """

    colours: np.ndarray
    share: np.ndarray
    attention: np.ndarray
    kept: np.ndarray


def inspect_image(image: np.ndarray, embedder: Embedder, whitening: Whitening) -> Inspection:
    """Describe (H, W, 3) uint8 pixels as indexing does."""
    backbone = embedder.backbone
    pixels = embedder.lit(preprocess(image, "aspect", embedder.resolution, backbone.patch_size))[None]  # (1, H', W', 3)
    features = backbone.intermediate(pixels, embedder.layers)
    kept = np.zeros(features[0].grid, bool)
    rows, cols = pool(features, embedder.config, backbone.depth).positions[0].long().unbind(-1)
    kept[rows.numpy(), cols.numpy()] = True
    return Inspection(
        colours=patch_colours(features[-1])[0],
        share=patch_share(features, embedder, whitening),
        attention=cls_attention(backbone, pixels)[0],
        kept=kept,
    )


def patch_share(features: list[TokenFeatures], embedder: Embedder, whitening: Whitening) -> np.ndarray:
    """How far each patch of one image moves the global vector its way, above what a patch of the corpus does.

    features  of the embedder's layers, of one image
    returns   (R, C) float32; negative where a patch speaks for another image

    A descriptor is affine in the mean patch of some layers. So for each patch the mean is replaced by that patch
    alone, CLS by nothing, and

        share[n] = ((parts[n] - mean) @ projection) . global vector

    over the parts that are left. Patches count as equally long, which after the final norm they nearly are.
    """
    config, depth = embedder.config, embedder.backbone.depth
    vector = torch.from_numpy(apply_whitening(pool(features, config, depth), whitening)[0][0])  # (G,)
    alone = [_each_alone(one) for one in features]
    parts = pool(alone, config, depth).parts  # (N, L, D), zero where CLS would be
    mean = whitening.mean.view(parts.shape[1:]) * (parts != 0).any(-1).any(0)[:, None]  # (L, D)
    share = ((parts - mean).flatten(1) @ whitening.projection) @ vector  # (N,)
    return share.view(features[0].grid).numpy()


def draw_inspection(image: Image.Image, inspection: Inspection, width_px: int = 1400) -> Image.Image:
    """Four panels of an upright RGB photo: its kept patches, their likeness, their share, the attention of CLS."""
    unit = width_px / 1400
    edge, line = round(EDGE * unit), round(34 * unit)
    columns = 4 if image.height > image.width else 2
    width = (width_px - (columns + 1) * edge) // columns
    height = max(1, round(width * image.height / image.width))
    photo = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    panels = [
        (
            _framed(photo, inspection.kept, unit),
            f"{inspection.kept.sum()} of {inspection.kept.size} patches are kept as tokens",
        ),
        (_coloured(photo, inspection.colours), "like colours: patches that are alike"),
        (
            heat_image(photo, _to_one(inspection.share), photo.size),
            "bright: what the global vector is made of, CLS aside",
        ),
        (heat_image(photo, _to_one(inspection.attention), photo.size), "bright: where the network attends"),
    ]
    rows = len(panels) // columns
    sheet = Image.new("RGB", (width_px, edge + rows * (height + line + edge)), PAPER)
    for n, (panel, words) in enumerate(panels):
        x, y = edge + n % columns * (width + edge), edge + n // columns * (height + line + edge)
        sheet.paste(panel, (x, y + line))
        write_line(sheet, (x, y), words, INK, round(20 * unit), width)
    return sheet


def _each_alone(features: TokenFeatures) -> TokenFeatures:
    """The N patches of one image as N images of one patch each, with nothing in CLS."""
    patches = features.patches[0][:, None]  # (N, 1, D)
    return TokenFeatures(cls=torch.zeros_like(patches[:, 0]), registers=patches[:, :0], patches=patches, grid=(1, 1))


def _to_one(values: np.ndarray) -> np.ndarray:
    """Scaled so that the greatest is 1; a single glaring patch does not darken the others."""
    return np.clip(values / max(float(np.quantile(values, 0.99)), 1e-12), 0, 1)


def _coloured(photo: Image.Image, colours: np.ndarray) -> Image.Image:
    patches = Image.fromarray(colours).resize(photo.size, Image.Resampling.NEAREST)
    return Image.blend(photo.convert("L").convert("RGB"), patches, 0.75)


def _framed(photo: Image.Image, kept: np.ndarray, unit: float) -> Image.Image:
    """The photo, dimmed where no patch is kept, with a frame around each that is."""
    light = Image.fromarray(np.where(kept, 255, 110).astype(np.uint8)).resize(photo.size, Image.Resampling.NEAREST)
    framed = Image.composite(photo, Image.new("RGB", photo.size), light)
    draw = ImageDraw.Draw(framed)
    high, wide = photo.height / kept.shape[0], photo.width / kept.shape[1]
    for row, col in np.argwhere(kept).tolist():
        draw.rectangle(
            (col * wide, row * high, (col + 1) * wide - 1, (row + 1) * high - 1), outline=BOX, width=round(1.5 * unit)
        )
    return framed
