"""Brings dark images into the light of others before they are described.

Features bear a change of light, not its loss: of a facade that was taken against the sun, a street at dusk or a dim
room the network makes little, though eyes see the thing. The change depends on an image's own histogram alone, so that
a query and its indexed copy are changed alike, and it sets in gradually, so that of two photos of one thing, one a
little darker, neither is changed much.
"""

import numpy as np

RAMP = 10.0  # grey levels in which the change grows from none to all of it
LIT_MEAN = 90.0  # mean grey level that an image is brought to at least, about
BLACK, WHITE = 0.01, 0.99  # shares of the pixels that become no darker than black and no lighter than white
LEAST_RANGE = 16  # grey levels; what differs by less is noise
LARGEST_GAMMA = 4.0
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601, as Pillow's "L"


def lighten(pixels: np.ndarray, dark_below: int) -> np.ndarray:
    """An image that is dark brightened; any other as it is, the same array.

    pixels      (H, W, 3) uint8
    dark_below  mean grey level from which on nothing is changed; 0: nothing ever is
    returns     (H, W, 3) uint8

    The darkest and lightest hundredth of the grey levels are drawn to black and white, and where that leaves the mean
    below LIT_MEAN, a gamma brings it there. Of this there is a share that grows from 0 at `dark_below` to 1 at RAMP
    grey levels less.
    """
    if not dark_below:
        return pixels
    grey = (pixels[::2, ::2] @ _LUMA).astype(np.uint8)
    share = min((dark_below - float(grey.mean())) / RAMP, 1.0)
    return pixels if share <= 0 else _curve(grey, share)[pixels]


def _curve(grey: np.ndarray, share: float) -> np.ndarray:
    """What each level 0..255 becomes.  (256,) uint8"""
    histogram = np.bincount(grey.ravel(), minlength=256) / grey.size
    below = np.cumsum(histogram)
    black, white = int(np.searchsorted(below, BLACK)), int(np.searchsorted(below, WHITE))
    white = max(white, black + LEAST_RANGE)
    levels = np.arange(256, dtype=np.float64)
    stretched = ((levels - black) / (white - black)).clip(0, 1)
    mean = float(histogram @ stretched)
    gamma = np.log(LIT_MEAN / 255) / np.log(min(max(mean, 1 / 255), 254 / 255))
    lit = 255 * stretched ** min(max(gamma, 1 / LARGEST_GAMMA), 1.0)
    return np.rint(levels + share * (lit - levels)).astype(np.uint8)
