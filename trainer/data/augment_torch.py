"""The augmentation engine that crops and distorts whole batches on the device.

It carries out the same table of views as the Pillow engine (see `augment.py`). Cropping and resizing are two matrix
products with the bicubic weights that Pillow would use, rows first and columns after, so that crops of every size and
place are one operation; distortions run on all crops that want them at once.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .ahead import host_buffer, to_device
from .augment import BLUR_TAPS, BRIGHTEN, CONTRASTEN, SATURATE, SOLARISE_FROM, TURN_HUE

CHUNK_PIXELS = 8_000_000  # padded pixels of the images that are cropped together; bounds memory
LUMA = (0.299, 0.587, 0.114)


# B images, V crops of each, S side of a crop, H x W the largest image's pixels, n crops of all images together
def cut_with_torch(
    images: Sequence[np.ndarray], views: np.ndarray, size: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Carry the table out on a batch, for the crops of one size.

    images  B arrays (H_b, W_b, 3) uint8 RGB
    views     (B, V) VIEW
    returns   (B, V, 3, S, S) float32 in [0, 255], on the device
    """
    crops: list[Tensor | None] = [None] * len(images)
    for chunk in _chunks(images):
        cut = _cut([images[index] for index in chunk], views[chunk], size, torch.device(device))
        distorted = distort(cut.flatten(0, 1), views[chunk].ravel())  # (n, 3, S, S)
        for index, crop in zip(chunk, distorted.unflatten(0, (len(chunk), -1)), strict=True):
            crops[index] = crop
    return torch.stack([crop for crop in crops if crop is not None])


def distort(crops: Tensor, views: np.ndarray) -> Tensor:
    """Flipping is done by now; everything that comes after it.

    crops    (n, 3, S, S) float32 in [0, 255]
    views    (n,) VIEW
    returns  (n, 3, S, S) float32, whole numbers in [0, 255]
    """
    crops = crops.clone()

    def change(chosen: np.ndarray, operation: Callable[[Tensor, Tensor], Tensor], name: str) -> None:
        rows = np.flatnonzero(chosen)
        if len(rows):
            where = _on(rows, crops.device)
            amount = _on(views[name][rows].astype(np.float32), crops.device).view(-1, 1, 1, 1)  # for each crop its own
            crops[where] = operation(crops[where], amount).clamp_(0, 255).floor_()  # as Pillow rounds

    for place in range(4):
        step = np.where(views["jitter"], views["order"][:, place], -1)
        change(step == BRIGHTEN, lambda x, factor: x * factor, "brightness")
        change(step == CONTRASTEN, lambda x, factor: _mean_grey(x).lerp(x, factor), "contrast")
        change(step == SATURATE, lambda x, factor: _grey(x).lerp(x, factor), "saturation")
        change(step == TURN_HUE, _turn_hue, "hue")
    change(views["grey"], lambda x, _: _grey(x).repeat(1, 3, 1, 1), "grey")
    change(views["sigma"] > 0, lambda x, sigma: _blur(x, sigma) + 0.5, "sigma")
    change(views["solarise"], lambda x, _: torch.where(x >= SOLARISE_FROM, 255 - x, x), "solarise")
    return crops


def _chunks(images: Sequence[np.ndarray]) -> list[list[int]]:
    """Indices of images of similar size that fit into CHUNK_PIXELS together, each padded to the largest."""
    chunks: list[list[int]] = []
    height = width = 0
    for index in sorted(range(len(images)), key=lambda i: images[i].shape[:2]):
        h, w = images[index].shape[:2]
        height, width = max(height, h), max(width, w)
        if not chunks or (len(chunks[-1]) + 1) * height * width > CHUNK_PIXELS:
            chunks.append([])
            height, width = h, w
        chunks[-1].append(index)
    return chunks


