"""Tags written out as XMP sidecars, where photo software reads them as keywords.

What another program wrote is never touched: a sidecar that is there is replaced only if seenit wrote it.
"""

from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from ..atomic_file import atomic_file, read_plain
from ..errors import os_reason
from ..images.description import MAX_XMP_BYTES, SIDECAR
from .index import Index

_TOOLKIT = b'x:xmptk="seenit"'
_PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="seenit">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/">
   <dc:subject><rdf:Bag>{items}</rdf:Bag></dc:subject>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
"""


@dataclass(frozen=True)
class SidecarsWritten:
    """written: sidecars; left: a line for each that could not be written, or was another program's."""

    written: int
    left: tuple[str, ...]


def write_sidecars(index: str | Path) -> SidecarsWritten:
    """Write `photo.jpg.xmp` beside every tagged image of an index, with its tags and its own keywords as dc:subject."""
    written, left = 0, []
    with Index.open(index) as opened:
        for record in opened.store.scroll():
            if not record.tags:
                continue
            keywords = dict.fromkeys([*record.metadata.keywords, *record.tags])
            items = "".join(f"<rdf:li>{escape(_valid(keyword))}</rdf:li>" for keyword in keywords)
            packet = _PACKET.format(items=items).encode()
            for file in record.files:
                image = Path(opened.roots.path(file.key))
                try:
                    if _write(image, packet):
                        written += 1
                    else:
                        left.append(f"{image}{SIDECAR}: another program wrote it; it was left as it is")
                except OSError as error:
                    left.append(f"{image}{SIDECAR}: {os_reason(error)}")
    return SidecarsWritten(written, tuple(left))


def _write(image: Path, packet: bytes) -> bool:
    """Whether the sidecar holds the packet now; False where one of another program is there."""
    if not image.is_file():
        raise FileNotFoundError(2, "its image is not there")
    for place in (image.with_name(image.name + SIDECAR), image.with_suffix(SIDECAR)):
        if place.is_symlink() or place.exists():
            present = read_plain(place, MAX_XMP_BYTES)
            if _TOOLKIT not in present:
                return False
            if present == packet:
                return True
    with atomic_file(image.with_name(image.name + SIDECAR)) as file:
        file.write(packet)
    return True


def _valid(text: str) -> str:
    """Without the characters that XML cannot hold."""
    text = text.encode("utf-8", "replace").decode()
    return "".join(character for character in text if character.isprintable() or character == " ")
