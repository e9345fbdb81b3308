"""What the local comparison says of true copies and of images that differ in one place.

    python tests/benchmarks/duplicates_local.py ../shared/data [--photos 24] [--seed 0]

Photos of the distractors and drawn documents. True copies are recompressed, resized, sharpened, toned, cropped, grey,
mirrored; changed ones get another digit, word, price, date stamp, selected row, a small object, another face-sized
region, another print in the middle, another text, somebody cut out, another background, and are then saved as JPEG at
quality 85. A copy should stay without a difference, a change
should be named where it is. Constants of the comparison were looked at with seed 0.
"""

import argparse
import io
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it also runs as a file

from retrieval.duplicates.local import Local, compare_locally

Box = tuple[int, int, int, int]  # left, top, right, bottom
SAME = np.array([[1.0, 0, 0], [0, 1, 0]])
MIRROR = np.array([[-1.0, 0, 1], [0, 1, 0]])
CROP = np.array([[1 / 0.8, 0, -0.1 / 0.8], [0, 1 / 0.8, -0.1 / 0.8]])
Edit = Callable[[Image.Image], Image.Image]


def saved(image: Image.Image, quality: int = 85) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def resized(image: Image.Image, share: float) -> Image.Image:
    return image.resize((round(image.width * share), round(image.height * share)), Image.Resampling.BICUBIC)


def middle(image: Image.Image) -> Image.Image:
    width, height = image.size
    return image.crop((round(0.1 * width), round(0.1 * height), round(0.9 * width), round(0.9 * height)))


def toned(image: Image.Image, gamma: float, contrast: float) -> Image.Image:
    bent = image.point([round(255 * (value / 255) ** gamma) for value in range(256)] * 3)
    return ImageEnhance.Contrast(bent).enhance(contrast)


COPIES: dict[str, tuple[Edit, np.ndarray]] = {
    "JPEG, quality 85": (saved, SAME),
    "JPEG, quality 50": (lambda image: saved(image, 50), SAME),
    "JPEG, quality 12": (lambda image: saved(image, 12), SAME),
    "resized to 70 %": (lambda image: saved(resized(image, 0.7)), SAME),
    "resized to 40 %": (lambda image: saved(resized(image, 0.4)), SAME),
    "resized to 150 %": (lambda image: saved(resized(image, 1.5)), SAME),
    "sharpened": (lambda image: saved(image.filter(ImageFilter.UnsharpMask(2, 120, 2))), SAME),
    "blurred": (lambda image: saved(image.filter(ImageFilter.GaussianBlur(2))), SAME),
    "gamma 0.7": (lambda image: saved(toned(image, 0.7, 1)), SAME),
    "gamma 1.6, harder": (lambda image: saved(toned(image, 1.6, 1.2)), SAME),
    "paler": (lambda image: saved(ImageEnhance.Color(image).enhance(0.5)), SAME),
    "grey": (lambda image: saved(image.convert("L").convert("RGB")), SAME),
    "mirrored": (lambda image: saved(ImageOps.mirror(image)), MIRROR),
    "cropped to 80 %": (lambda image: saved(middle(image)), CROP),
}


