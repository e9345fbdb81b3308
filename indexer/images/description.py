"""What people wrote on an image: keywords, rating, title and caption, in XMP, IPTC or EXIF, embedded or beside it.

Surprising: nothing here fails. Each kind of software writes some of these places, often wrongly; what cannot be read
counts as absent. Keywords of all places are joined; of the rest the first place counts that has it: the sidecar, XMP,
IPTC, EXIF.
"""

import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image, IptcImagePlugin

from ..atomic_file import read_plain

MAX_XMP_BYTES = 1 << 20
MAX_KEYWORDS, MAX_KEYWORD, MAX_TEXT = 500, 200, 4000  # of one image; characters; characters of title or caption
SIDECAR = ".xmp"
_TIFF_XMP = 700
_RDF, _DC = "http://www.w3.org/1999/02/22-rdf-syntax-ns#", "http://purl.org/dc/elements/1.1/"
_XMP, _PHOTOSHOP = "http://ns.adobe.com/xap/1.0/", "http://ns.adobe.com/photoshop/1.0/"
_MICROSOFT = "http://ns.microsoft.com/photo/1.0/"
_IPTC_TITLE, _IPTC_KEYWORDS, _IPTC_CAPTION, _IPTC_CHARSET = (2, 5), (2, 25), (2, 120), (1, 90)
_WINDOWS_TITLE, _WINDOWS_KEYWORDS, _RATING = 0x9C9B, 0x9C9E, 0x4746
_BY_CAMERAS = re.compile(r"(?i)olympus digital camera|sony dsc|samsung( digital camera)?|dcim|default|untitled|\W*")


@dataclass(frozen=True)
class Description:
    """What people wrote on an image.

    keywords  in the order written, none twice whatever its case
    rating    1 to 5 stars, 0 for none given, -1 for rejected
    """

    keywords: tuple[str, ...] = ()
    rating: int | None = None
    title: str | None = None
    caption: str | None = None

    def over(self, other: "Description") -> "Description":
        """Both joined; of rating, title and caption this one's count."""
        return Description(
            _keywords([*self.keywords, *other.keywords]),
            other.rating if self.rating is None else self.rating,
            self.title or other.title,
            self.caption or other.caption,
        )


NO_DESCRIPTION = Description()


def read_description(image: Image.Image) -> Description:
    """What an opened image holds."""
    return read_xmp(xmp_of(image)).over(_read_iptc(image)).over(_read_exif(image))


def xmp_of(image: Image.Image) -> bytes:
    """The XMP in an opened image; empty where there is none."""
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or getattr(image, "tag_v2", {}).get(_TIFF_XMP)
    xmp = xmp[0] if isinstance(xmp, tuple) and xmp else xmp
    return xmp.encode("utf-8", "replace") if isinstance(xmp, str) else bytes(xmp or b"")[:MAX_XMP_BYTES]


def sidecar_of(path: str) -> bytes:
    """The XMP beside an image file, in `photo.jpg.xmp` or `photo.xmp`, as photo software lays it; else empty."""
    stem = os.path.splitext(path)[0]
    for place in (f"{path}{SIDECAR}", f"{stem}{SIDECAR}", f"{path}{SIDECAR.upper()}", f"{stem}{SIDECAR.upper()}"):
        try:
            return read_plain(place, MAX_XMP_BYTES)
        except (OSError, ValueError):
            continue
    return b""


def read_xmp(data: bytes) -> Description:
    """What an XMP packet says, embedded or as a file."""
    start, end = data.find(b"<"), data.rfind(b">")
    if start < 0 or b"<!DOCTYPE" in data or b"<!ENTITY" in data:  # XMP has none; entities could unfold without end
        return Description()
    try:
        tree = ElementTree.fromstring(data[start : end + 1])
    except (ElementTree.ParseError, ValueError, LookupError):
        return Description()
    rating = next(_values(tree, f"{{{_XMP}}}Rating"), None)
    return Description(
        _keywords([*_values(tree, f"{{{_DC}}}subject"), *_values(tree, f"{{{_MICROSOFT}}}LastKeywordXMP")]),
        _rating(rating),
        _text(next(_values(tree, f"{{{_DC}}}title"), None) or next(_values(tree, f"{{{_PHOTOSHOP}}}Headline"), None)),
        _text(next(_values(tree, f"{{{_DC}}}description"), None)),
    )


def _values(tree: ElementTree.Element, name: str) -> Iterator[str]:
    """The values of a property: of an attribute, an element's text, or the items of its list; x-default first."""
    for element in tree.iter():
        if name in element.attrib:
            yield element.attrib[name]
        if element.tag == name:
            items = list(element.iter(f"{{{_RDF}}}li"))
            default = "{http://www.w3.org/XML/1998/namespace}lang"
            for item in sorted(items, key=lambda item: item.get(default, "x-default") != "x-default"):
                yield item.text or ""
            if not items:
                yield element.text or ""


def _read_iptc(image: Image.Image) -> Description:
    try:
        fields: dict[tuple[int, int], Any] = IptcImagePlugin.getiptcinfo(image) or {}  # type: ignore[arg-type]
    except Exception:  # damaged blocks raise all kinds
        return Description()
    in_utf8 = b"\x1b%G" in b"".join(_list(fields.get(_IPTC_CHARSET)))
    texts = {key: [_decoded(one, in_utf8) for one in _list(value)] for key, value in fields.items()}
    title, caption = (next(iter(texts.get(key, [])), None) for key in (_IPTC_TITLE, _IPTC_CAPTION))
    return Description(_keywords(texts.get(_IPTC_KEYWORDS, [])), None, _text(title), _text(caption))


def _list(value: Any) -> list[bytes]:
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, bytes)]


def _decoded(data: bytes, in_utf8: bool) -> str:
    """Text in the character set that is declared; undeclared it is UTF-8 where it can be, else Latin-1."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("utf-8" if in_utf8 else "latin-1", "replace")


def _read_exif(image: Image.Image) -> Description:
    try:
        exif = image.getexif()
        title, keywords = (_windows(exif.get(tag)) for tag in (_WINDOWS_TITLE, _WINDOWS_KEYWORDS))
        caption = exif.get(ExifTags.Base.ImageDescription)
        rating = exif.get(_RATING)
    except Exception:
        return Description()
    caption = caption if isinstance(caption, str) and not _BY_CAMERAS.fullmatch(caption.strip(" \0")) else None
    return Description(_keywords(keywords.split(";")), _rating(rating) or None, _text(title), _text(caption))


def _windows(value: Any) -> str:
    """A text of Windows' own tags, UTF-16 in bytes."""
    return bytes(value).decode("utf-16-le", "ignore") if isinstance(value, (bytes, tuple)) else ""


def _keywords(texts: Iterable[str]) -> tuple[str, ...]:
    found: dict[str, str] = {}
    for text in texts:
        if word := (_text(text) or "")[:MAX_KEYWORD]:
            found.setdefault(word.casefold(), word)
    return tuple(found.values())[:MAX_KEYWORDS]


def _text(text: str | None) -> str | None:
    """One line of valid characters; None for none."""
    words = " ".join((text or "").replace("\0", " ").encode("utf-8", "replace").decode().split())
    return words[:MAX_TEXT] or None


def _rating(value: Any) -> int | None:
    try:
        rating = round(float(value))
    except (TypeError, ValueError, OverflowError):
        return None
    return rating if -1 <= rating <= 5 else None
