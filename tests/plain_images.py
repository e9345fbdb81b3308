"""Images that have much in common and show different things: logos on nothing, cloth, gradients, walls, borders."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = (400, 300)  # width, height


def logo(number: int) -> Image.Image:
    """One of three white figures on transparent ground."""
    image = Image.new("RGBA", (400, 400), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    white = (255, 255, 255, 255)
    if number == 0:
        draw.ellipse((120, 120, 280, 280), outline=white, width=24)
        draw.line((200, 60, 200, 340), fill=white, width=24)
    elif number == 1:
        draw.polygon([(200, 90), (310, 290), (90, 290)], fill=white)
    else:
        for bar in range(4):
            draw.rectangle((100 + 55 * bar, 120 + 30 * (bar % 2), 135 + 55 * bar, 290), fill=white)
    return image


def chequered_cloth(number: int) -> Image.Image:
    """Cloth of squares whose size and colours depend on the number."""
    cell = 22 + 7 * number
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    colours = np.random.default_rng(number + 40).integers(0, 256, (2, 3), dtype=np.uint8)
    return Image.fromarray(colours[(rows // cell + columns // cell) % 2])


def gradient(number: int) -> Image.Image:
    one, other = np.random.default_rng(number).integers(0, 256, (2, 1, 1, 3))
    share = np.linspace(0, 1, SIZE[0])[None, :, None] if number % 2 else np.linspace(0, 1, SIZE[1])[:, None, None]
    return Image.fromarray((one * (1 - share) + other * share + np.zeros((*SIZE[::-1], 1))).astype(np.uint8))


def blank_wall(number: int) -> Image.Image:
    """A wall that a lamp lights from somewhere, with a camera's noise."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[-1 : 1 : SIZE[1] * 1j, -1 : 1 : SIZE[0] * 1j]
    distance = (columns - rng.uniform(-0.5, 0.5)) ** 2 + (rows - rng.uniform(-0.5, 0.5)) ** 2
    wall = np.array([225, 220, 205]) * (1 - 0.18 * distance[..., None]) + rng.normal(0, 3, (*SIZE[::-1], 1))
    return Image.fromarray(wall.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.6))


def bordered(image: Image.Image, share: float = 0.22) -> Image.Image:
    """The image made smaller amid a black border that takes a share of each side."""
    framed = Image.new("RGB", SIZE)
    left, top = round(SIZE[0] * share), round(SIZE[1] * share)
    framed.paste(image.resize((SIZE[0] - 2 * left, SIZE[1] - 2 * top)), (left, top))
    return framed