def _cut(images: Sequence[np.ndarray], views: np.ndarray, size: int, device: torch.device) -> Tensor:
    """Crop, resize and flip.  (B, V, 3, S, S)"""
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    padded = host_buffer((len(images), height, width, 3), device)
    for target, image in zip(padded, images, strict=True):
        target[: image.shape[0], : image.shape[1]] = torch.from_numpy(np.require(image, requirements=["C", "W"]))
    values = padded.to(device, non_blocking=True).float()  # (B, H, W, 3)

    rows = _bicubic(views["top"], views["height"], size, height, device)  # (B, V, S, H)
    columns = _bicubic(views["left"], views["width"], size, width, device)  # (B, V, S, W)
    flip = _on(views["flip"], device)[..., None, None]  # (B, V, 1, 1)
    columns = torch.where(flip, columns.flip(2), columns)
    squeezed = rows.flatten(1, 2) @ values.flatten(2)  # (B, V * S, W * 3)
    squeezed = squeezed.unflatten(2, (width, 3)).unflatten(1, (-1, size))  # (B, V, S, W, 3)
    cut = torch.einsum("bvywc,bvxw->bvcyx", squeezed, columns)
    return cut.round_().clamp_(0, 255)


def _bicubic(start: np.ndarray, extent: np.ndarray, size: int, length: int, device: torch.device) -> Tensor:
    """Weights of each pixel of a line for each pixel of its resized part; zero outside that part.

    start, extent  (B, V)  the part, in pixels
    returns        (B, V, S, length)  rows sum to 1

    for output i: centre = (i + 1/2) * extent / S; weight[x] ~ cubic((x + 1/2 - start - centre) / max(extent / S, 1))
    """
    begin = _on(start.astype(np.float32), device)[..., None, None]  # (B, V, 1, 1)
    extents = _on(extent.astype(np.float32), device)[..., None, None]
    scale = extents / size
    centres = (torch.arange(size, device=device)[:, None] + 0.5) * scale  # (B, V, S, 1)
    pixels = torch.arange(length, device=device) + 0.5 - begin  # (B, V, 1, length)
    distance = ((pixels - centres) / scale.clamp_min(1)).abs()  # (B, V, S, length)
    near = (1.5 * distance - 2.5) * distance * distance + 1  # Keys' cubic with a = -1/2
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0))
    weights = weights * ((pixels > 0) & (pixels < extents))
    return weights / weights.sum(-1, keepdim=True)


def _grey(values: Tensor) -> Tensor:
    """(n, 3, S, S) -> (n, 1, S, S)"""
    red, green, blue = values.split(1, 1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).round_()


def _mean_grey(values: Tensor) -> Tensor:
    return _grey(values).mean((2, 3), keepdim=True).round().expand_as(values)


def _turn_hue(values: Tensor, turns: Tensor) -> Tensor:
    """Turn (n, 3, S, S) around the colour wheel by (n, 1, 1, 1) of a full turn; saturation and value stay."""
    highest, lowest = values.amax(1), values.amin(1)  # (n, S, S)
    spread = highest - lowest
    red, green, blue = values.unbind(1)
    divisor = spread.clamp_min(1e-6)
    sixths = torch.where(
        highest == red,
        (green - blue) / divisor,
        torch.where(highest == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sixths = (sixths + 6 * turns[:, 0]) % 6  # (n, S, S)
    channels = []
    for shift in (5, 3, 1):  # red, green, blue fall off at different places of the wheel
        place = (shift + sixths) % 6
        channels.append(highest - spread * torch.minimum(place, 4 - place).clamp(0, 1))
    return torch.stack(channels, 1)


def _blur(values: Tensor, sigma: Tensor) -> Tensor:
    """Blur (n, 3, S, S), each crop with its own (n, 1, 1, 1) sigma."""
    margin = BLUR_TAPS // 2
    offsets = torch.arange(-margin, margin + 1, device=values.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)  # (n, 1, 1, T)
    kernel = kernel / kernel.sum(-1, keepdim=True)
    mode = "reflect" if values.shape[-1] > margin else "replicate"
    for axis in (2, 3):
        size = values.shape[axis]
        around = (0, 0, margin, margin) if axis == 2 else (margin, margin, 0, 0)
        padded = F.pad(values, around, mode=mode)
        values = padded.narrow(axis, 0, size) * kernel[..., :1]
        for tap in range(1, BLUR_TAPS):
            values = values.addcmul_(padded.narrow(axis, tap, size), kernel[..., tap : tap + 1])
    return values


def _on(values: np.ndarray, device: torch.device) -> Tensor:
    return to_device(torch.from_numpy(np.ascontiguousarray(values)), device)
