"""Copies of photos as people make them, in the manner of Transformed UKBench, and photos that only look like copies.

Each original is edited in every way of EDITS. Around the copies lie photos that are none: other photos of the same
motif (covers, buildings, paintings, landmarks and products photographed twice) and photos of anything.
"""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps

SETS = ("smvs_dvd_covers", "smvs_landmarks", "mcv_paintings", "paris", "grocery")
ORIGINAL_ROLES = {"gallery", "both"}
LEFT_OUT_ROLES = {"clean_twin", "iconic"}  # clean twins are the same photos as the queries, without their noise
BESIDE = 60  # photos that lie beside others in collages, and nowhere else
Edit = Callable[[Image.Image, np.random.Generator, list[Image.Image]], Image.Image]


@dataclass(frozen=True)
class Labelled:
    """One file of the set.

    shows  names of the original photos that are in it; two files are copies where they share one
    kind   how it was made; "original", "motif" for another photo of the set, "other" for anything
    motif  what it is a photo of; empty where nothing is known
    half   "tune" or "report": by original, so that nothing is reported on what it was chosen on
    """

    path: str
    shows: tuple[str, ...]
    kind: str
    motif: str
    half: str


def resized(image: Image.Image, by: float) -> Image.Image:
    return image.resize((round(image.width * by), round(image.height * by)), Image.Resampling.LANCZOS)


def cropped(image: Image.Image, rng: np.random.Generator, share: float) -> Image.Image:
    """A window of `share` of each side, anywhere."""
    width, height = round(image.width * share), round(image.height * share)
    left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def tilted(image: Image.Image, rng: np.random.Generator, degrees: float, whole: bool) -> Image.Image:
    """Turned a little; the whole with black corners, or the window that has none, as a straightened horizon."""
    turned = image.rotate(degrees if rng.random() < 0.5 else -degrees, Image.Resampling.BICUBIC, expand=whole)
    if whole:
        return turned
    angle = np.deg2rad(degrees)
    long, short = max(image.size), min(image.size)
    share = short / (long * np.sin(angle) + short * np.cos(angle))
    width, height = round(image.width * share), round(image.height * share)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return turned.crop((left, top, left + width, top + height))


