"""Finding files, telling formats by content, and decoding every kind of image upright, opaque and within limits."""

import io
import os
import struct
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_images import BLUE, GREEN, HOSTILE, RED, WHITE, encoded, quarters
from PIL import Image, ImageCms, ImageOps, features

from indexer.errors import ImageError, SeenitError
from indexer.images.colour import to_rgb
from indexer.images.decode import Limits, decode, decode_file, is_image, sniff
from indexer.images.exif import date_in_name
from indexer.images.find import FoundFile, Unreadable, find_files
from indexer.images.jobs import Decoded, Job, Settings, read_image
from indexer.images.preprocess import choose_grid, possible_grids, preprocess, resize_to_grid
from indexer.images.raw import is_raw, raw_installed
from indexer.printable import printable, quoted


def corners(pixels: np.ndarray) -> list[tuple[int, ...]]:
    """The middles of the four quarters, row by row, rounded to full on or off."""
    height, width = pixels.shape[:2]
    points = [(height // 4, width // 4), (height // 4, 3 * width // 4)]
    points += [(3 * height // 4, width // 4), (3 * height // 4, 3 * width // 4)]
    return [tuple(255 * int(value > 127) for value in pixels[point]) for point in points]


def found(folder: Path, **options: Any) -> list[str]:
    files = [file for file in find_files([folder], **options) if isinstance(file, FoundFile)]
    return [Path(file.path).relative_to(folder).as_posix() for file in files]


# Finding


def test_files_come_in_order_with_size_and_time(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "b/10.jpg", "a.txt", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * len(name))
    assert found(tmp_path) == ["a.txt", "c.png", "b/10.jpg", "b/2.jpg"]
    file = next(find_files([tmp_path]))
    assert isinstance(file, FoundFile) and os.path.isabs(file.path)
    assert (file.size, file.mtime_ns) == (5, (tmp_path / "a.txt").stat().st_mtime_ns)


def test_hidden_system_and_excluded_folders_are_left_out(tmp_path: Path) -> None:
    for name in (".seenit/x.jpg", ".hidden.jpg", "@eaDir/x.jpg", "$RECYCLE.BIN/x.jpg", "index/x.jpg", "kept/x.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert found(tmp_path, exclude_dirs=[tmp_path / "index", tmp_path / "not there"]) == ["kept/x.jpg"]


def test_a_folder_asked_for_by_name_may_be_hidden(tmp_path: Path) -> None:
    (tmp_path / ".photos").mkdir()
    (tmp_path / ".photos" / "x.jpg").touch()
    assert found(tmp_path / ".photos") == ["x.jpg"]


def test_links_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "z").mkdir(parents=True)
    outside.mkdir()
    (root / "z" / "real.jpg").touch()
    (outside / "far.jpg").touch()
    try:
        (root / "a_link_to_z").symlink_to(root / "z", target_is_directory=True)
    except OSError:
        pytest.skip("this system does not let us make links")
    (root / "loop").symlink_to(root, target_is_directory=True)
    (root / "out").symlink_to(outside, target_is_directory=True)
    (outside / "back").symlink_to(root, target_is_directory=True)
    (root / "file.jpg").symlink_to(outside / "far.jpg")
    (root / "broken.jpg").symlink_to(root / "nothing")
    (root / "itself.jpg").symlink_to(root / "itself.jpg")
    assert found(root, follow_links=True) == ["file.jpg", "z/real.jpg", "out/far.jpg"]
    unreadable = [entry for entry in find_files([root], follow_links=True) if isinstance(entry, Unreadable)]
    assert [Path(entry.path).name for entry in unreadable] == ["broken.jpg", "itself.jpg"]
    assert unreadable[0].reason == "the link leads nowhere"


def test_links_that_lead_out_are_not_followed_unless_asked_for(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "a").mkdir(parents=True)
    outside.mkdir()
    (root / "a/real.jpg").touch()
    (outside / "far.jpg").touch()
    try:
        (root / "within.jpg").symlink_to(root / "a/real.jpg")
    except OSError:
        pytest.skip("this system does not let us make links")
    (root / "out.jpg").symlink_to(outside / "far.jpg")
    (root / "out").symlink_to(outside, target_is_directory=True)
    (root / "gone.jpg").symlink_to(outside / "gone.jpg")
    told: list[str] = []
    assert found(root, on_link_out=told.append) == ["within.jpg", "a/real.jpg"]
    assert told == [str(root / name) for name in ("gone.jpg", "out", "out.jpg")]
    assert not [entry for entry in find_files([root]) if isinstance(entry, Unreadable)]
    assert "out/far.jpg" in found(root, follow_links=True)
    through = tmp_path / "through"
    through.symlink_to(root, target_is_directory=True)
    assert found(through) == ["within.jpg", "a/real.jpg"], "the folder that was named may be a link"


def test_patterns_and_ignore_files_leave_out(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.tif", "raw/b.jpg", "trip/raw/c.jpg", "trip/keep.tif", "trip/d.jpg", "x/[odd].jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    every = {"a.jpg", "a.tif", "raw/b.jpg", "trip/raw/c.jpg", "trip/keep.tif", "trip/d.jpg", "x/[odd].jpg"}
    assert set(found(tmp_path)) == every
    assert set(found(tmp_path, exclude=["*.tif"])) == every - {"a.tif", "trip/keep.tif"}
    assert set(found(tmp_path, exclude=["/raw/", "x"])) == every - {"raw/b.jpg", "x/[odd].jpg"}
    assert set(found(tmp_path, exclude=["raw/"])) == every - {"raw/b.jpg", "trip/raw/c.jpg"}
    assert set(found(tmp_path, exclude=["trip/*.jpg"])) == every - {"trip/d.jpg"}
    (tmp_path / "trip/.seenitignore").write_bytes(b"# not these\n!keep.tif\n\nd.jpg\r\n\xff\n")
    assert set(found(tmp_path, exclude=["*.tif"])) == every - {"a.tif", "trip/d.jpg"}
    with pytest.raises(SeenitError, match="no pattern"):
        found(tmp_path, exclude=["!"])
    (tmp_path / "trip/.seenitignore").write_text("!\nd.jpg\n[z-a]\n")
    entries = list(find_files([tmp_path]))
    assert [entry.reason for entry in entries if isinstance(entry, Unreadable)] == [
        "line 1 is no pattern",
        "line 3 is no pattern",
    ]
    assert set(found(tmp_path)) == every - {"trip/d.jpg"}


def test_times_of_any_year_are_listed(tmp_path: Path) -> None:
    (tmp_path / "late.jpg").touch()
    os.utime(tmp_path / "late.jpg", (10_413_792_000, 10_413_792_000))  # the year 2300
    (file,) = find_files([tmp_path])
    assert isinstance(file, FoundFile) and file.mtime_ns == (1 << 63) - 1


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain name's.jpg", "plain name's.jpg"),
        ("ünï 日本.jpg", "ünï 日本.jpg"),
        ("new\nline.jpg", r"$'new\nline.jpg'"),
        ("x\x1b]0;title\x07\x1b[31m.jpg", r"$'x\x1b]0;title\x07\x1b[31m.jpg'"),
        ("caf\udce9.jpg", r"$'caf\xe9.jpg'"),
        ("a\u202egpj.exe", r"$'a\u202egpj.exe'"),
        ("it's\ta \\.jpg", r"$'it\'s\ta \\.jpg'"),
        ("c1\x9b31m", r"$'c1\u009b31m'"),
    ],
)
def test_names_are_quoted_where_a_terminal_would_obey_them(name: str, shown: str) -> None:
    assert quoted(name) == shown
    assert printable(f"cannot read {name}: gone").isprintable()


def test_folders_inside_each_other_are_listed_once(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.jpg").touch()
    assert len(list(find_files([tmp_path, tmp_path / "in", tmp_path]))) == 1


def test_a_folder_that_may_not_be_read_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "x.jpg").touch()
    if hasattr(os, "geteuid") and os.geteuid() != 0:
        (tmp_path / "locked").chmod(0)
    else:  # root may read everything, so the refusal is played
        scandir = os.scandir

        def refusing(folder: str) -> Any:
            if folder.endswith("locked"):
                raise PermissionError(13, "Permission denied", folder)
            return scandir(folder)

        monkeypatch.setattr(os, "scandir", refusing)
    entries = list(find_files([tmp_path]))
    (tmp_path / "locked").chmod(0o700)
    assert [type(entry) for entry in entries] == [FoundFile, Unreadable]
    assert entries[1] == Unreadable(str(tmp_path / "locked"), "permission denied")


def test_a_root_that_is_not_there_is_an_error_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root, reason in ((tmp_path / "gone", "no such file"), (tmp_path / "file", "not a folder")):
        with pytest.raises(SeenitError, match=reason) as error:
            list(find_files([root]))
        assert "\n" not in str(error.value) and str(root) in str(error.value)


def test_a_root_that_goes_away_meanwhile_does_not_look_empty(tmp_path: Path) -> None:
    root = tmp_path / "disk"
    (root / "sub").mkdir(parents=True)
    (root / "a.jpg").touch()
    (root / "sub" / "b.jpg").touch()
    listing = find_files([root])
    assert isinstance(next(listing), FoundFile)
    root.rename(tmp_path / "unplugged")
    with pytest.raises(SeenitError):
        list(listing)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="the system keeps names in Unicode")
def test_names_that_are_not_utf8_come_back_openable(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9\xff.jpg"
    with open(name, "wb") as file:
        file.write(b"here")
    entry = next(find_files([tmp_path]))
    assert isinstance(entry, FoundFile) and os.fsencode(entry.path) == name
    assert Path(entry.path).read_bytes() == b"here"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_what_is_not_a_regular_file_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert found(tmp_path) == []
    assert not is_image(tmp_path / "pipe.jpg")  # would wait for a writer


# Telling formats


@pytest.mark.parametrize(
    ("format_name", "options"),
    [
        *((name, {}) for name in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")),
        ("JPEG2000", {"no_jp2": True}),
    ],
)
def test_every_format_is_told_and_decoded_by_content(format_name: str, options: dict[str, Any]) -> None:
    data = encoded(quarters(), format_name, **options)
    assert sniff(data[:64]) == format_name
    image = decode(data)
    assert (image.format, image.width, image.height) == (format_name, 64, 48)
    assert corners(image.pixels) == [RED, GREEN, BLUE, WHITE]


def test_heic_is_read() -> None:
    import pillow_heif

    file = io.BytesIO()
    pillow_heif.from_pillow(quarters()).save(file, quality=90)
    assert sniff(file.getvalue()[:64]) == "HEIF"
    assert corners(decode(file.getvalue()).pixels) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"P6 is a path",
        b"BMW is a car, and a long enough text",
        b"%!PS-Adobe-3.0 EPSF-3.0",
        b"8BPS\0\1",
        b"RIFF\0\0\0\0WAVEfmt ",
        b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
        b"<svg xmlns='x'/>",
        b"%PDF-1.7",
    ],
)
def test_other_files_are_not_images(data: bytes) -> None:
    assert sniff(data) is None
    with pytest.raises(ImageError, match="not an image"):
        decode(data)


# Decoding


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("region", [None, (32, 0, 32, 24)])
def test_images_are_turned_upright(orientation: int, region: tuple[int, int, int, int] | None) -> None:
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that undoes the turn
    image = quarters() if orientation == 1 else quarters().transpose(Image.Transpose(inverse[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(encoded(image, "JPEG", exif=exif, quality=95, subsampling=0), region=region)
    assert (decoded.width, decoded.height) == (64, 48)
    if region is None:
        assert corners(decoded.pixels) == [RED, GREEN, BLUE, WHITE]
    else:
        assert decoded.pixels.shape == (24, 32, 3) and corners(decoded.pixels) == [GREEN] * 4
        reduced = decode(encoded(image, "JPEG", exif=exif), region=region, target_px=12)
        assert reduced.pixels.shape == (12, 16, 3) and corners(reduced.pixels) == [GREEN] * 4


def with_alpha() -> Image.Image:
    image = quarters().convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    return image


def palette_with_transparent_red() -> bytes:
    image = quarters().convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    return encoded(image, "PNG", transparency=image.getpixel((0, 0)))


def grey_ramp(dtype: str, top: float) -> Image.Image:
    return Image.fromarray(np.linspace(0, top, 64 * 48).reshape(48, 64).astype(dtype))


@pytest.mark.parametrize(
    ("data", "first", "last"),
    [
        (encoded(with_alpha()), WHITE, WHITE),
        (encoded(with_alpha(), "WEBP", lossless=True), WHITE, WHITE),
        (encoded(with_alpha().convert("LA")), WHITE, WHITE),
        (palette_with_transparent_red(), WHITE, WHITE),
        (encoded(quarters(mode="P")), RED, WHITE),
        (encoded(quarters(mode="L").point(lambda value: 255 * (value > 100), "1")), (0, 0, 0), WHITE),
        (encoded(quarters(mode="CMYK"), "JPEG", quality=95), RED, WHITE),
        (encoded(quarters(mode="CMYK"), "TIFF"), RED, WHITE),
        (encoded(grey_ramp("u2", 65535)), (0, 0, 0), WHITE),
        (encoded(grey_ramp("u2", 65535), "TIFF"), (0, 0, 0), WHITE),
        (encoded(grey_ramp("i4", 1 << 30), "TIFF"), (0, 0, 0), WHITE),
        (encoded(grey_ramp("f4", 1), "TIFF"), (0, 0, 0), WHITE),
        (encoded(grey_ramp("f4", 255), "TIFF"), (0, 0, 0), WHITE),
        (encoded(grey_ramp("f4", 7e6), "TIFF"), (0, 0, 0), WHITE),
        (b"P5 2 1 65535\n\0\0\xff\xff", (0, 0, 0), WHITE),
    ],
    ids=lambda value: None if isinstance(value, tuple) else sniff(value[:64]),
)
def test_every_kind_of_pixel_becomes_opaque_rgb(data: bytes, first: tuple[int, ...], last: tuple[int, ...]) -> None:
    pixels = decode(data).pixels
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
    np.testing.assert_allclose(pixels[0, 0], first, atol=6)
    np.testing.assert_allclose(pixels[-1, -1], last, atol=6)


def test_sixteen_bits_keep_their_scale_rather_than_clip() -> None:
    pixels = decode(encoded(grey_ramp("u2", 65535))).pixels[..., 0].ravel().astype(float)
    np.testing.assert_allclose(pixels, np.linspace(0, 255, pixels.size), atol=1)
    assert decode(encoded(grey_ramp("u2", 6553))).pixels.max() == 25  # a dark image stays dark


def test_half_transparent_lies_over_white() -> None:
    assert decode(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 127)))).pixels[0, 0].tolist() == [128, 128, 128]


def test_lab_tiff() -> None:
    image = Image.new("RGB", (8, 8), RED)
    lab = ImageCms.profileToProfile(
        image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    np.testing.assert_allclose(decode(encoded(lab, "TIFF")).pixels[0, 0], RED, atol=8)


def test_animations_give_their_first_frame() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    for format_name in ("GIF", "PNG", "WEBP"):
        data = encoded(frames[0], format_name, save_all=True, append_images=frames[1:], lossless=True)
        assert decode(data).pixels[8, 8].tolist() == list(RED), format_name


def swapped_profile() -> bytes:
    """sRGB with the primaries of red and blue exchanged."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    return swapped.replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))


def test_colours_go_through_the_icc_profile_unless_it_is_broken() -> None:
    image = Image.new("RGB", (8, 8), RED)
    assert decode(encoded(image, icc_profile=swapped_profile())).pixels[0, 0].tolist() == list(BLUE)
    assert decode(encoded(image, icc_profile=b"no profile at all" * 20)).pixels[0, 0].tolist() == list(RED)
    assert decode(encoded(image, icc_profile=swapped_profile()[:200])).pixels[0, 0].tolist() == list(RED)


@pytest.mark.parametrize("format_name", ["JPEG", "PNG"])
@pytest.mark.slow
def test_reduced_scale_keeps_enough_and_looks_the_same(format_name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (13, 17, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise).resize((1600, 1200), Image.Resampling.BICUBIC), format_name)
    whole, reduced = decode(data), decode(data, target_px=150)
    assert whole.pixels.shape == (1200, 1600, 3) and reduced.pixels.shape == (150, 200, 3)
    assert (reduced.width, reduced.height) == (1600, 1200)
    difference = resize_to_grid(whole.pixels, (8, 10)).astype(int) - resize_to_grid(reduced.pixels, (8, 10))
    assert np.abs(difference).mean() < 1.5
    assert decode(data, target_px=5000).pixels.shape == (1200, 1600, 3)


def test_a_region_is_decoded_to_the_detail_that_it_needs() -> None:
    data = encoded(quarters(1600, 1200), "JPEG")
    image = decode(data, target_px=150, region=(800, 0, 800, 600))
    assert (image.width, image.height, image.pixels.shape) == (1600, 1200, (150, 200, 3))
    assert corners(image.pixels) == [GREEN] * 4
    assert decode(data, region=(1500, 1100, 999, 999)).pixels.shape == (100, 100, 3)
    with pytest.raises(ImageError, match="outside the image of 1600x1200"):
        decode(data, region=(1600, 0, 10, 10))


def test_exif_tells_when_where_and_with_what() -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Canon\0", "Canon EOS 5D "
    exif.get_ifd(0x8769).update({0x9003: "2021:07:04 12:30:00", 0x9011: "+02:00"})
    exif.get_ifd(0x8825).update({1: "S", 2: (33.0, 51.0, 24.0), 3: "E", 4: (151.0, 12.0, 36.0)})
    for format_name in ("JPEG", "PNG", "WEBP", "TIFF"):
        image = decode(encoded(quarters(), format_name, exif=exif.tobytes()))
        assert image.taken_at == datetime(2021, 7, 4, 10, 30, tzinfo=UTC), format_name
        assert image.camera == "Canon EOS 5D"
        assert image.gps == pytest.approx((-33.8567, 151.21), abs=1e-3)


@pytest.mark.parametrize(
    ("make", "model", "camera"),
    [
        ("NIKON CORPORATION", "NIKON D90", "NIKON D90"),
        ("Apple", "iPhone 12", "Apple iPhone 12"),
        ("Sony", "", "Sony"),
        ("", "X100", "X100"),
        ("", "", None),
        ("a\nb", "c\x1b[31m", "a b c [31m"),
    ],
)
def test_camera_names(make: str, model: str, camera: str | None) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = make, model
    assert decode(encoded(quarters(), "JPEG", exif=exif)).camera == camera


def test_nonsense_in_exif_is_no_information() -> None:
    exif = Image.Exif()
    exif[0x0112] = 77
    exif.get_ifd(0x8769)[0x9003] = "0000:00:00 00:00:00"
    exif.get_ifd(0x8825).update({1: "N", 2: (1e9, 0.0, 0.0), 3: "E", 4: (0.0, 0.0, 0.0)})
    image = decode(encoded(quarters(), "JPEG", exif=exif))
    assert (image.taken_at, image.gps, image.camera) == (None, None, None)
    data = encoded(quarters(), "JPEG", exif=exif)
    damaged = data.replace(b"Exif\0\0MM\0*\0\0\0\x08", b"Exif\0\0MM\0*\xff\xff\xff\xf0")
    assert damaged != data and corners(decode(damaged).pixels) == [RED, GREEN, BLUE, WHITE]


# Odd files, each from a public report


def turning(format_name: str) -> bool:
    return format_name != "AVIF" or bool(features.check("avif"))


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("size", [(64, 48), (48, 64)])
def test_orientations_are_as_pillow_shows_them(format_name: str, tag: int, size: tuple[int, int]) -> None:
    if not turning(format_name):
        pytest.skip("this Pillow has no AVIF")
    exif = Image.Exif()
    exif[0x0112] = tag
    options: dict[str, Any] = {"tiffinfo": {274: tag}} if format_name == "TIFF" else {"exif": exif}
    data = encoded(quarters(*size), format_name, **options)
    opened = Image.open(io.BytesIO(data))
    opened.load()
    upright = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    image = decode(data)
    assert (image.height, image.width) == upright.shape[:2]
    np.testing.assert_array_equal(image.pixels, upright)
    height, width = upright.shape[0] // 2, upright.shape[1] // 2
    part = decode(data, region=(width, 0, width, height))
    assert np.abs(part.pixels.astype(int) - upright[:height, width:]).max() == 0


def test_deep_numbers_in_more_room_are_not_black() -> None:
    ramp = np.linspace(0, 255, 64 * 48).reshape(48, 64)
    for bits in (10, 12, 14, 16):
        image = Image.fromarray((ramp / 255 * ((1 << bits) - 1)).astype(np.uint16))
        for format_name in ("TIFF", "PNG"):
            pixels = decode(encoded(image, format_name)).pixels[..., 0]
            assert np.abs(pixels - ramp).max() <= 1.5, (bits, format_name)
    told = encoded(Image.fromarray((ramp * 4).astype(np.uint16)), "TIFF", tiffinfo={281: 4095})
    assert decode(told).pixels.max() == 64, "the file says that white is 4095"


def test_white_art_on_transparency_is_seen() -> None:
    for colour, backdrop in (((255, 255, 255), 0), ((20, 20, 20), 255), ((200, 0, 0), 255)):
        image = Image.new("RGBA", (80, 60), (*colour, 0))
        image.paste((*colour, 255), (20, 20, 60, 40))
        pixels = decode(encoded(image)).pixels
        assert pixels[30, 40].tolist() == list(colour) and pixels[2, 2].tolist() == [backdrop] * 3


def photo_like(width: int = 320, height: int = 240) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_its_end_is_shown_with_a_note(progressive: bool) -> None:
    data = encoded(photo_like(), "JPEG", quality=90, progressive=progressive)
    whole, cut = decode(data), decode(data[:-10])
    assert whole.note is None and cut.note is not None and "last bytes" in cut.note
    assert np.abs(whole.pixels.astype(int) - cut.pixels).mean() < 2
    assert decode(data[:-10], target_px=60).note and decode(data[:-10], region=(0, 0, 50, 50)).note
    with pytest.raises(ImageError, match="cut short"):
        decode(data[: len(data) // 3])


def test_pages_and_frames_are_counted() -> None:
    frames = [quarters().rotate(90 * n) for n in range(3)]
    for format_name in ("TIFF", "GIF", "WEBP", "PNG"):
        data = encoded(frames[0], format_name, save_all=True, append_images=frames[1:])
        assert decode(data).frames == 3, format_name
        assert decode(encoded(frames[0], format_name)).frames == 1


@pytest.mark.parametrize(
    ("name", "date"),
    [
        ("IMG_20210704_123000.jpg", (2021, 7, 4, 12, 30)),
        ("PXL_20210704_123000123.jpg", (2021, 7, 4, 12, 30)),
        ("2021-07-04 12.30.00.png", (2021, 7, 4, 12, 30)),
        ("Screenshot_2021-07-04-12-30-00.png", (2021, 7, 4, 12, 30)),
        ("WhatsApp Image 2021-07-04 at 12.30.00.jpeg", (2021, 7, 4, 12, 30)),
        ("IMG-20210704-WA0001.jpg", (2021, 7, 4)),
        ("DSC_0001.JPG", None),
        ("20211345.jpg", None),
        ("12021070412.jpg", None),
        ("2021-02-30.jpg", None),
    ],
)
def test_dates_in_names(name: str, date: tuple[int, ...] | None) -> None:
    assert date_in_name(name) == (datetime(*date, tzinfo=UTC) if date else None)  # type: ignore[misc, arg-type]


def test_dates_say_where_they_come_from(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = "2021:07:04 12:30:00"
    quarters().save(tmp_path / "a.jpg", exif=exif)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r exif:DateTimeOriginal="2020-01-02T03:04:05+01:00"/></x:xmpmeta>'
    quarters().save(tmp_path / "b.jpg", xmp=xmp)
    quarters().save(tmp_path / "2019-05-06.png")
    quarters().save(tmp_path / "d.png")
    quarters().save(tmp_path / "late.png")
    exif.get_ifd(0x8769)[0x9003] = "2900:07:04 12:30:00"
    quarters().save(tmp_path / "nonsense.jpg", exif=exif)
    os.utime(tmp_path / "d.png", (10**9, 10**9))
    os.utime(tmp_path / "nonsense.jpg", (10**9, 10**9))
    os.utime(tmp_path / "late.png", (10_413_792_000, 10_413_792_000))
    expected = {
        "a.jpg": ("exif", 2021),
        "b.jpg": ("xmp", 2020),
        "2019-05-06.png": ("name", 2019),
        "d.png": ("file", 2001),
        "late.png": (None, None),
        "nonsense.jpg": ("file", 2001),
    }
    for name, (source, year) in expected.items():
        outcome = read_image(Job(str(tmp_path / name)), Settings())
        assert isinstance(outcome, Decoded) and outcome.mtime_ns < 1 << 63
        taken_at = outcome.metadata.taken_at
        assert (outcome.metadata.date_source, taken_at and taken_at.year) == (source, year), name


def dng(preview: Image.Image, width: int = 64, height: int = 48) -> bytes:
    """A little TIFF as DNG lays it out: a reduced preview first, the sensor's numbers in a SubIFD."""
    strip = preview.tobytes()
    sensor = np.random.default_rng(0).integers(0, 4000, width * height, np.uint16).tobytes()
    after = 8 + 2 + 12 * 11 + 4
    second_at = after + 6
    data = second_at + 2 + 12 * 10 + 4

    def directory(*entries: tuple[int, int, int, int]) -> bytes:
        return struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *e) for e in entries) + bytes(4)

    first = directory(
        (254, 4, 1, 1), (256, 4, 1, preview.width), (257, 4, 1, preview.height), (258, 3, 3, after), (259, 3, 1, 1),
        (262, 3, 1, 2), (273, 4, 1, data), (277, 3, 1, 3), (279, 4, 1, len(strip)), (330, 4, 1, second_at),
        (50706, 1, 4, 0x0401),
    )  # fmt: skip
    second = directory(
        (254, 4, 1, 0), (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 32803),
        (273, 4, 1, data + len(strip)), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, len(sensor)),
    )  # fmt: skip
    return b"II*\0" + struct.pack("<I", 8) + first + struct.pack("<HHH", 8, 8, 8) + second + strip + sensor


