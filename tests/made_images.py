"""Images made for the tests: one whose every turn looks different, and files that mean harm."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def quarters(width: int = 64, height: int = 48, mode: str = "RGB") -> Image.Image:
    """Red, green above blue, white: every turn and flip of it looks different."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    image.paste(WHITE, (width // 2, height // 2, width, height))
    return image.convert(mode)


def encoded(image: Image.Image, format_name: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format_name, **options)
    return file.getvalue()


def png_chunk(kind: bytes, body: bytes, crc_error: int = 0) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ crc_error)


def png_claiming(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"\0" * 100)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def png_with_text_bomb() -> bytes:
    data = encoded(quarters())
    bomb = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * (80 << 20)))
    return data[:33] + bomb + data[33:]


def png_with_wrong_crc() -> bytes:
    header = struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header, crc_error=1) + png_chunk(b"IEND", b"")


def tiff_with_looping_directories() -> bytes:
    return b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0100, 4, 1, 64, 8)


def gif_with_absurd_frame() -> bytes:
    screen = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0xF0, 0, 0) + b"\0\0\0\xff\xff\xff"
    return screen + b"," + struct.pack("<HHHHB", 60000, 60000, 65535, 65535, 0) + b"\x02\x02\x4c\x01\0;"


HOSTILE: dict[str, Callable[[], bytes]] = {
    "bomb.png": lambda: png_claiming(60000, 60000),
    "empty_size.png": lambda: png_claiming(0, 0),
    "text_bomb.png": png_with_text_bomb,
    "wrong_crc.png": png_with_wrong_crc,
    "truncated.jpg": lambda: encoded(quarters(640, 480), "JPEG", quality=95)[:3000],
    "truncated.png": lambda: encoded(quarters(640, 480))[:-200],
    "truncated.webp": lambda: encoded(quarters(640, 480), "WEBP")[:-300],
    "only_head.jpg": lambda: b"\xff\xd8\xff\xe0",
    "noise.jpg": lambda: b"\xff\xd8\xff\xe0" + np.random.default_rng(0).bytes(2000),
    "noise.avif": lambda: b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + np.random.default_rng(0).bytes(500),
    "noise.jp2": lambda: encoded(quarters(), "JPEG2000")[:90] + np.random.default_rng(0).bytes(500),
    "loop.tiff": tiff_with_looping_directories,
    "frame.gif": gif_with_absurd_frame,
    "bomb.ppm": lambda: b"P6 50000 50000 255\n",
    "bomb.bmp": lambda: b"BM" + struct.pack("<IIIIiiHHI", 0, 0, 54, 40, 70000, 70000, 1, 24, 0) + bytes(20),
}
