"""Keywords, ratings, titles and captions: out of every place that software writes them to, and out of damaged ones."""

import io
import struct
from pathlib import Path
from typing import Any

import pytest
from conftest import draw_photo
from PIL import Image

from indexer.images.decode import decode
from indexer.images.description import Description, read_xmp, sidecar_of
from indexer.images.embedded import JP2_EXIF, JP2_XMP
from indexer.images.jobs import Decoded, Job, Settings, read_image
from indexer.index.index import Index
from indexer.index.tag_sidecars import write_sidecars
from indexer.index.tags import change_tags
from indexer.store.protocol import Filter
from indexer.sync.options import SyncOptions
from indexer.sync.sync import sync_folder

LIGHTROOM = """<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""
 xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:exif="http://ns.adobe.com/exif/1.0/" xmp:Rating="4" exif:DateTimeOriginal="2019-07-04T12:00:00">
<dc:subject><rdf:Bag><rdf:li>Straße</rdf:li><rdf:li>two words</rdf:li><rdf:li>STRASSE</rdf:li></rdf:Bag></dc:subject>
<dc:title><rdf:Alt><rdf:li xml:lang="de">Turm</rdf:li><rdf:li xml:lang="x-default">Tower</rdf:li></rdf:Alt></dc:title>
<dc:description><rdf:Alt><rdf:li xml:lang="x-default">A
 tower &amp; a tree</rdf:li></rdf:Alt></dc:description></rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>"""
SAID = Description(("Straße", "two words"), 4, "Tower", "A tower & a tree")


