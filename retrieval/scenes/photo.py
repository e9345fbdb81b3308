"""The photo file: a JPEG with the EXIF that a camera would write, so that the filters have something to find."""

from pathlib import Path

import numpy as np
from PIL import Image

from .canvas import pick

CAMERAS = (("Fjord", "Fjord F2"), ("Kestrel", "Kestrel 40"), ("Pocketlight", "P7"), ("Lumo", "Lumo One"))
TOWNS = ((38.7139, -9.1394), (35.0116, 135.7681), (59.9139, 10.7522), (17.0732, -96.7266))  # Lisbon Kyoto Oslo Oaxaca
MAKE, MODEL, ORIENTATION, DATE, EXIF_PART, GPS_PART, TAKEN = 0x010F, 0x0110, 0x0112, 0x0132, 0x8769, 0x8825, 0x9003


def save_photo(image: Image.Image, path: Path, seed: tuple[int, ...]) -> None:
    """Write the JPEG: most have EXIF, half of these a position, and a few lie on their side as phones store them."""
    rng = np.random.default_rng((*seed, 99))
    exif = Image.Exif()
    if rng.random() < 0.8:
        exif[MAKE], exif[MODEL] = pick(rng, *CAMERAS)
        year, month, day = rng.integers(2019, 2026), rng.integers(1, 13), rng.integers(1, 29)
        taken = f"{year}:{month:02}:{day:02} {rng.integers(7, 22):02}:{rng.integers(60):02}:{rng.integers(60):02}"
        exif[DATE] = exif.get_ifd(EXIF_PART)[TAKEN] = taken
        if rng.random() < 0.5:
            latitude, longitude = pick(rng, *TOWNS) + rng.normal(0, 0.01, 2)
            gps = exif.get_ifd(GPS_PART)
            gps[1], gps[2] = "N" if latitude >= 0 else "S", _degrees(latitude)
            gps[3], gps[4] = "E" if longitude >= 0 else "W", _degrees(longitude)
        if image.height > image.width and rng.random() < 0.4:
            image = image.transpose(Image.Transpose.ROTATE_90)
            exif[ORIENTATION] = 6  # "turn me clockwise by a quarter"
    image.save(path, quality=88, exif=exif)


def _degrees(angle: float) -> tuple[float, float, float]:
    """Degrees, minutes, seconds."""
    minutes = abs(angle) * 60
    return float(minutes // 60), float(minutes // 1 % 60), float(round(minutes % 1 * 60, 2))
