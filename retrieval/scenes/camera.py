"""A pinhole camera, and how it sees a flat texture that hangs somewhere in the room."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Point = Sequence[float] | np.ndarray  # x, y, z in metres
Outline = Sequence[tuple[float, float]]  # a polygon in pixels

NEAR_M = 0.15


@dataclass(frozen=True)
class Camera:
    """Where it is, where it looks, and its lens."""

    eye: tuple[float, float, float]
    target: tuple[float, float, float]
    fov_deg: float  # over the longer side
    roll_deg: float
    size: tuple[int, int]  # width, height in pixels

    def matrix(self) -> np.ndarray:
        """The projection (3, 4): homogeneous metres to homogeneous pixels."""
        forward = np.subtract(self.target, self.eye)
        forward = forward / np.linalg.norm(forward)
        right = np.cross(forward, (0.0, 1.0, 0.0))
        right = right / np.linalg.norm(right)
        down = np.cross(forward, right)
        c, s = np.cos(np.radians(self.roll_deg)), np.sin(np.radians(self.roll_deg))
        rotation = np.stack([c * right + s * down, c * down - s * right, forward])  # (3, 3)
        focal = max(self.size) / 2 / np.tan(np.radians(self.fov_deg / 2))
        inner = np.array([[focal, 0, self.size[0] / 2], [0, focal, self.size[1] / 2], [0, 0, 1]])
        return inner @ np.column_stack([rotation, -rotation @ np.asarray(self.eye)])

    def project(self, points: np.ndarray) -> np.ndarray:
        """Pixels (P, 2) of points (P, 3) in metres that lie before the camera."""
        seen = np.column_stack([points, np.ones(len(points))]) @ self.matrix().T  # (P, 3)
        return seen[:, :2] / seen[:, 2:]

    def outline(self, corners: np.ndarray) -> list[tuple[float, float]]:
        """The polygon in pixels of a polygon (P, 3) in metres, cut off before it passes behind the camera."""
        seen = np.column_stack([corners, np.ones(len(corners))]) @ self.matrix().T
        kept: list[np.ndarray] = []
        for a, b in zip(seen, np.roll(seen, -1, axis=0), strict=True):
            if a[2] > NEAR_M:
                kept.append(a)
            if (a[2] > NEAR_M) != (b[2] > NEAR_M):
                kept.append(a + (b - a) * (NEAR_M - a[2]) / (b[2] - a[2]))
        return [(float(x / w), float(y / w)) for x, y, w in kept]


def paint(image: Image.Image, camera: Camera, texture: Image.Image, corner: Point, across: Point, down: Point) -> None:
    """Paint a flat texture as the camera sees it, in place.

    corner  its top left corner in metres; across and down lead from there to the top right and to the bottom left
    A texture with alpha keeps its outline; one without covers its whole rectangle.
    """
    see_through = texture.mode == "RGBA"
    origin, right, below = np.asarray(corner, float), np.asarray(across, float), np.asarray(down, float)
    outline = camera.outline(np.array([origin, origin + right, origin + right + below, origin + below]))
    left, top, width, height = _part(image, outline, 2)
    if width <= 0 or height <= 0:
        return

    def to_texture(size: tuple[int, int]) -> np.ndarray:
        # an opaque texture's outermost pixels lie just outside the outline, so that no edge looks past them
        inset = np.array([0.0, 0.0]) if see_through else np.minimum(2.0, np.array(size) / 4)
        x_step, y_step = right / (size[0] - 2 * inset[0]), below / (size[1] - 2 * inset[1])
        start = origin - inset[0] * x_step - inset[1] * y_step
        plane = np.column_stack([np.append(x_step, 0), np.append(y_step, 0), np.append(start, 1)])
        shift = np.array([[1, 0, left], [0, 1, top], [0, 0, 1]])
        return np.linalg.inv(camera.matrix() @ plane) @ shift  # (3, 3): pixel in the cut-out to texture pixel

    # shrink the texture first where it is seen from afar, else its fine lines would flicker
    inverse = to_texture(texture.size)
    middle = np.clip(np.mean(outline, axis=0) - (left, top), 0, (width, height))
    depth = inverse[2] @ (*middle, 1)
    stretch = np.abs(np.linalg.det(inverse) / depth**3) ** 0.5  # texture pixels per image pixel at the middle
    if stretch >= 1.6:
        texture = texture.reduce(min(round(stretch), 16))
        inverse = to_texture(texture.size)
    seen = texture.transform(
        (width, height),
        Image.Transform.PERSPECTIVE,
        tuple((inverse / inverse[2, 2]).ravel()[:8]),
        Image.Resampling.BICUBIC if see_through else Image.Resampling.BILINEAR,
    )
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).polygon([(x - left, y - top) for x, y in outline], fill=255)
    if see_through:
        mask = ImageChops.multiply(seen.getchannel("A"), mask.filter(ImageFilter.MaxFilter(3)))
    image.paste(seen.convert("RGB"), (left, top), mask)


def cast_shadow(image: Image.Image, outline: Outline, blur_px: float, strength: float) -> None:
    """Darken a soft polygon, in place; drawn at a quarter of the size because nobody sees the difference."""
    left, top, width, height = _part(image, outline, 3 * blur_px + 4)
    if width <= 0 or height <= 0:
        return
    mask = Image.new("L", (width // 4 + 1, height // 4 + 1))
    ImageDraw.Draw(mask).polygon([((x - left) / 4, (y - top) / 4) for x, y in outline], fill=round(255 * strength))
    mask = mask.filter(ImageFilter.GaussianBlur(max(blur_px / 4, 0.5)))
    image.paste((18, 16, 22), (left, top), mask.resize((width, height), Image.Resampling.BILINEAR))


def _part(image: Image.Image, outline: Outline, margin: float) -> tuple[int, int, int, int]:
    """The part of the image that an outline touches: left, top, width, height; without width if it touches none."""
    if len(outline) < 3:
        return 0, 0, 0, 0
    (left, top), (right, bottom) = np.min(outline, axis=0) - margin, np.max(outline, axis=0) + margin
    left, top = max(0, int(left)), max(0, int(top))
    return left, top, min(image.width, int(right)) - left, min(image.height, int(bottom)) - top
