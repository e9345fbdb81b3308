"""Finds EXIF and XMP where Pillow does not look: in JPEG 2000, and in a JPEG behind a first block that is broken."""

import struct
from collections.abc import Iterator

from PIL import ExifTags, Image, ImageFile

EXIF_HEAD = b"Exif\0\0"
TIFF_HEADS = (b"II*\0", b"MM\0*")
JP2_EXIF = bytes.fromhex("4a706754696666457869662d3e4a5032")  # "JpgTiffExif->JP2"
JP2_XMP = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
MAX_BLOCKS = 64  # of a file; boxes and segments beyond are not looked at
MAX_BLOCK_BYTES = 16 << 20


def put_in_exif(image: ImageFile.ImageFile, data: bytes, name: str) -> None:
    """Give an opened image the EXIF and XMP of its file that Pillow left out.

    data  the whole file
    name  its format, as `sniff` names it
    """
    if name == "JPEG2000":
        for kind, body in _jp2_uuids(data):
            if kind == JP2_XMP:
                image.info.setdefault("xmp", body)
            elif kind == JP2_EXIF:
                image.info.setdefault("exif", EXIF_HEAD + body.removeprefix(EXIF_HEAD))
    elif name == "JPEG" and "exif" in image.info and not _tells_something(image):
        for block in _jpeg_exif_blocks(data):
            image.info["exif"] = EXIF_HEAD + block
            image._exif = None  # what Pillow made of the first one
            if _tells_something(image):
                return


def _tells_something(image: Image.Image) -> bool:
    try:
        exif = image.getexif()
        return bool(dict(exif) or exif.get_ifd(ExifTags.IFD.Exif))
    except Exception:  # damaged blocks raise all kinds
        return False


def _jpeg_exif_blocks(data: bytes) -> Iterator[bytes]:
    """The TIFFs in the Exif segments before the image's first scan."""
    at = 2
    for _ in range(MAX_BLOCKS):
        if data[at : at + 1] != b"\xff" or data[at + 1 : at + 2] in (b"\xda", b""):
            return
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if data[at + 1] == 0xE1 and body.startswith(EXIF_HEAD) and body[6:10] in TIFF_HEADS:
            yield body[6:]
        at += 2 + max(length, 2)


def _jp2_uuids(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The kinds and bodies of a JPEG 2000 file's own boxes."""
    at = 0
    for _ in range(MAX_BLOCKS):
        if at + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if length == 1:
            length, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        end = len(data) if length == 0 else at + length
        if end < at + head:
            return
        if kind == b"uuid" and end - at <= MAX_BLOCK_BYTES:
            yield data[at + head : at + head + 16], data[at + head + 16 : end]
        at = end
