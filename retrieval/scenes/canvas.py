"""A drawing in its own units: fractions of a poster, metres on a wall, percent of a prop."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Random = np.random.Generator
T = TypeVar("T")

WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """`share` of b in a."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def pick(rng: Random, *options: T) -> T:
    """One of the options by chance."""
    return options[int(rng.integers(len(options)))]


def hexed(code: str) -> Colour:
    """rrggbb as a colour."""
    return int(code[:2], 16), int(code[2:4], 16), int(code[4:6], 16)


@dataclass(frozen=True)
class Palette:
    """The colours of one thing."""

    paper: Colour
    ink: Colour
    first: Colour
    second: Colour
    third: Colour


class Canvas:
    """An image, or a part of one, and its pens.

    across, down  the width and height in the units that x and y count in; lengths such as a radius or a line's
                  thickness count in the units across
    A pen takes the colour, then x y x y ...; boxes are left, top, right, bottom.
    """

    def __init__(
        self,
        image: Image.Image,
        across: float = 1,
        down: float = 1,
        part_px: tuple[float, float, float, float] | None = None,
    ) -> None:
        self.image = image
        self._draw = ImageDraw.Draw(image)
        left, top, right, bottom = part_px or (0, 0, image.width, image.height)
        self._origin = (left, top)
        self._scale = ((right - left) / across, (bottom - top) / down)

    def part(self, *box: float) -> "Canvas":
        """A canvas over a part of this one, in percent of the part."""
        left, top, right, bottom = self.pixels(*box)
        return Canvas(self.image, 100, 100, (left, top, right, bottom))

    def pixels(self, *numbers: float) -> list[float]:
        """x y x y ... in pixels of the image."""
        return [self._origin[n % 2] + float(number) * self._scale[n % 2] for n, number in enumerate(numbers)]

    def _style(self, colour: Colour | str, thick: float) -> dict[str, Any]:
        return {"outline": colour, "width": max(1, round(thick * self._scale[0]))} if thick else {"fill": colour}

    def rect(self, colour: Colour | str, *box: float, thick: float = 0) -> None:
        self._draw.rectangle(self.pixels(*box), **self._style(colour, thick))

    def oval(self, colour: Colour | str, *box: float, thick: float = 0) -> None:
        self._draw.ellipse(self.pixels(*box), **self._style(colour, thick))

    def round(self, colour: Colour | str, *box: float, thick: float = 0) -> None:
        left, top, right, bottom = self.pixels(*box)
        radius = min(right - left, bottom - top) * 0.25
        self._draw.rounded_rectangle((left, top, right, bottom), radius, **self._style(colour, thick))

    def poly(self, colour: Colour | str, *points: float, thick: float = 0) -> None:
        self._draw.polygon(self.pixels(*points), **self._style(colour, thick))

    def line(self, colour: Colour | str, *points: float, thick: float) -> None:
        self._draw.line(self.pixels(*points), colour, max(1, round(thick * self._scale[0])), joint="curve")

    def disc(self, colour: Colour, x: float, y: float, radius: float) -> None:
        self.slice(colour, x, y, radius, 0, 360)

    def slice(self, colour: Colour, x: float, y: float, radius: float, start_deg: float, end_deg: float) -> None:
        (x, y), radius = self.pixels(x, y), radius * self._scale[0]
        self._draw.pieslice((x - radius, y - radius, x + radius, y + radius), start_deg, end_deg, fill=colour)

    def petal(self, colour: Colour, x: float, y: float, reach: float, wide: float, angle: float) -> None:
        """An ellipse around (x, y) with half axes `reach` and `wide`, turned by `angle` (radians)."""
        t = np.linspace(0, 2 * np.pi, 30)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) * self._scale[0]
        outline = np.column_stack([reach * np.cos(t), wide * np.sin(t)]) @ turn + self.pixels(x, y)  # (30, 2)
        self._draw.polygon(outline.ravel().tolist(), fill=colour)

    def below(self, colour: Colour, heights: np.ndarray) -> None:
        """All that lies below a line given by its heights y from left to right."""
        width, bottom = self.image.width / self._scale[0], self.image.height / self._scale[1]
        line = np.column_stack([np.linspace(0, width, len(heights)), heights])
        self.poly(colour, *line.ravel(), width, bottom, 0, bottom)

    def ridge(self, colour: Colour, rng: Random, level: float, rough: float) -> None:
        """Mountains around the height `level`, down to the bottom."""
        steps = np.convolve(rng.normal(0, 1, 27), np.ones(4) / 4, "valid")  # (24,)
        self.below(colour, level + rough * (steps + rng.normal(0, 0.12, 24)))

    def gradient(self, top: Colour, bottom: Colour, *box: float) -> None:
        """Fill a box, or everything, from one colour at the top to another at the bottom."""
        x, y, right, low = (round(v) for v in (self.pixels(*box) if box else (0, 0, *self.image.size)))
        strip = np.linspace(top, bottom, 64)[:, None, :].astype(np.uint8)  # (64, 1, 3)
        self.image.paste(Image.fromarray(strip).resize((right - x, low - y), Image.Resampling.BICUBIC), (x, y))

    def write(self, text: str, colour: Colour, *box: float, bold: float = 0.0, spacing: float = 0.04) -> None:
        """Set one line as large as it fits, centred in the box. bold and spacing are fractions of the letters' size."""
        left, top, right, bottom = self.pixels(*box)
        at_100 = sum(_font(100).getlength(c) + 100 * spacing for c in text) - 100 * spacing
        size = max(6, int(min((right - left) / at_100 * 100, (bottom - top) / 0.74)))
        x, baseline = (left + right - at_100 * size / 100) / 2, (top + bottom) / 2 + size * 0.36
        for letter in text:
            at, stroke = (x, baseline), round(bold * size)
            self._draw.text(at, letter, colour, _font(size), "ls", stroke_width=stroke, stroke_fill=colour)
            x += _font(size).getlength(letter) + spacing * size

    def sketch(self, lines: str, **colours: Colour) -> None:
        """Draw what is written, shapes separated by semicolons or new lines.

        A shape is its pen, the colour's name or rrggbb or rrggbbaa, its points, and after a slash the thickness of its
        outline; it is filled where there is none.
        """
        pens: dict[str, Callable[..., None]]
        pens = {"rect": self.rect, "round": self.round, "oval": self.oval, "poly": self.poly, "line": self.line}
        for shape in filter(str.strip, lines.replace("\n", ";").split(";")):
            shape, _, thick = shape.partition("/")
            pen, name, *points = shape.split()
            pens[pen](colours.get(name, "#" + name), *map(float, points), thick=float(thick or 0))


Front = Callable[[Canvas, Palette, Random, str], None]  # draws a thing's front with its word
Sides = tuple[Image.Image, Image.Image]  # a thing's right side and its top


@lru_cache(maxsize=256)
def _font(size_px: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size_px)