def document(rng: np.random.Generator) -> tuple[Image.Image, Callable[..., tuple[Image.Image, Box]]]:
    """A drawn page of text with a price, a date and a table, and what draws it anew with one thing changed."""
    words = [
        "order",
        "number",
        "amount",
        "paid",
        "total",
        "street",
        "delivery",
        "invoice",
        "customer",
        "account",
        "balance",
        "due",
        "before",
    ]
    lines = [" ".join(rng.choice(words, 6)) + f" {rng.integers(100, 999)}" for _ in range(18)]
    size = int(rng.choice([13, 16, 22]))
    font = ImageFont.load_default(size)
    width, height = 50 * size, 40 * size

    def draw(kind: str = "") -> tuple[Image.Image, Box]:
        page = Image.new("RGB", (width, height), "white")
        pen = ImageDraw.Draw(page)
        changed: Box = (0, 0, 0, 0)
        for number, line in enumerate(lines):
            top = (2 + 2 * number) * size
            text = line
            if number == 7 and kind == "digit":
                text = line[:-1] + str((int(line[-1]) + 1) % 10)
                changed = (2 * size, top, width, top + 2 * size)
            if number == 9 and kind == "word":
                text = line.replace(line.split()[2], "refund" if line.split()[2] != "refund" else "total", 1)
                changed = (2 * size, top, width, top + 2 * size)
            if number == 4 and kind == "selected row":
                pen.rectangle((size, top - size // 4, width - size, top + round(1.4 * size)), fill=(205, 228, 255))
                changed = (0, top - size, width, top + 2 * size)
            pen.text((2 * size, top), text, fill="black", font=font)
        price = "EUR 1,149.00" if kind == "price" else "EUR 1,149.50"
        pen.text((30 * size, 37 * size), price, fill=(160, 0, 0), font=font)
        if kind == "price":
            changed = (30 * size, 36 * size, width, 39 * size)
        return page, changed

    return draw()[0], draw


def stamped(image: Image.Image, day: int) -> tuple[Image.Image, Box]:
    size = max(12, image.height // 22)
    drawn = image.copy()
    at = (image.width - 7 * size, image.height - 2 * size)
    ImageDraw.Draw(drawn).text(at, f"2019-07-{day:02}", fill=(255, 150, 30), font=ImageFont.load_default(size))
    return drawn, (at[0], at[1] - size // 2, image.width, image.height)


def with_object(
    image: Image.Image, rng: np.random.Generator, other: Image.Image, share: float
) -> tuple[Image.Image, Box]:
    """A round piece of another photo, `share` of the shorter side wide."""
    side = max(10, round(share * min(image.size)))
    piece = ImageOps.fit(other, (side, side))
    mask = Image.new("L", (side, side), 0)
    ImageDraw.Draw(mask).ellipse((0, 0, side - 1, side - 1), fill=255)
    left, top = int(rng.integers(image.width - side)), int(rng.integers(image.height - side))
    drawn = image.copy()
    drawn.paste(piece, (left, top), mask)
    return drawn, (left, top, left + side, top + side)


def another_background(image: Image.Image, other: Image.Image) -> tuple[Image.Image, Box]:
    """An ellipse in the middle stays, with another photo around it."""
    mask = Image.new("L", image.size, 0)
    ImageDraw.Draw(mask).ellipse(
        (image.width // 8, image.height // 8, image.width * 7 // 8, image.height * 7 // 8), fill=255
    )
    return Image.composite(image, ImageOps.fit(other, image.size), mask), (0, 0, *image.size)


def written_over(image: Image.Image, text: str) -> tuple[Image.Image, Box]:
    size = max(14, image.height // 10)
    drawn = image.copy()
    ImageDraw.Draw(drawn).text((size, 2 * size), text, fill=(230, 230, 230), font=ImageFont.load_default(size))
    return drawn, (size, 2 * size, image.width, round(3.3 * size))


def cut_out(image: Image.Image) -> tuple[Image.Image, Box]:
    """A standing figure's place is filled with what lies beside it."""
    left, right = round(0.4 * image.width), round(0.6 * image.width)
    top, bottom = round(0.3 * image.height), round(0.95 * image.height)
    drawn = image.copy()
    beside = image.crop((left - (right - left), top, left, bottom))
    drawn.paste(ImageOps.mirror(beside), (left, top))
    return drawn, (left, top, right, bottom)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--photos", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    files = sorted((args.data / "distractors").glob("*.jpg"))
    photos = [Image.open(files[n]).convert("RGB") for n in rng.permutation(len(files))[: args.photos]]
    pages = [document(rng) for _ in range(max(1, args.photos // 2))]

    told: dict[str, list[Local]] = defaultdict(list)
    placed: dict[str, list[bool]] = defaultdict(list)
    started, count = time.monotonic(), 0

    def look(kind: str, first: Image.Image, second: Image.Image, way: np.ndarray, box: Box | None = None) -> None:
        nonlocal count
        found = compare_locally(first, second, way)
        told[kind].append(found)
        count += 1
        if box is not None:
            placed[kind].append(any(_meets(place.in_first, box, first.size) for place in found.places))

    for subject, images in (("photo", photos), ("page", [page for page, _ in pages])):
        for image in images:
            for name, (edit, way) in COPIES.items():
                look(f"{subject}, {name}", image, edit(image), way)
    for _, draw in pages:
        for kind in ("digit", "word", "price", "selected row"):
            changed, box = draw(kind)
            plain = draw()[0]
            look(f"page, another {kind}", plain, saved(changed), SAME, box)
            for share in (0.7, 0.5):
                look(f"page, another {kind}, at {share:.0%}", plain, saved(resized(changed, share)), SAME, box)
    for number, photo in enumerate(photos):
        other = photos[number - 1]
        one, box = stamped(photo, 14)
        look("photo, another date stamp", one, saved(stamped(photo, 15)[0]), SAME, box)
        for share, name in ((0.05, "small object"), (0.12, "face-sized region")):
            changed, box = with_object(photo, rng, other, share)
            look(f"photo, another {name}", photo, saved(changed), SAME, box)
        changed, box = with_object(photo, rng, other, 0.35)
        look("photo, another print", photo, saved(changed), SAME, box)
        look("photo, another print, toned", photo, saved(toned(changed, 0.7, 1)), SAME, box)
        one, box = written_over(photo, "when you find it again")
        look("photo, another text", one, saved(written_over(photo, "when you lost it today")[0]), SAME, box)
        changed, box = cut_out(photo)
        look("photo, somebody cut out", photo, saved(changed), SAME, box)
        changed, box = another_background(photo, other)
        look("photo, another background", photo, saved(changed), SAME, box)

    print("| pair | pairs | offered | told to differ | rightly placed | cannot tell | strength: least, median, most |")
    print("|---|---|---|---|---|---|---|")
    for kind, of_kind in told.items():
        blind = sum(not one.can_tell for one in of_kind)
        differ = sum(one.can_tell and bool(one.places) for one in of_kind)
        low, half, high = np.quantile([one.strength for one in of_kind], [0, 0.5, 1])
        right = f"{sum(placed[kind])}" if kind in placed else ""
        print(
            f"| {kind} | {len(of_kind)} | {len(of_kind) - differ - blind} | {differ} | {right} | {blind}"
            f" | {low:.1f}, {half:.1f}, {high:.1f} |"
        )
    print(f"\n{1000 * (time.monotonic() - started) / count:.0f} ms a pair, {count} pairs")


def _meets(place: tuple[float, float, float, float], box: Box, size: tuple[int, int]) -> bool:
    left, top = place[0] * size[0], place[1] * size[1]
    right, bottom = left + place[2] * size[0], top + place[3] * size[1]
    return left < box[2] and right > box[0] and top < box[3] and bottom > box[1]


if __name__ == "__main__":
    main()
