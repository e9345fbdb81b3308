"""Which of two copies is kept, and why: by what they hold, by which was made from which, and by the user's folders."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from indexer.errors import SeenitError
from indexer.images.metadata import Metadata
from indexer.store.protocol import Listed, Record, StoredFile
from indexer.sync.options import SyncOptions
from indexer.sync.sync import sync_folder
from retrieval.duplicates import DuplicateOptions, Duplicates, find_duplicates
from retrieval.duplicates import find as find_module
from retrieval.duplicates.closely import Closer
from retrieval.duplicates.find import _Proof
from retrieval.duplicates.groups import Pair, Star
from retrieval.duplicates.keeper import Folders, keeping_order, why_before
from retrieval.duplicates.lesser import OpenedImage, lesser_of
from retrieval.duplicates.local import Place
from retrieval.duplicates.present import as_json, duplicates_table, write_duplicates_page
from retrieval.duplicates.provenance import made_from, read_jpeg
from retrieval.duplicates.raw_pairs import beside_raw, shots
from retrieval.duplicates.settle import Settling, better_first

pytestmark = pytest.mark.slow

SAME = np.array([[1.0, 0, 0], [0, 1, 0]])


def scene(seed: int, width: int = 320, height: int = 240) -> Image.Image:
    """A drawn photo: structure of all sizes, colour, grain, and a lens that blurs a little."""
    rng = np.random.default_rng(seed)
    layers = np.zeros((height, width, 3), np.float32)
    for cells, strength in ((4, 100), (12, 80), (40, 60)):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        layers += strength / 255 * np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    layers += rng.normal(0, 12, (height, width, 1))
    return Image.fromarray(layers.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.8))


def searched(folder: Path, backbone: Path | None, options: DuplicateOptions | None = None) -> Duplicates:
    """By the shipped backbone where none is given."""
    pytest.importorskip("faiss")
    if backbone is None:
        sync_folder(folder, options=SyncOptions(resolution=112, workers=1))
    else:
        sync_folder(folder, options=SyncOptions(workers=1), backbone=backbone)
    return find_duplicates(folder / ".seenit", options or DuplicateOptions(), workers=1)


def names(found: Duplicates) -> list[tuple[str, list[str]]]:
    """The keeper of each group, and what may be given up for it."""
    return [
        (Path(group.file.path).name, sorted(Path(file.path).name for file in group.spare)) for group in found.groups
    ]


# ---- what an image holds ----


def resaved(folder: Path) -> None:
    Image.open(folder / "original.jpg").save(folder / "copy.jpg", quality=98)


def mirrored(folder: Path) -> None:
    ImageOps.mirror(Image.open(folder / "original.jpg")).save(folder / "copy.jpg", quality=98)


def upside_down(folder: Path) -> None:
    Image.open(folder / "original.jpg").rotate(180).save(folder / "copy.jpg", quality=98)


def as_png(folder: Path) -> None:
    Image.open(folder / "original.jpg").save(folder / "copy.png")


def enlarged(folder: Path) -> None:
    image = Image.open(folder / "original.jpg")
    image.resize((2 * image.width, 2 * image.height), Image.Resampling.BICUBIC).save(folder / "copy.jpg", quality=90)


def crooked(folder: Path) -> None:
    image = Image.open(folder / "original.jpg")
    image.rotate(7, Image.Resampling.BICUBIC, expand=True, fillcolor="white").save(folder / "copy.jpg", quality=95)


def framed(folder: Path) -> None:
    ImageOps.expand(Image.open(folder / "original.jpg"), 30, (30, 80, 20)).save(folder / "copy.png")


def grey(folder: Path) -> None:
    Image.open(folder / "original.jpg").convert("L").save(folder / "copy.jpg", quality=100)


@pytest.mark.long
@pytest.mark.parametrize(
    "edit, why",
    [
        (resaved, "the other was made from it"),
        (mirrored, "the other was made from it"),
        (upside_down, "the other was made from it"),
        (as_png, "the other was made from it"),
        (enlarged, "the other was made from it"),
        (crooked, "without a frame or empty corners"),
        (framed, "without a frame or empty corners"),
        (grey, "it is in colour"),
    ],
)
def test_the_original_is_kept_in_a_pair(
    tmp_path: Path, tiny_backbone: Path, edit: Callable[[Path], None], why: str
) -> None:
    size = (640, 480) if edit is enlarged else (320, 240)  # traces of an enlargement are faint
    scene(1, *size).save(tmp_path / "original.jpg", quality=75)
    edit(tmp_path)
    parts = edit in (crooked, framed)  # to be found they need features
    found = searched(tmp_path, None if parts else tiny_backbone)
    (copy,) = (path.name for path in tmp_path.glob("copy.*"))
    assert names(found) == [("original.jpg", [copy])]
    assert why in found.groups[0].why
    assert f"kept: {found.groups[0].why}" in duplicates_table(found)
    assert json.loads(json.dumps(as_json(found)))["groups"][0]["why_kept"] == found.groups[0].why
    write_duplicates_page(tmp_path / "page.html", found)
    assert why in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_larger_original_is_kept_before_its_smaller_jpeg(tmp_path: Path, tiny_backbone: Path) -> None:
    scene(2, 640, 480).save(tmp_path / "large.jpg", quality=90)
    Image.open(tmp_path / "large.jpg").resize((320, 240)).save(tmp_path / "small.jpg", quality=75)
    found = searched(tmp_path, tiny_backbone)
    assert names(found) == [("large.jpg", ["small.jpg"])] and "most pixels" in found.groups[0].why


def test_what_the_camera_wrote_is_kept_before_a_larger_file(tmp_path: Path, tiny_backbone: Path) -> None:
    exif = Image.Exif()
    exif[271], exif[272] = "Maker", "Model"
    scene(3).save(tmp_path / "camera.jpg", quality=90, exif=exif)
    scene(3).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "turned.png")  # not made from the JPEG
    found = searched(tmp_path, tiny_backbone)
    assert names(found) == [("camera.jpg", ["turned.png"])] and "EXIF" in found.groups[0].why


def test_a_file_that_lacks_its_end_is_given_up_for_that(tmp_path: Path, tiny_backbone: Path) -> None:
    scene(1).save(tmp_path / "whole.jpg", quality=90)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-10])
    found = searched(tmp_path, tiny_backbone)
    assert names(found) == [("whole.jpg", ["cut.jpg"])] and found.groups[0].why == "it is whole"


def test_a_files_time_is_no_date_beside_a_real_one() -> None:
    def record(id: str, year: int, source: str) -> Record:
        taken = datetime(year, 1, 1, tzinfo=UTC)
        return Record(id, (StoredFile("0/x", 1, 0),), Metadata(8, 6, "JPEG", taken, date_source=source), "w")

    records = [record("copied", 2001, "file"), record("shot", 2020, "exif"), record("named", 2010, "name")]
    assert [one.id for one in sorted(records, key=keeping_order("oldest"))] == ["named", "shot", "copied"]
    assert [one.id for one in sorted(records, key=keeping_order("newest"))] == ["shot", "named", "copied"]


def test_copies_of_a_copy_belong_to_the_image_that_is_kept_in_its_place(tmp_path: Path, tiny_backbone: Path) -> None:
    """They were compared with the largest grey file only, which then turned out to be no keeper."""
    scene(1).save(tmp_path / "original.jpg", quality=90)
    for n in range(3):
        scene(1).convert("L").save(tmp_path / f"grey{n}.png", compress_level=n)
    found = searched(tmp_path, tiny_backbone)
    assert names(found) == [("original.jpg", ["grey0.png", "grey1.png", "grey2.png"])]


@pytest.mark.long
def test_a_crop_is_not_kept_in_place_of_the_whole(tmp_path: Path) -> None:
    """It shares most with as many as the whole does, and shows less."""
    whole = scene(2, 400, 300)
    whole.save(tmp_path / "whole.jpg", quality=85)
    ImageOps.mirror(whole).crop((30, 20, 370, 280)).save(tmp_path / "crop.png")
    whole.resize((200, 150)).save(tmp_path / "small.jpg")
    found = searched(tmp_path, None)
    assert names(found) == [("whole.jpg", ["crop.png", "small.jpg"])]
    first, second = (
        OpenedImage(Image.open(tmp_path / name).convert("RGB"), None, True) for name in ("whole.jpg", "crop.png")
    )
    way = np.array([[-400 / 340, 0, 370 / 340], [0, 300 / 260, -20 / 260]])
    cut = Pair(0, 1, "near", 0.9, way, (340 * 260 / 120_000, 1.0))
    assert lesser_of(cut, first, second, (True, False)) == (1, "it shows more at its sides")
    assert lesser_of(cut.turned(), second, first, (False, True)) == (1, "it shows more at its sides")
    large = OpenedImage(second.image.resize((680, 520)), None, True)  # what it shows it shows better
    assert lesser_of(cut, first, large, (True, False)) == (None, "")


def test_other_photos_of_a_motif_are_held_against_no_rival() -> None:
    records = {
        row: Record(str(row), (StoredFile(f"0/{row}.jpg", 1, 0),), Metadata(80, 60, "JPEG"), "w") for row in range(4)
    }
    settling = Settling(
        records, DuplicateOptions(), Folders(), str, _Proof.__new__(_Proof), lambda what, total: lambda done: None, 1
    )
    box = (0.4, 0.4, 0.2, 0.2)
    settling._closer[0, 3] = Closer(0, 3, (Place(box, box),))
    copy, photo = Pair(0, 1, "near", 0.9, SAME, (1.0, 1.0)), Pair(0, 2, "scene", 0.9, None, (0.0, 0.0))
    ((contested, rivals),) = settling._contested([Star(0, (copy, photo), (), 0)])
    assert contested is copy and [rival for rival, _ in rivals] == [3]


def test_formats_at_equal_detail() -> None:
    def record(format: str, size: int, **more: object) -> Record:
        return Record(format, (StoredFile("0/x", size, 0),), Metadata(8, 6, format, **more), "w")  # type: ignore[arg-type]

    ordered = sorted(
        [
            record("JPEG", 900),
            record("HEIF", 300),
            record("GIF", 999),
            record("PNG", 200),
            record("RAW", 100, raw=True),
        ],
        key=keeping_order("resolution"),
    )
    assert [one.id for one in ordered] == ["RAW", "PNG", "HEIF", "JPEG", "GIF"]
    assert why_before("resolution", Folders(), record("HEIF", 300), record("JPEG", 900)) == "its format loses less"
    assert why_before("resolution", Folders(), record("JPEG", 900), record("HEIF", 300)) == ""


def test_a_jpegs_traces_are_found_in_what_was_made_from_it_only(tmp_path: Path) -> None:
    image, original = scene(4, 400, 300), tmp_path / "original.jpg"
    image.save(original, quality=85)
    jpeg = read_jpeg(original.read_bytes())
    assert jpeg is not None
    copy = Image.open(original).convert("RGB")
    for way, linear in {
        Image.Transpose.ROTATE_90: [[0, 1], [-1, 0]],
        Image.Transpose.ROTATE_270: [[0, -1], [1, 0]],
        Image.Transpose.TRANSVERSE: [[0, -1], [-1, 0]],
    }.items():
        transform = np.c_[np.array(linear), 0.5 - np.array(linear) @ (0.5, 0.5)]
        assert made_from(jpeg, copy.transpose(way), transform)
        assert not made_from(jpeg, image.transpose(way), transform)
        assert not made_from(jpeg, copy.transpose(way), SAME)
    assert not made_from(jpeg, image, SAME) and not made_from(jpeg, scene(5, 400, 300), SAME)
    turned = tmp_path / "turned.jpg"  # stored on its side, as phones do
    exif = Image.Exif()
    exif[274] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(turned, quality=85, exif=exif)
    stored = read_jpeg(turned.read_bytes())
    assert stored is not None and stored.orientation == 6
    assert made_from(stored, ImageOps.exif_transpose(Image.open(turned)).convert("RGB"), SAME)
    assert read_jpeg(b"\xff\xd8\xff no JPEG") is None


def test_siblings_tell_nothing_of_each_other(tmp_path: Path) -> None:
    """JPEGs of one image have the same multiples without being made from each other; a smooth image is near 0."""
    image, rng = scene(6, 400, 300), np.random.default_rng(0)
    noisy = Image.fromarray((np.asarray(image) + rng.normal(0, 18, (300, 400, 3))).clip(0, 255).astype(np.uint8))
    bent = image.point([round(255 * (v / 255) ** 0.7) for v in range(256)] * 3)
    made = {"plain": image, "noisy": noisy, "bent": bent, "soft": image.filter(ImageFilter.GaussianBlur(2))}
    packed = {}
    for name, one in made.items():
        one.save(tmp_path / f"{name}.jpg", quality=85)
        packed[name] = read_jpeg((tmp_path / f"{name}.jpg").read_bytes())
    for name, source in packed.items():
        for other, jpeg in packed.items():
            assert source is not None and jpeg is not None
            opened = Image.open(tmp_path / f"{other}.jpg").convert("RGB")
            assert name == other or not made_from(source, opened, SAME, jpeg.steps), (name, other)
            assert name == other or not made_from(source, made[other], SAME), (name, other)


def test_better_ones_come_right_before_those_they_are_better_than() -> None:
    assert better_first([0, 1, 2, 3], {}) == [0, 1, 2, 3]
    assert better_first([0, 1, 2, 3], {0: [2]}) == [2, 0, 1, 3]  # and not after 1 and 3
    assert better_first([0, 1, 2, 3], {0: [2], 2: [3]}) == [3, 2, 0, 1]
    assert sorted(better_first([0, 1, 2], {0: [1], 1: [0]})) == [0, 1, 2]  # a circle


# ---- the user's folders ----


@pytest.mark.long
def test_a_preferred_folder_keeps_its_copy_unless_another_holds_more(tmp_path: Path, tiny_backbone: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    scene(1).save(tmp_path / "a/one.png")
    scene(1).save(tmp_path / "b/one.jpg", quality=80)
    scene(2, 640, 480).save(tmp_path / "a/large.png")
    scene(2, 640, 480).resize((320, 240)).save(tmp_path / "b/small.png")
    scene(3).save(tmp_path / "a/colour.png")
    scene(3).convert("L").save(tmp_path / "b/grey.png")
    scene(1).save(tmp_path / "c/one.jpg", quality=70)
    assert ("one.png", ["one.jpg", "one.jpg"]) in names(searched(tmp_path, tiny_backbone))
    found = searched(tmp_path, tiny_backbone, DuplicateOptions(prefer=(tmp_path / "c", tmp_path / "b")))
    spare = {(group.file.path, file.path) for group in found.groups for file in group.spare}
    assert spare == {(str(tmp_path / "c/one.jpg"), str(tmp_path / one)) for one in ("a/one.png", "b/one.jpg")}
    reasons = {Path(m.files[0].path).name: m.stays for group in found.groups for m in group.members}
    assert "more detail" in reasons["large.png"] and "in colour" in reasons["colour.png"]
    assert any(group.why == "its folder comes first" for group in found.groups)


def test_nothing_of_a_reference_folder_is_given_up_or_compared_within_it(tmp_path: Path, tiny_backbone: Path) -> None:
    for name in ("archive", "new"):
        (tmp_path / name).mkdir()
    scene(1).save(tmp_path / "archive/one.jpg", quality=70)
    scene(1).save(tmp_path / "archive/two.jpg", quality=80)
    scene(2).save(tmp_path / "archive/three.png")
    (tmp_path / "archive/three again.png").write_bytes((tmp_path / "archive/three.png").read_bytes())
    everything = searched(tmp_path, tiny_backbone)
    assert sum(len(group.spare) for group in everything.groups) == 2
    options = DuplicateOptions(reference=(tmp_path / "archive",))
    assert searched(tmp_path, tiny_backbone, options).groups == ()
    scene(1).save(tmp_path / "new/one.png")
    (tmp_path / "new/three.png").write_bytes((tmp_path / "archive/three.png").read_bytes())
    found = searched(tmp_path, tiny_backbone, options)
    assert {file.path for group in found.groups for file in group.spare} == {
        str(tmp_path / "new/one.png"),
        str(tmp_path / "new/three.png"),
    }
    assert all("/archive/" in group.file.path for group in found.groups)
    exact = searched(tmp_path, tiny_backbone, DuplicateOptions("exact", reference=(tmp_path / "archive",)))
    assert names(exact)[0][1] == ["three.png"] and "folder that comes first" in exact.groups[0].why
    assert as_json(found)["reference"] == [str(tmp_path / "archive")]


def test_a_folder_that_is_not_in_the_index_is_one_line(tmp_path: Path, tiny_backbone: Path) -> None:
    scene(1).save(tmp_path / "one.jpg")
    with pytest.raises(SeenitError, match="no folder"):
        searched(tmp_path, tiny_backbone, DuplicateOptions(prefer=(tmp_path.parent / "elsewhere",)))
    with pytest.raises(SeenitError, match=r"no images below .*archiv in the index"):
        searched(tmp_path, tiny_backbone, DuplicateOptions(reference=(tmp_path / "archiv",)))
    with pytest.raises(SeenitError, match="unknown level"):
        DuplicateOptions(level="all")  # type: ignore[arg-type]


# ---- what stays beside its keeper ----


def drawn_screen(digit: int) -> Image.Image:
    image = Image.new("RGB", (600, 400), (250, 250, 250))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 0, 600, 30), fill=(40, 60, 90))
    for n in range(11):
        price = f"{37 * n + 118}.5{digit if n == 4 else 0}"
        text = f"Invoice {1000 + n}   customer {chr(65 + n)}   {price} EUR"
        pen.rectangle((15, 38 + n * 32, 585, 66 + n * 32), fill="white")
        pen.text((24, 44 + n * 32), text, fill="black", font=ImageFont.load_default(10))
    return image


@pytest.mark.long
@pytest.mark.parametrize("original, other", [(3, 8), (8, 3)])
def test_a_small_copy_is_never_given_up_for_a_screen_with_another_digit(
    tmp_path: Path, tiny_backbone: Path, original: int, other: int
) -> None:
    """Whichever of the two large ones is looked at first: a letter of the small one is 5 pixels high."""
    for digit in (original, other):
        drawn_screen(digit).save(tmp_path / f"{digit}.png")
    drawn_screen(original).resize((300, 200), Image.Resampling.BICUBIC).save(tmp_path / "half.jpg", quality=80)
    found = searched(tmp_path, tiny_backbone)
    assert {keeper: spare for keeper, spare in names(found) if spare} == {f"{original}.png": ["half.jpg"]}


def test_other_photos_of_the_motif_are_named_and_stay(
    tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(2):
        scene(n).save(tmp_path / f"{n}.png")
    monkeypatch.setattr(find_module, "LEAST_COSINE", -1.1)  # the two are a candidate
    monkeypatch.setattr(find_module, "scenes_among", lambda *_: [Pair(0, 1, "scene", 0.7, None, (0.0, 0.0))])
    (group,) = searched(tmp_path, tiny_backbone, DuplicateOptions(level="scene")).groups
    assert group.spare == [] and "another photo" in group.members[0].stays and group.why == ""


def test_a_raw_file_and_its_jpeg_are_told_by_folder_name_and_time() -> None:
    def listed(id: str, *keys: str) -> Listed:
        return Listed(id, "w", tuple(StoredFile(key, 1, 0) for key in keys))

    files = [listed("r", "0/a/IMG_1.NEF"), listed("j", "0/a/IMG_1.JPG"), listed("x", "0/b/IMG_1.JPG", "0/a/IMG_2.JPG")]
    assert beside_raw(files) == [("r", "j")]

    def record(raw: bool, second: int | None) -> Record:
        taken = datetime(2024, 5, 1, 12, 0, second, tzinfo=UTC) if second is not None else None
        source = "exif" if taken else None
        return Record("", (), Metadata(8, 6, "RAW", taken, date_source=source, raw=raw), "w")

    assert shots([("r", "j")], {"r": record(True, 1), "j": record(False, 2)}) == [("r", "j")]
    assert shots([("r", "j")], {"r": record(True, 1), "j": record(False, None)}) == [("r", "j")]
    assert shots([("r", "j")], {"r": record(True, 1), "j": record(False, 30)}) == []  # a number that came again
    assert shots([("r", "j")], {"r": record(False, 1), "j": record(False, 1)}) == []