def saved(format_name: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(file, format_name, **options)
    return file.getvalue()


def iptc(*fields: tuple[int, int, bytes]) -> bytes:
    """The APP13 segment of a JPEG with these fields."""
    records = b"".join(b"\x1c" + struct.pack(">BBH", *field[:2], len(field[2])) + field[2] for field in fields)
    block = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0" + struct.pack(">I", len(records)) + records
    block += b"\0" * (len(records) % 2)
    return b"\xff\xed" + struct.pack(">H", len(block) + 2) + block


def with_segment(jpeg: bytes, segment: bytes) -> bytes:
    return jpeg[:2] + segment + jpeg[2:]


def test_xmp_of_photo_software() -> None:
    assert read_xmp(LIGHTROOM.encode()) == SAID
    as_elements = LIGHTROOM.replace(' xmp:Rating="4"', "").replace(
        "<dc:subject>", "<xmp:Rating>4</xmp:Rating><dc:subject>"
    )
    assert read_xmp(as_elements.encode()) == SAID


@pytest.mark.parametrize("format_name", ["JPEG", "WEBP", "AVIF", "PNG", "TIFF", "JPEG2000", "HEIF"])
def test_embedded_xmp_of_every_format(format_name: str) -> None:
    if format_name == "PNG":
        from PIL import PngImagePlugin

        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", LIGHTROOM)
        data = saved("PNG", pnginfo=info)
    elif format_name == "TIFF":
        data = saved("TIFF", tiffinfo={700: LIGHTROOM.encode()})
    elif format_name == "JPEG2000":
        data = with_box(saved("JPEG2000"), JP2_XMP, LIGHTROOM.encode())
    elif format_name == "HEIF":
        import pillow_heif

        file = io.BytesIO()
        pillow_heif.from_pillow(Image.new("RGB", (40, 30), "red")).save(file, xmp=LIGHTROOM.encode())
        data = file.getvalue()
    else:
        data = saved(format_name, xmp=LIGHTROOM.encode())
    found = decode(data)
    assert found.description == SAID and found.format == format_name
    assert found.date_source == "xmp" and found.taken_at is not None and found.taken_at.year == 2019


def with_box(jp2: bytes, kind: bytes, body: bytes) -> bytes:
    """With a uuid box before the codestream."""
    at = jp2.index(b"jp2c") - 4
    return jp2[:at] + struct.pack(">I4s", 24 + len(body), b"uuid") + kind + body + jp2[at:]


def exif_of(date: str, **more: Any) -> bytes:
    exif = Image.Exif()
    exif[271], exif[272] = "Canon", "EOS 5D"
    exif.get_ifd(0x8769)[36867] = date
    for tag, value in more.items():
        exif[int(tag[1:])] = value
    return exif.tobytes()


def test_exif_in_jpeg_2000() -> None:
    tiff = exif_of("2020:05:06 07:08:09", _274=6).removeprefix(b"Exif\0\0")
    found = decode(with_box(saved("JPEG2000"), JP2_EXIF, tiff))
    assert found.taken_at is not None and found.taken_at.year == 2020 and found.camera == "Canon EOS 5D"
    assert (found.width, found.height) == (30, 40)  # upright


@pytest.mark.parametrize("broken", [b"", b"\0" * 40, b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\0\0\0\0\0\0"])
def test_exif_behind_a_broken_first_block(broken: bytes) -> None:
    segment = b"\xff\xe1" + struct.pack(">H", 8 + len(broken)) + b"Exif\0\0" + broken
    found = decode(with_segment(saved("JPEG", exif=exif_of("2020:05:06 07:08:09", _274=6)), segment))
    assert found.taken_at is not None and found.taken_at.year == 2020
    assert (found.width, found.height) == (30, 40)


@pytest.mark.parametrize(
    ("text", "turned"), [("6", True), ("Rotate 90 CW", True), ("right-top", True), ("upside", False)]
)
def test_an_orientation_written_as_text(text: str, turned: bool) -> None:
    value = text.encode() + b"\0"
    place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(">I", 26)
    tiff = b"MM\0*" + struct.pack(">IHHHI", 8, 1, 274, 2, len(value)) + place + b"\0\0\0\0" + value
    data = with_segment(saved("JPEG"), b"\xff\xe1" + struct.pack(">H", 8 + len(tiff)) + b"Exif\0\0" + tiff)
    assert (decode(data).width == 30) == turned


def test_iptc_in_its_character_set() -> None:
    words = [(2, 25, "Straße".encode("latin-1")), (2, 25, b"tree"), (2, 5, b"Tower"), (2, 120, b"A tower")]
    assert decode(with_segment(saved("JPEG"), iptc(*words))).description == Description(
        ("Straße", "tree"), None, "Tower", "A tower"
    )
    unicode = [(1, 90, b"\x1b%G"), (2, 25, "日本".encode())]
    assert decode(with_segment(saved("JPEG"), iptc(*unicode))).description.keywords == ("日本",)


def test_what_windows_and_cameras_write_into_exif() -> None:
    keywords, title = (text.encode("utf-16-le") + b"\0\0" for text in ("tree;Tower", "A title"))
    exif = exif_of("2020:05:06 07:08:09", _40094=keywords, _40091=title, _18246=3, _270="A caption")
    assert decode(saved("JPEG", exif=exif)).description == Description(("tree", "Tower"), 3, "A title", "A caption")
    plain = decode(saved("JPEG", exif=exif_of("2020:05:06 07:08:09", _270="OLYMPUS DIGITAL CAMERA  ", _18246=0)))
    assert plain.description == Description()


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa">]>' + LIGHTROOM.replace("Tower", "&a;")


@pytest.mark.parametrize(
    "data", [b"", b"<", b"<x>", b"\xff" * 99, BOMB.encode(), LIGHTROOM.encode()[:300], b"<a/><b/>"]
)
def test_damaged_or_hostile_xmp_is_none(data: bytes) -> None:
    assert read_xmp(data) == Description()


def test_nonsense_is_held_to_bounds() -> None:
    many = "".join(f"<rdf:li>{n} {'x' * 1000}\u0007</rdf:li>".replace("\u0007", "") for n in range(2000))
    found = read_xmp(LIGHTROOM.replace("<rdf:li>Straße</rdf:li>", many).replace('Rating="4"', 'Rating="1e99"').encode())
    assert len(found.keywords) == 500 and max(map(len, found.keywords)) == 200 and found.rating is None


def test_a_sidecar_comes_before_what_is_embedded(tmp_path: Path) -> None:
    photo = draw_photo(tmp_path / "photo.jpg", 0, xmp=LIGHTROOM.encode())
    beside = LIGHTROOM.replace("Tower", "Another").replace("two words", "fresh").replace('"4"', '"1"')
    (tmp_path / "photo.xmp").write_text(beside)
    outcome = read_image(Job(str(photo)), Settings(resolution=56))
    assert isinstance(outcome, Decoded)
    metadata = outcome.metadata
    assert metadata.keywords == ("Straße", "fresh", "two words") and (metadata.rating, metadata.title) == (1, "Another")
    (tmp_path / "photo.jpg.xmp").write_text(LIGHTROOM)
    assert sidecar_of(str(photo)) == LIGHTROOM.encode()  # the more exact name


def test_a_sidecar_that_is_a_link_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text(LIGHTROOM)
    (tmp_path / "photo.xmp").symlink_to(tmp_path / "elsewhere")
    assert sidecar_of(str(tmp_path / "photo.jpg")) == b""


def keywords_of(index: Path) -> dict[str, tuple[str, ...]]:
    with Index.open(index) as opened:
        return {Path(record.files[0].key).name: record.metadata.keywords for record in opened.store.scroll()}


@pytest.mark.slow
def test_a_run_notices_sidecars_that_come_change_and_go(photos: Path, tiny_backbone: Path) -> None:
    options = SyncOptions(resolution=56, workers=1)
    sync_folder(photos, options=options, backbone=tiny_backbone)
    sidecar = photos / "a" / "1.xmp"
    sidecar.write_text(LIGHTROOM)
    assert sync_folder(photos, options=options).embedded == 1
    assert keywords_of(photos / ".seenit")["1.jpg"] == SAID.keywords
    assert sync_folder(photos, options=options).embedded == 0
    with Index.open(photos / ".seenit") as index:
        assert index.store.count(Filter(keywords=("strasse",), rating=4)) == 1
        assert index.store.count(Filter(rating=5)) == 0
    sidecar.write_text(LIGHTROOM.replace("two words", "other words"))
    sync_folder(photos, options=options)
    assert keywords_of(photos / ".seenit")["1.jpg"] == ("Straße", "other words")
    sidecar.unlink()
    sync_folder(photos, options=options)
    assert keywords_of(photos / ".seenit")["1.jpg"] == ()


@pytest.mark.slow
def test_tags_as_sidecars_replace_none_of_another_program(photos: Path, tiny_backbone: Path) -> None:
    (photos / "a" / "1.xmp").write_text(LIGHTROOM)
    sync_folder(photos, options=SyncOptions(resolution=56, workers=1), backbone=tiny_backbone)
    index = photos / ".seenit"
    change_tags(index, [photos / "a"], lambda tags: tags | {"<holi & day>", "tree"})
    done = write_sidecars(index)
    assert done.written == 3 and len(done.left) == 1 and "another program" in done.left[0]
    assert (photos / "a" / "1.xmp").read_text() == LIGHTROOM and not (photos / "a" / "1.jpg.xmp").exists()
    assert read_xmp((photos / "a" / "0.jpg.xmp").read_bytes()).keywords == ("<holi & day>", "tree")
    change_tags(index, [photos / "a" / "0.jpg"], lambda tags: tags - {"tree"})
    assert write_sidecars(index).written == 3  # its own are replaced
    assert read_xmp((photos / "a" / "0.jpg.xmp").read_bytes()).keywords == ("<holi & day>",)
