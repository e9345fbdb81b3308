"""Duplicates of an index: made copies are found and told what they are, other photos are left alone."""

import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch.nn.functional import avg_pool2d

from indexer.errors import SeenitError
from indexer.images.metadata import Metadata
from indexer.store.open import open_store
from indexer.store.protocol import Record, StoredFile
from indexer.sync.options import SyncOptions
from indexer.sync.sync import sync_folder
from retrieval.duplicates import DuplicateOptions, Duplicates, find_duplicates
from retrieval.duplicates.candidates import DuplicateCandidates, are_among, near_pairs, with_pairs
from retrieval.duplicates.groups import Pair, describe_change, stars
from retrieval.duplicates.keeper import keeping_order
from retrieval.duplicates.patterns import (
    Patterns,
    alike_in_any_position,
    alike_in_part,
    likeness,
    patterns_of,
    patterns_of_parts,
    whole_in_part,
    whole_on_whole,
)
from retrieval.duplicates.present import as_json, duplicates_table, write_duplicates_page
from retrieval.duplicates.proof import COARSE, SIDE, Fits, Squares, best_start, fit_affine
from retrieval.duplicates.schedule import REACH, settled, untried_pairs, with_keepers
from retrieval.geometry import inverse

pytestmark = pytest.mark.slow

SAME = np.array([[1.0, 0, 0], [0, 1, 0]])


def scene(seed: int, width: int = 160, height: int = 120) -> Image.Image:
    """A drawn photo with structure of all sizes."""
    rng = np.random.default_rng(seed)
    layers = np.zeros((height, width, 3), np.float32)
    for cells, strength in ((3, 110), (9, 90), (27, 70)):
        noise = rng.random((cells, cells, 3)).astype(np.float32)
        grown = [Image.fromarray(noise[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(3)]
        layers += strength * np.stack([np.asarray(one) for one in grown], -1)
    return Image.fromarray(layers.clip(0, 255).astype(np.uint8))


def grey(image: Image.Image) -> torch.Tensor:
    return torch.tensor(
        np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BICUBIC)), dtype=torch.float
    )


# ---- pixels ----


def squares_of(image: torch.Tensor) -> Squares:
    """(1, SIDE, SIDE) in every size."""
    return lambda at, side: avg_pool2d(image[at][:, None], SIDE // side)[:, 0]


def lay(first: Image.Image, second: Image.Image, start: np.ndarray | None = None, small: bool = False) -> Fits:
    one, other = (squares_of(grey(image)[None]) for image in (first, second))
    patterns = patterns_of(torch.stack([grey(first), grey(second)]))
    _, position = likeness(patterns, np.array([0]), np.array([1]))
    ways = [*whole_on_whole(position), np.eye(3)[:2] if start is None else start]
    all_of_it = torch.arange(1)
    coarse = one(all_of_it, COARSE), other(all_of_it, COARSE)
    begin, _ = best_start(*coarse, torch.tensor(np.stack(ways), dtype=torch.float32)[None])
    return fit_affine(one, other, begin, torch.ones(1), torch.tensor([small]))


@pytest.mark.parametrize(
    "edit",
    [
        lambda image: image.resize((64, 48)),
        ImageOps.mirror,
        ImageOps.flip,
        lambda image: image.transpose(Image.Transpose.ROTATE_90),
        lambda image: image.transpose(Image.Transpose.TRANSVERSE),
        lambda image: image.resize((100, 120)),
        lambda image: ImageEnhance.Contrast(ImageEnhance.Brightness(image).enhance(0.6)).enhance(0.6),
        lambda image: image.rotate(3, Image.Resampling.BICUBIC).crop((10, 10, 150, 110)),
    ],
)
def test_a_copy_lies_on_its_original(edit: Callable[[Image.Image], Image.Image]) -> None:
    found = lay(scene(1), edit(scene(1)))
    assert float(found.correlation) > 0.8 and float(found.drift) < 0.1
    assert float(lay(scene(1), edit(scene(2))).correlation) < 0.3


def test_a_cut_out_is_found_from_a_rough_guess_in_both_directions() -> None:
    whole = scene(3, 320, 240)
    part = whole.crop((64, 48, 256, 192))  # the middle 60 %
    truth = np.array([[1 / 0.6, 0, -0.2 / 0.6], [0, 1 / 0.6, -0.2 / 0.6]])
    rough = truth * 1.03 + np.array([[0, 0.03, 0.03], [-0.03, 0, -0.02]])
    found = lay(whole, part, rough)
    assert float(found.correlation) > 0.85
    assert np.allclose(found.transform[0].numpy(), truth, atol=0.03)
    assert found.overlap[0].tolist() == pytest.approx([0.36, 1.0], abs=0.05)
    back = lay(part, whole, inverse(torch.tensor(rough)[None])[0].numpy())
    assert back.overlap[0].tolist() == pytest.approx([1.0, 0.36], abs=0.05)
    assert np.allclose(inverse(back.transform)[0].numpy(), truth, atol=0.03)


def test_what_is_known_beforehand_decides_whether_a_poor_start_is_followed() -> None:
    image = squares_of(grey(scene(3, 320, 240))[None])
    rough = torch.tensor([[[1.0, 0.01, 0.01], [-0.01, 1.0, -0.01]]])
    followed, given_up = (
        fit_affine(image, image, rough, torch.tensor([known]), torch.tensor([False])) for known in (1.0, -0.6)
    )
    assert float(followed.correlation) > 0.95 and float(followed.drift) < 0.01
    assert np.allclose(followed.transform[0], SAME, atol=1e-3)
    assert float(given_up.correlation) < 0.9 and float(given_up.drift) == np.inf


def test_a_small_image_saved_again_drifts_less_in_larger_blocks() -> None:
    image = scene(4, 72, 54)
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=25)
    again = Image.open(packed)
    as_others, as_small = (float(lay(image, again, small=small).drift) for small in (False, True))
    assert as_small < 0.6 * as_others
    assert as_small > 0  # it is measured all the same
    assert float(lay(image, scene(5, 72, 54), small=True).correlation) < 0.3