def toned(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Lighter or darker, harder or softer, more or less colourful."""
    gamma = float(rng.choice([0.6, 1.7]))
    bent = image.point([round(255 * (value / 255) ** gamma) for value in range(256)] * 3)
    bent = ImageEnhance.Contrast(bent).enhance(float(rng.choice([0.6, 1.6])))
    return ImageEnhance.Color(bent).enhance(float(rng.choice([0.3, 1.9])))


def captioned(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A line of large letters over it, on a band or bare."""
    drawn, size = image.copy(), max(image.height // 8, 12)
    draw, top = ImageDraw.Draw(drawn), int(rng.choice([0.05, 0.45, 0.8]) * image.height)
    if rng.random() < 0.5:
        draw.rectangle((0, top, image.width, top + round(1.3 * size)), fill=(255, 255, 255))
    draw.text((image.width // 12, top), "when you find it again", fill=(200, 30, 30), font=ImageFont.load_default(size))
    return drawn


def framed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return ImageOps.expand(image, round(0.12 * min(image.size)), tuple(rng.integers(0, 256, 3).tolist()))


def collage(image: Image.Image, rng: np.random.Generator, others: list[Image.Image]) -> Image.Image:
    """It and three others as four quarters."""
    parts = [image, *others[:3]]
    width, height = image.width // 2, image.height // 2
    sheet = Image.new("RGB", (2 * width, 2 * height))
    for place, part in zip(rng.permutation(4).tolist(), parts, strict=True):
        sheet.paste(ImageOps.fit(part, (width, height)), (place % 2 * width, place // 2 * height))
    return resized(sheet, 1.5)


def with_noise(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    noise = rng.normal(0, 18, (image.height, image.width, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def posted(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """What an image goes through: cut, toned, shrunk, written over."""
    return captioned(resized(toned(cropped(image, rng, 0.85), rng), 0.6), rng)


EDITS: dict[str, Edit] = {
    "resized to 40 %": lambda image, rng, others: resized(image, 0.4),
    "recompressed": lambda image, rng, others: image,  # saved at quality 12
    "cropped to 80 %": lambda image, rng, others: cropped(image, rng, 0.8),
    "cropped to 50 %": lambda image, rng, others: cropped(image, rng, 0.5),
    "mirrored": lambda image, rng, others: ImageOps.mirror(image),
    "upside down mirrored": lambda image, rng, others: ImageOps.flip(image),
    "turned by 90": lambda image, rng, others: image.transpose(Image.Transpose.ROTATE_90),
    "turned by 180": lambda image, rng, others: image.transpose(Image.Transpose.ROTATE_180),
    "tilted by 25": lambda image, rng, others: tilted(image, rng, 25, whole=True),
    "tilted by 5": lambda image, rng, others: tilted(image, rng, 5, whole=False),
    "squeezed to 70 %": lambda image, rng, others: image.resize((round(0.7 * image.width), image.height)),
    "blurred": lambda image, rng, others: image.filter(ImageFilter.GaussianBlur(min(image.size) / 110)),
    "toned": lambda image, rng, others: toned(image, rng),
    "grey": lambda image, rng, others: image.convert("L").convert("RGB"),
    "noise": lambda image, rng, others: with_noise(image, rng),
    "caption": lambda image, rng, others: captioned(image, rng),
    "frame": lambda image, rng, others: framed(image, rng),
    "part of a collage": collage,
    "cut, toned, shrunk, captioned": lambda image, rng, others: posted(image, rng),
    "mirrored and cropped to 80 %": lambda image, rng, others: ImageOps.mirror(cropped(image, rng, 0.8)),
}
QUALITY = {"recompressed": 12}  # of the JPEG; otherwise 85


def make_copies(data: Path, out: Path, originals_of_a_set: int, traps: int | None = None) -> list[Labelled]:
    """Write the set below `out`; the same set for the same arguments.

    data   the folder with the sets of SETS and `distractors`
    traps  photos of each set, and of the distractors, that are no copies; default: all
    """
    labelled: list[Labelled] = []
    files = sorted((data / "distractors").glob("*.jpg"))
    beside_it = [(path.name, Image.open(path).convert("RGB")) for path in files[:BESIDE]]
    for name in SETS:
        rows = list(csv.DictReader((data / name / "manifest.csv").open(encoding="utf-8")))
        rows = [row for row in rows if row["role"] not in LEFT_OUT_ROLES]
        candidates = [row["path"] for row in rows if row["role"] in ORIGINAL_ROLES]
        step = max(len(candidates) // originals_of_a_set, 1)
        originals = candidates[step // 2 :: step][:originals_of_a_set]
        others_of_it = [row["path"] for row in rows if row["path"] not in originals][:traps]
        for row in rows:
            if row["path"] not in originals and row["path"] not in others_of_it:
                continue
            kind = "original" if row["path"] in originals else "motif"
            half = "report" if kind == "motif" or originals.index(row["path"]) % 2 else "tune"
            image = Image.open(data / name / row["path"]).convert("RGB")
            photo, motif = f"{name}/{row['path']}", f"{name}/{row['instance']}"
            place = out / name / row["path"].replace("/", "_")
            labelled.append(Labelled(_save(image, place, 92), (photo,), kind, motif, half))
            if kind != "original":
                continue
            for number, (edit, make) in enumerate(EDITS.items()):
                rng = np.random.default_rng([len(labelled), number])
                others = [beside_it[n] for n in rng.choice(len(beside_it), 3, replace=False)]
                edited = make(image, rng, [other for _, other in others])
                beside = place.with_name(f"{place.stem}__{edit.replace(' ', '_').replace('%', 'pc')}.jpg")
                shows = (photo, *(name for name, _ in others)) if make is collage else (photo,)
                labelled.append(Labelled(_save(edited, beside, QUALITY.get(edit, 85)), shows, edit, motif, half))
    for path in files[BESIDE:][:traps]:
        image = Image.open(path).convert("RGB")
        labelled.append(Labelled(_save(image, out / "other" / path.name, 92), (path.name,), "other", "", "report"))
    return labelled


def _save(image: Image.Image, place: Path, quality: int) -> str:
    place.parent.mkdir(parents=True, exist_ok=True)
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=quality)
    place.with_suffix(".jpg").write_bytes(packed.getvalue())
    return str(place.with_suffix(".jpg"))