def test_raw_files_are_told_from_tiffs_and_never_read_from_their_preview(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = dng(quarters(16, 12))
    assert is_raw(data) and not is_raw(encoded(quarters(), "TIFF")) and is_raw(encoded(quarters(), "TIFF"), "x.NEF")
    assert sniff(b"FUJIFILMCCD-RAW 0201") == "RAW" and sniff(b"\0\0\0\x18ftypcrx \0\0\0\1crx isom") == "RAW"
    (tmp_path / "x.dng").write_bytes(data)
    if raw_installed():
        outcome = read_image(Job(str(tmp_path / "x.dng")), Settings())
        assert isinstance(outcome, Decoded) and outcome.metadata.raw and outcome.metadata.format == "RAW"
        assert (outcome.metadata.width, outcome.metadata.height) == (64, 48)
        with pytest.raises(ImageError, match="raw"):
            decode(encoded(quarters(), "TIFF"), path="x.nef")
    monkeypatch.setattr("indexer.images.jobs.raw_installed", lambda: False)
    outcome = read_image(Job(str(tmp_path / "x.dng")), Settings())
    assert isinstance(outcome, Unreadable) and outcome.reason.startswith("raw")


# Hostile files


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.slow
def test_hostile_images_are_refused_quickly_with_a_reason(name: str) -> None:
    began = time.process_time()
    with pytest.raises(ImageError) as error:
        data = HOSTILE[name]()
        assert sniff(data[:64]), "not even taken for an image"
        decode(data, path=f"folder/{name}")
    assert time.process_time() - began < 5  # of work, not of waiting for a busy machine
    assert error.value.reason and "\n" not in str(error.value) and len(str(error.value)) < 200
    assert str(error.value).startswith(f"cannot read folder/{name}: ")


def test_a_name_that_no_file_can_have_is_refused_like_a_missing_file() -> None:
    with pytest.raises(ImageError, match="no file can have this name"):
        decode_file("a\0.jpg")


def test_pixels_are_limited_by_count_and_by_memory() -> None:
    small = Limits(max_pixels=10_000, memory_bytes=1 << 30)
    lean = Limits(memory_bytes=10_000 * 10)
    for limits in (small, lean):
        with pytest.raises(ImageError, match="200x200 pixels, more than the limit"):
            decode(encoded(quarters(200, 200)), limits=limits)
    photo = encoded(quarters(800, 800), "JPEG")
    with pytest.raises(ImageError, match="limit"):
        decode(photo, limits=lean)
    assert decode(photo, target_px=100, limits=lean).pixels.shape == (100, 100, 3)  # at 1/8 it needs little


def test_images_in_memory_become_rgb() -> None:
    assert corners(to_rgb(quarters(mode="P"))) == [RED, GREEN, BLUE, WHITE]
    assert to_rgb(with_alpha())[0, 0].tolist() == list(WHITE)
    assert to_rgb(Image.new("LAB", (2, 2))).shape == (2, 2, 3)


# Bringing images to the ViT's size


def test_grids_are_few_and_bounded_and_turn_with_the_image() -> None:
    grids = possible_grids(256)
    assert len(grids) == 17 and (16, 16) in grids
    assert all(0.93 * 256 <= rows * columns <= 1.05 * 256 for rows, columns in grids)
    assert {(columns, rows) for rows, columns in grids} == set(grids)


@pytest.mark.parametrize("num_patches", [1, 4, 100, 256, 1024, 1369])
def test_the_grid_is_the_nearest_in_shape(num_patches: int) -> None:
    grids = possible_grids(num_patches)
    assert all(rows * columns <= 1.05 * num_patches for rows, columns in grids)
    for height, width in ((3000, 4000), (4000, 3000), (1, 1), (100, 10_000), (7, 5), (1080, 1920)):
        rows, columns = choose_grid(height, width, num_patches)
        errors = {grid: abs(np.log(grid[1] / grid[0] * height / width)) for grid in grids}
        assert errors[rows, columns] == min(errors.values())
        assert choose_grid(width, height, num_patches) == (columns, rows)
        assert 1 / 4 <= columns / rows <= 4


def test_known_shapes_are_hardly_squeezed() -> None:
    assert choose_grid(3000, 4000) == (14, 18)
    assert choose_grid(2000, 3000) == (13, 20)
    assert choose_grid(1080, 1920) == (12, 21)
    assert choose_grid(500, 5000) == (8, 32)


def test_modes_of_preprocessing() -> None:
    pixels = np.asarray(quarters(800, 600))
    assert preprocess(pixels).shape == (14 * 14, 18 * 14, 3)
    assert preprocess(pixels, "squash").shape == (224, 224, 3)
    assert preprocess(pixels, resolution=448, patch_size=16).shape == (24 * 16, 33 * 16, 3)
    for mode in ("aspect", "squash", "crop"):
        assert corners(preprocess(pixels, mode)) == [RED, GREEN, BLUE, WHITE]
    framed = np.zeros((600, 800, 3), np.uint8)
    framed[:, 130:670] = 255  # the crop sees only the middle, the others see the black edges
    assert preprocess(framed, "crop").min() > 250
    assert preprocess(framed).min() == preprocess(framed, "squash").min() == 0


def test_the_smallest_image_fills_its_grid() -> None:
    assert preprocess(np.full((1, 1, 3), 9, np.uint8)).tolist() == np.full((224, 224, 3), 9).tolist()