def test_two_flat_images_prove_nothing() -> None:
    flat = Image.new("L", (80, 60), 120)
    assert float(lay(flat, flat).correlation) == -1


def test_the_eight_turns_are_eight() -> None:
    turns = torch.from_numpy(whole_on_whole(np.arange(8)))
    assert len({tuple(turn.flatten().tolist()) for turn in turns}) == 8
    assert torch.linalg.det(turns[..., :2]).abs().allclose(torch.ones(8))
    corners = torch.tensor([[0.0, 0, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1]])
    for turn in turns:
        moved = corners @ turn.T
        assert sorted(map(tuple, moved.round().tolist())) == sorted(map(tuple, corners[:, :2].tolist()))


# ---- candidates ----


def rows_with_twins(num: int, seed: int = 0) -> np.ndarray:
    """Unit vectors of which row 2 n and row 2 n + 1 are near each other."""
    rng = np.random.default_rng(seed)
    one = rng.standard_normal((num // 2, 32))
    rows = np.stack([one, one + 0.2 * rng.standard_normal(one.shape)], 1).reshape(num, 32)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


@pytest.mark.parametrize("flat_up_to", [10_000, 0])
def test_neighbours_are_found_whole_and_in_cells(flat_up_to: int) -> None:
    pytest.importorskip("faiss")
    rows = rows_with_twins(600)
    found = near_pairs(rows, 0.85, flat_up_to=flat_up_to)
    pairs = set(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert all(first < second for first, second in pairs) and len(pairs) == len(found.first)
    twins = {(n, n + 1) for n in range(0, 600, 2)}
    assert len(twins & pairs) >= (300 if flat_up_to else 290)
    every = rows.astype(np.float32) @ rows.astype(np.float32).T
    for first, second, cosine in zip(found.first, found.second, found.cosine, strict=True):
        assert cosine == pytest.approx(every[first, second], abs=0.01) and cosine >= 0.85


def test_one_image_has_no_neighbours() -> None:
    assert len(near_pairs(rows_with_twins(2)[:1], 0.0).first) == 0


@pytest.mark.parametrize("turn", list(Image.Transpose))
def test_patterns_know_an_image_in_any_position(turn: Image.Transpose) -> None:
    images = [scene(n) for n in range(12)] + [scene(3).transpose(turn), Image.new("RGB", (160, 120), "grey")]
    rows = patterns_of(torch.stack([grey(image) for image in images]))
    found = alike_in_any_position(rows, 0.4)
    assert list(zip(found.first, found.second, strict=True)) == [(3, 12)]  # and the flat one is like nothing
    alike, position = likeness(rows, np.array([3, 3]), np.array([12, 4]))
    assert alike[0] > 0.8 > 0.4 > alike[1]
    marked = Image.new("L", (160, 120))  # with one place, which the position carries to where it lies now
    marked.putpixel((16, 40), 255)
    pixels = np.asarray(marked.transpose(turn))
    where = (np.argwhere(pixels)[0, ::-1] + 0.5) / pixels.shape[::-1]
    assert np.allclose(whole_on_whole(position)[0] @ [16.5 / 160, 40.5 / 120, 1], where, atol=1e-6)


def collage(parts: list[Image.Image], columns: int) -> Image.Image:
    """Images of one size side by side."""
    width, height = parts[0].size
    sheet = Image.new("RGB", (columns * width, len(parts) // columns * height))
    for n, part in enumerate(parts):
        sheet.paste(part, (n % columns * width, n // columns * height))
    return sheet


def test_patterns_know_the_parts_of_a_collage() -> None:
    images = [scene(n) for n in range(10)]
    images += [collage(images[:4], 2), collage(images[4:6], 1), Image.new("RGB", (160, 120), "grey")]
    squares = torch.stack([grey(image) for image in images])
    patterns = Patterns(patterns_of(squares), patterns_of_parts(squares))
    found = alike_in_part(patterns, 0.6)
    pairs = list(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert pairs == [(0, 10), (1, 10), (2, 10), (3, 10), (4, 11), (5, 11)]  # and the flat one is part of nothing
    placed = whole_in_part(patterns, found.first, found.second)
    np.testing.assert_array_equal(placed[1], [[0.5, 0, 0.5], [0, 0.5, 0]])
    np.testing.assert_array_equal(placed[5], [[1, 0, 0], [0, 0.5, 0.5]])
    (back,) = whole_in_part(patterns, found.second[1:2], found.first[1:2])
    np.testing.assert_allclose(back @ [0.75, 0.25, 1], (0.5, 0.5))


def test_joined_pairs_are_in_order_and_have_the_cosine_of_their_rows() -> None:
    rows = rows_with_twins(6)
    found = DuplicateCandidates(np.array([0, 2]), np.array([1, 3]), np.array([0.9, 0.8], np.float32))
    more = DuplicateCandidates(np.array([0, 1]), np.array([1, 4]), np.array([0.1, 0.1], np.float32))
    joined = with_pairs(found, more, rows)
    assert joined.first.tolist() == [0, 1, 2] and joined.second.tolist() == [1, 4, 3]
    expected = float(rows[1].astype(np.float32) @ rows[4].astype(np.float32))
    assert joined.cosine.tolist() == pytest.approx([0.9, expected, 0.8], abs=1e-3)
    assert are_among(joined, more).tolist() == [True, True, False] and not are_among(found, more)[1]


# ---- groups ----


def test_only_pairs_that_may_tell_something_new_are_compared() -> None:
    first, second = np.array([0, 0, 1, 1, 4]), np.array([1, 2, 2, 3, 5])
    assert with_keepers(first, second, [0, 1, 2, 3, 4, 5]).tolist() == [True, True, False, True, True]
    confirmed, tried = [near(0, 1), near(0, 2)], {(0, 1), (0, 2), (0, 3)}
    assert settled(first, second, confirmed, tried).tolist() == [True, True, True, False, False]
    with_another = [*confirmed, near(3, 6)]  # 1 and 3 are copies of 0 and 6, which were compared
    assert settled(first, second, with_another, {(0, 6)}).tolist() == [True, True, True, True, False]
    assert settled(first, second, with_another, set()).tolist() == [True, True, True, False, False]
    chain = [near(0, 1), near(1, 3)]
    assert [(one, other) for one, other, _ in untried_pairs(chain, range(6), {(0, 1), (1, 3)})] == [(0, 3)]


def test_an_image_with_very_many_copies_costs_each_other_one_no_more_than_its_reach() -> None:
    """0 has 500 copies; 600 to 604 differ from it, so that each is followed by itself."""
    copies = [near(0, copy) for copy in range(1, 501)]
    differing = [replace(near(0, other), stays="it differs") for other in range(600, 605)]
    tried = {(pair.first, pair.second) for pair in (*copies, *differing)}
    found = list(untried_pairs([*differing, *copies], [0, *range(1, 501), *range(600, 605)], tried))
    by_row = Counter(row for row, *_ in found)
    assert set(by_row) == set(range(600, 605)) and max(by_row.values()) < REACH
    assert {(600, 601), (603, 604)} <= {(row, other) for row, other, _ in found}  # the nearest are among them
    among = np.arange(1, 500)
    assert settled(among, among + 1, copies, tried).all()  # both are copies of 0


UPPER_LEFT = np.array([[0.5, 0, 0], [0, 0.5, 0]])  # how a photo lies in a collage of four
LOWER_RIGHT = np.array([[0.5, 0, 0.5], [0, 0.5, 0.5]])


def test_what_lies_in_one_collage_is_still_compared() -> None:
    """0 and 1 show one photo, 2 another; 3 is a collage of both photos."""
    pairs = [near(0, 3, UPPER_LEFT, (1, 0.25)), near(1, 3, UPPER_LEFT, (1, 0.25)), near(2, 3, LOWER_RIGHT, (1, 0.25))]
    assert settled(np.array([0]), np.array([1]), pairs, set()).tolist() == [False]
    chained = list(untried_pairs(pairs, [3, 0, 1, 2], {(0, 3), (1, 3), (2, 3)}))
    assert [(one, other) for one, other, _ in chained] == [(0, 1)]  # of 2 nothing is left in the quarter of 0
    np.testing.assert_allclose(chained[0][2], SAME, atol=1e-9)


def near(first: int, second: int, transform: np.ndarray = SAME, overlap: tuple[float, float] = (1.0, 1.0)) -> Pair:
    return Pair(first, second, "near", 0.9, transform, overlap)


def test_a_group_is_a_star_and_no_chain() -> None:
    sizes = {n: (100, 100) for n in range(4)}
    found = stars([near(0, 1), near(1, 2), near(3, 2)], [0, 1, 2, 3], sizes)
    assert [(star.keeper, [pair.second for pair in star.members]) for star in found] == [(0, [1]), (2, [3])]


def test_a_frame_adds_pixels_and_is_no_reason_to_be_kept() -> None:
    framed = near(0, 1, np.array([[1.25, 0, -0.125], [0, 1.25, -0.125]]), (0.64, 1.0))  # 1 is the middle of 0
    sizes = {0: (125, 125), 1: (100, 100), 2: (100, 100), 3: (50, 50)}
    pairs = [framed, near(1, 2), near(1, 3)]  # what is like the photo was not found to be like its framed copy
    found = stars(pairs, [0, 1, 2, 3], sizes, by_detail=True)
    assert [(star.keeper, sorted(pair.second for pair in star.members)) for star in found] == [(1, [0, 2, 3])]
    assert [star.keeper for star in stars(pairs, [0, 1, 2, 3], sizes)] == [0]
    small_first = stars([near(0, 1), near(1, 2)], [0, 1, 2], {0: (100, 100), 1: (80, 80), 2: (80, 80)}, by_detail=True)
    assert small_first[0].keeper == 0  # more detail counts for more


def test_a_collage_is_named_but_not_given_up_and_no_keeper_of_its_parts() -> None:
    sizes = {0: (400, 300), 1: (500, 400), 2: (200, 150)}
    pairs = [near(0, 1, UPPER_LEFT, (1.0, 0.25)), near(0, 2)]
    collage_first = stars(pairs, [1, 0, 2], sizes)
    assert [(star.keeper, len(star.members), len(star.related)) for star in collage_first] == [(1, 0, 1), (0, 1, 0)]
    assert "larger" in collage_first[0].related[0].stays
    photo_first = stars(pairs, [0, 1, 2], sizes)
    assert [(star.keeper, len(star.members), len(star.related)) for star in photo_first] == [(0, 1, 1)]
    assert "holds more" in photo_first[0].related[0].stays
    two = [
        near(1, 0, np.array([[2.0, 0, 0], [0, 2, 0]]), (0.25, 1)),
        near(1, 2, np.array([[2.0, 0, -1], [0, 2, 0]]), (0.25, 1)),
    ]
    (sheet,) = stars(two, [1, 0, 2], {0: (250, 200), 1: (500, 400), 2: (250, 200)})  # each as large as alone
    assert not sheet.members and {pair.stays for pair in sheet.related} == {"the keeper shows others beside it"}
    (cut,) = stars(two[:1], [1, 0], {0: (250, 200), 1: (500, 400)})
    assert len(cut.members) == 1  # by itself it is a cut-out
    large = {**sizes, 1: (1600, 1200)}  # and shows the photo twice as large; other photos make it no better keeper
    of_four = [*pairs, near(1, 2, SAME, (0.25, 1.0)), *(near(1, n, SAME, (0.25, 1.0)) for n in (3, 4, 5))]
    alone = {n: (100, 100) for n in (3, 4, 5)}
    assert stars(of_four, [1, 0, 2, 3, 4, 5], large | alone, by_detail=True)[0].keeper == 1
    assert stars(of_four, [1, 0, 2, 3, 4, 5], sizes | alone, by_detail=True)[0].keeper == 0


@pytest.mark.parametrize(
    "transform, overlap, words",
    [
        (SAME, (1, 1), "the same image in other bytes"),
        (np.array([[-1.0, 0, 1], [0, 1, 0]]), (1, 1), "mirrored"),
        (np.array([[1.0, 0, 0], [0, -1, 1]]), (1, 1), "mirrored, turned by 180 degrees"),
        (np.array([[1 / 0.8, 0, 0], [0, 1 / 0.8, 0]]), (0.64, 1), "cropped to 64 %, at 125 % of the size"),
        (np.array([[0.5, 0, 0], [0, 0.5, 0]]), (1, 0.25), "with more around it: 25 % of it, at 50 % of the size"),
    ],
)
def test_what_was_done_is_told_in_words(transform: np.ndarray, overlap: tuple[float, float], words: str) -> None:
    assert describe_change(near(0, 1, transform, overlap), {0: (100, 100), 1: (100, 100)}) == words


def test_a_quarter_turn_is_told_for_any_shape() -> None:
    turn = np.array([[0.0, 1, 0], [-1, 0, 1]])
    assert describe_change(near(0, 1, turn), {0: (400, 300), 1: (300, 400)}) == "turned by 90 degrees"


def test_each_order_keeps_what_it_says() -> None:
    from datetime import UTC, datetime

    def record(name: str, width: int, format: str, size: int, year: int | None) -> Record:
        taken = datetime(year, 1, 1, tzinfo=UTC) if year else None
        return Record(name, (StoredFile(name, size, 0),), Metadata(width, 10, format, taken), "fit")

    records = [
        record("large", 400, "JPEG", 10, 2021),
        record("lossless", 300, "PNG", 20, 2022),
        record("heavy", 200, "JPEG", 90, 2023),
        record("old", 100, "JPEG", 5, 2001),
        record("new", 100, "JPEG", 5, 2024),
        record("undated", 100, "JPEG", 5, None),
    ]
    first = {keep: min(records, key=keeping_order(keep)).id for keep in ("resolution", "bytes", "format")}
    assert first == {"resolution": "large", "bytes": "heavy", "format": "lossless"}
    assert min(records, key=keeping_order("oldest")).id == "old"
    assert [one.id for one in sorted(records, key=keeping_order("newest"))][::5] == ["new", "undated"]


# ---- the whole path ----


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten photos; of the first two there are copies. Its index, by the shipped backbone, is beside the photos."""
    folder = tmp_path_factory.mktemp("album")
    (folder / "made").mkdir()
    for n in range(10):
        scene(n).save(folder / f"{n}.png")
    first, second = scene(0), scene(1)
    first.save(folder / "made/0_small.jpg", quality=60)
    first.resize((80, 60)).save(folder / "made/0_tiny.png")
    ImageOps.mirror(first).save(folder / "made/0_mirrored.jpg", quality=90)
    (folder / "made/0_same.png").write_bytes((folder / "0.png").read_bytes())
    ImageEnhance.Brightness(second).enhance(0.7).save(folder / "made/1_dark.jpg", quality=90)
    sheet = collage([scene(2), *(scene(20 + n) for n in range(3))], 2)
    sheet.resize((200, 150)).save(folder / "made/2_and_others.jpg", quality=90)
    sync_folder(folder, options=SyncOptions(resolution=112, workers=1))
    return folder


def names(found: Duplicates) -> dict[str, set[str]]:
    """The files of each group by its keeper's."""
    return {
        Path(group.file.path).name: {Path(file.path).name for member in group.members for file in member.files}
        for group in found.groups
    }


@pytest.mark.long
def test_copies_are_found_and_other_photos_are_not(album: Path) -> None:
    pytest.importorskip("faiss")
    found = find_duplicates(album / ".seenit", workers=1)
    assert names(found) == {
        "0.png": {"0_same.png", "0_small.jpg", "0_tiny.png", "0_mirrored.jpg"},
        "1.png": {"1_dark.jpg"},
        "2_and_others.jpg": {"2.png"},
    }
    (of_collage,) = (group for group in found.groups if group.members[0].stays)
    assert not of_collage.spare  # it holds three more, and shows this one smaller
    how = {
        Path(file.path).name: member.how for group in found.groups for member in group.members for file in member.files
    }
    assert how["0_mirrored.jpg"] == "mirrored" and "50 %" in how["0_tiny.png"]
    assert found.images == 15 and found.notes == ()


def test_exact_reads_no_vectors(album: Path) -> None:
    found = find_duplicates(album / ".seenit", DuplicateOptions(level="exact"))
    assert names(found) == {"0.png": {"0_same.png"}}
    assert found.groups[0].members[0].similarity == 1.0


def test_table_json_and_page_tell_the_same(album: Path, tmp_path: Path) -> None:
    found = find_duplicates(album / ".seenit", workers=1)
    files = {file.path for group in found.groups for file in [group.file, *group.spare]}
    assert all(file in duplicates_table(found) for file in files)
    assert "3 groups; 5 files (1 exact, 4 near)" in duplicates_table(found)
    values = json.loads(json.dumps(as_json(found)))
    keepers = {"0.png", "1.png", "made/2_and_others.jpg"}
    assert {one["keeper"]["path"] for one in values["groups"]} == {str(album / name) for name in keepers}
    assert sum(one["bytes_freed"] for one in values["groups"]) == sum(
        file.size for group in found.groups for file in group.spare
    )
    assert write_duplicates_page(tmp_path / "page.html", found) == 3
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count('class="dup-group"') == 3 and "mirrored" in page
    members = [file for group in found.groups for member in group.members for file in member.files]
    assert page.count('class="tile"') == 3 + len(members)


def test_a_file_that_vanished_or_changed_is_said_and_left_out(tmp_path: Path, tiny_backbone: Path) -> None:
    for n in range(3):
        scene(0).save(tmp_path / f"{n}.jpg", quality=90 - n)
    sync_folder(tmp_path, options=SyncOptions(workers=1), backbone=tiny_backbone)
    (tmp_path / "1.jpg").unlink()
    found = find_duplicates(tmp_path / ".seenit", workers=1)
    assert names(found) == {"0.jpg": {"2.jpg"}}
    assert "it is gone" in found.notes[0] and "seenit index" in found.notes[0]


@pytest.mark.long
def test_images_that_are_all_equal_make_one_group(tmp_path: Path, tiny_backbone: Path) -> None:
    for n in range(16):  # more than each one's neighbours
        scene(0).save(tmp_path / f"{n:02}.jpg", quality=80 + n)
    sync_folder(tmp_path, options=SyncOptions(workers=1), backbone=tiny_backbone)
    found = find_duplicates(tmp_path / ".seenit", DuplicateOptions(neighbours=4), workers=1)
    assert [len(group.members) for group in found.groups] == [15]


def test_two_images_and_damaged_vectors(tmp_path: Path, tiny_backbone: Path) -> None:
    for n in range(2):
        scene(n).save(tmp_path / f"{n}.png")
    sync_folder(tmp_path, options=SyncOptions(workers=1), backbone=tiny_backbone)
    assert find_duplicates(tmp_path / ".seenit", workers=1).groups == ()
    store = open_store(tmp_path / ".seenit", write=True)
    record = next(store.scroll(vectors=True))
    assert record.global_vector is not None
    zeros = np.zeros_like(record.global_vector)
    store.upsert([Record(record.id, record.files, record.metadata, record.whitening_id, (), zeros, record.patches)])
    store.close()
    assert "damaged vectors" in find_duplicates(tmp_path / ".seenit", workers=1).notes[0]


def test_no_index_and_another_versions_index_are_one_line(tmp_path: Path, album: Path) -> None:
    with pytest.raises(SeenitError, match="no index"):
        find_duplicates(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SeenitError, match="no index"):
        find_duplicates(tmp_path / "empty")
    shutil.copytree(album / ".seenit", tmp_path / "other")
    with closing(open_store(tmp_path / "other", write=True)) as store:
        manifest = store.read_blob("manifest.json")
        assert manifest is not None
        store.write_blob("manifest.json", manifest.replace(b'"format": 2', b'"format": 9'))
    with pytest.raises(SeenitError, match="newer seenit"):
        find_duplicates(tmp_path / "other")
