"""Copies that differ in one place are told apart at full resolution, and neither is given up."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

from indexer.sync.options import SyncOptions
from indexer.sync.sync import sync_folder
from retrieval.duplicates import find_duplicates
from retrieval.duplicates.appearance import KNOTS, equally_sharp, in_tone_of
from retrieval.duplicates.closely import MAY_BE, Closer
from retrieval.duplicates.local import Local, compare_locally
from retrieval.duplicates.present import as_json, duplicates_table, write_duplicates_page

SAME = np.array([[1.0, 0, 0], [0, 1, 0]])
MIRROR = np.array([[-1.0, 0, 1], [0, 1, 0]])
LINES = [f"Invoice {1000 + n}   customer {chr(65 + n)}   {37 * n + 118}.50 EUR" for n in range(11)]


def screen(lines: list[str], selected: int = 2) -> Image.Image:
    """A window with a title, rows of text and one selected row."""
    image = Image.new("RGB", (600, 400), (250, 250, 250))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 0, 600, 30), fill=(40, 60, 90))
    for n, line in enumerate(lines):
        fill = (220, 230, 250) if n == selected else (255, 255, 255)
        pen.rectangle((15, 38 + n * 32, 585, 66 + n * 32), fill=fill)
        pen.text((24, 44 + n * 32), line, fill="black", font=ImageFont.load_default(16))
    return image


def changed(number: int, old: str, new: str) -> Image.Image:
    assert old in LINES[number]
    return screen([*LINES[:number], LINES[number].replace(old, new), *LINES[number + 1 :]])


def saved(image: Image.Image, quality: int = 85) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def resized(image: Image.Image, share: float) -> Image.Image:
    return image.resize((round(share * image.width), round(share * image.height)), Image.Resampling.BICUBIC)


def meets(found: Local, left: int, top: int, right: int, bottom: int) -> bool:
    """Whether the plainest place meets a box of the first image, which is a screen."""
    x, y, width, height = found.places[0].in_first
    return 600 * x < right and 600 * (x + width) > left and 400 * y < bottom and 400 * (y + height) > top


@pytest.mark.long
@pytest.mark.parametrize(
    "other, row",
    [
        (lambda: changed(4, "266", "286"), 4),  # a digit
        (lambda: changed(6, "customer", "supplier"), 6),  # a word
        (lambda: changed(8, ".50", ".90"), 8),  # a price
        (lambda: screen(LINES, 7), 7),  # a selected row
    ],
)
@pytest.mark.parametrize("edit", [lambda image: image, saved, lambda image: saved(resized(image, 0.8))])
def test_one_change_in_a_screen_is_named_where_it_is(
    other: Callable[[], Image.Image], row: int, edit: Callable[[Image.Image], Image.Image]
) -> None:
    for first, second in ((screen(LINES), edit(other())),):
        found = compare_locally(first, second, SAME)
        assert found.can_tell and found.places
        rows = [row, 2] if row == 7 else [row]  # the row that is no longer selected differs, too
        assert any(meets(found, 0, 38 + n * 32, 600, 66 + n * 32) for n in rows)


@pytest.mark.long
@pytest.mark.parametrize(
    "edit, way",
    [
        (lambda image: image, SAME),
        (lambda image: saved(image, 60), SAME),
        (lambda image: saved(resized(image, 0.6)), SAME),
        (lambda image: saved(resized(image, 1.5)), SAME),
        (lambda image: saved(image.filter(ImageFilter.UnsharpMask(1, 80, 2))), SAME),
        (lambda image: saved(image.convert("L").convert("RGB")), SAME),
        (lambda image: saved(image.point([round(255 * (v / 255) ** 0.7) for v in range(256)] * 3)), SAME),
        (lambda image: saved(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)), MIRROR),
    ],
)
def test_true_copies_do_not_differ(edit: Callable[[Image.Image], Image.Image], way: np.ndarray) -> None:
    found = compare_locally(screen(LINES), edit(screen(LINES)), way)
    assert found.can_tell and not found.places, found


def painted(seed: int) -> Image.Image:
    """A drawn photo: colours and grain, through a lens."""
    rng = np.random.default_rng(seed)
    layers = sum(
        np.asarray(
            Image.fromarray(rng.integers(0, 85, (n, n, 3), np.uint8)).resize((400, 300), Image.Resampling.BICUBIC),
            np.float32,
        )
        for n in (4, 12, 40)
    )
    grain = rng.normal(0, 8, (300, 400, 1))
    return Image.fromarray((layers + grain).clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.8))


@pytest.mark.long
@pytest.mark.parametrize("gamma, contrast, colour", [(0.6, 1, 1), (1.7, 1, 1), (0.8, 0.8, 1), (0.6, 0.6, 0.3)])
def test_a_copy_in_another_tone_does_not_differ(gamma: float, contrast: float, colour: float) -> None:
    for seed in range(3):
        bent = painted(seed).point([round(255 * (v / 255) ** gamma) for v in range(256)] * 3)
        toned = ImageEnhance.Color(ImageEnhance.Contrast(bent).enhance(contrast)).enhance(colour)
        found = compare_locally(painted(seed), saved(toned), SAME)
        assert found.can_tell and not found.places, (seed, found)
        other = toned.copy()
        other.paste(painted(9).resize((40, 30)), (200, 100))
        changed = compare_locally(painted(seed), saved(other), SAME)
        x, y, width, height = changed.places[0].in_first
        assert 400 * x < 240 and 400 * (x + width) > 200 and 300 * y < 130 and 300 * (y + height) > 100


def test_curves_of_each_colour_are_found_exactly() -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (60, 80, 3), np.uint8)
    planes = torch.from_numpy(np.asarray(Image.fromarray(rgb).convert("YCbCr"), np.float32)).permute(2, 0, 1)
    heights = np.stack([85 * (np.array(KNOTS) / 256) ** gamma for gamma in (0.7, 1.0, 1.6)])
    wanted = sum(np.interp(rgb[..., channel], KNOTS, heights[channel]) for channel in range(3))  # (60, 80)
    toned = in_tone_of(planes, torch.from_numpy(np.asarray(wanted, np.float32))[None], torch.ones(60, 80))
    assert float((toned.planes[0] - torch.from_numpy(wanted)).abs().quantile(0.95)) < 2.5  # YCbCr is rounded


@pytest.mark.slow
def test_the_sharper_one_is_filtered_until_both_fit() -> None:
    def planes(image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.asarray(image.convert("YCbCr"), np.float32)).permute(2, 0, 1)

    sharp = painted(1)
    for soft in (sharp.filter(ImageFilter.GaussianBlur(1.5)), sharp.filter(ImageFilter.BoxBlur(1))):
        for pair in ((sharp, soft), (soft, sharp)):
            before = [planes(image) for image in pair]
            after = equally_sharp(before[0], before[1], torch.ones(300, 400))
            left = [float((one[0] - other[0]).abs().mean()) for one, other in (before, after)]
            assert left[1] < 0.4 * left[0], left


@pytest.mark.slow
def test_a_composite_is_no_copy_and_its_place_is_named() -> None:
    mask = Image.new("L", (400, 300), 0)
    ImageDraw.Draw(mask).ellipse((80, 60, 320, 240), fill=255)
    found = compare_locally(painted(1), saved(Image.composite(painted(1), painted(2), mask)), SAME)
    assert found.places
    told = Closer(0, 1, found.places, why="" if found.can_tell else MAY_BE).stays(1, 400, 300)
    assert ("may be a copy" in told or "differs" in told) and "pixels)" in told
    assert "pixels)" in Closer(0, 1, found.places, why=MAY_BE).stays(0, 400, 300)


@pytest.mark.slow
def test_a_face_sized_region_of_a_real_photo(shared: Path) -> None:
    first, second = (
        Image.open(path).convert("RGB") for path in sorted((shared / "data/distractors").glob("*.jpg"))[3:5]
    )
    side = min(first.size) // 8
    other = first.copy()
    other.paste(second.resize((side, side)), (first.width // 3, first.height // 3))
    found = compare_locally(first, saved(other), SAME)
    assert found.can_tell and found.places
    x, y, width, height = found.places[0].in_first
    assert abs(x + width / 2 - 1 / 3 - side / 2 / first.width) < 0.1
    assert abs(y + height / 2 - 1 / 3 - side / 2 / first.height) < 0.1
    copy = compare_locally(first, saved(first, 60), SAME)
    assert copy.can_tell and not copy.places


@pytest.mark.long
def test_screens_that_differ_are_not_offered_and_a_smaller_copy_is(tmp_path: Path, tiny_backbone: Path) -> None:
    pytest.importorskip("faiss")
    screen(LINES).save(tmp_path / "a.png")
    changed(4, "266", "286").save(tmp_path / "b.png")
    saved(resized(screen(LINES), 0.5)).save(tmp_path / "half.jpg")
    sync_folder(tmp_path, options=SyncOptions(workers=1), backbone=tiny_backbone)
    found = find_duplicates(tmp_path / ".seenit", workers=1)
    assert [Path(file.path).name for group in found.groups for file in group.spare] == ["half.jpg"]
    members = [member for group in found.groups for member in group.members if member.differs_at]
    assert members and "differs from the keeper" in duplicates_table(found)
    left, top, width, height = members[0].differs_at[0].in_keeper
    assert top < 66 + 4 * 32 and top + height > 38 + 4 * 32 and left < 400
    values = json.loads(json.dumps(as_json(found)))
    told = [member["differs_at"] for group in values["groups"] for member in group["members"] if member["differs_at"]]
    assert told[0][0]["in_keeper"] == [left, top, width, height]
    write_duplicates_page(tmp_path / "page.html", found)
    assert "differs from the keeper" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.long
def test_copies_of_an_image_that_differs_from_the_keeper_are_found(tmp_path: Path, tiny_backbone: Path) -> None:
    screen(LINES).save(tmp_path / "a.png", compress_level=0)
    changed(4, "266", "286").save(tmp_path / "b.png")
    saved(changed(4, "266", "286"), 90).save(tmp_path / "copy_of_b.png")
    sync_folder(tmp_path, options=SyncOptions(workers=1), backbone=tiny_backbone)
    groups = find_duplicates(tmp_path / ".seenit", workers=1).groups
    given_up = {Path(group.file.path).name: [Path(file.path).name for file in group.spare] for group in groups}
    spare = {"b.png": ["copy_of_b.png"], "copy_of_b.png": ["b.png"]}
    assert [one for one in given_up.items() if one[1]] in [[one] for one in spare.items()], given_up


@pytest.mark.slow
def test_the_keeper_is_the_one_in_colour(tmp_path: Path, tiny_backbone: Path) -> None:
    pytest.importorskip("faiss")
    rng = np.random.default_rng(5)
    cells = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize((320, 240), Image.Resampling.BICUBIC)
    grain = rng.normal(0, 14, (240, 320, 1))
    original = Image.fromarray((np.asarray(cells) + grain).clip(0, 255).astype(np.uint8))
    original = original.filter(ImageFilter.GaussianBlur(0.8))  # as a lens does
    original.save(tmp_path / "original.jpg", quality=90)
    original.convert("L").save(tmp_path / "copy.jpg", quality=95)
    sync_folder(tmp_path, options=SyncOptions(workers=1), backbone=tiny_backbone)
    (group,) = find_duplicates(tmp_path / ".seenit", workers=1).groups
    assert Path(group.file.path).name == "original.jpg"
    assert [Path(file.path).name for file in group.spare] == ["copy.jpg"]
