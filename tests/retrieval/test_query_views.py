"""Which parts of a query image are looked at, and that what is found in them is told where it is in the image."""

from pathlib import Path

import numpy as np
import pytest
from conftest import draw_photo
from PIL import Image, ImageDraw

from indexer import Backbone, sync_folder
from indexer.sync.options import SyncOptions
from retrieval import Searcher
from retrieval.options import SearchOptions
from retrieval.query.crops import edge_turn, middle, middle_frame, query_crops


def book(degrees: float, size: tuple[int, int] = (300, 240)) -> np.ndarray:
    """A rectangle with lines on a grey ground, turned clockwise."""
    image = Image.new("RGB", size, (128, 128, 128))
    draw = ImageDraw.Draw(image)
    draw.rectangle((90, 50, 210, 190), fill=(200, 60, 40))
    for y in range(70, 180, 20):
        draw.line((100, y, 200, y), fill=(250, 250, 230), width=4)
    return np.asarray(image.rotate(-degrees, Image.Resampling.BICUBIC, fillcolor=(128, 128, 128)))


@pytest.mark.parametrize("degrees", [-40, -20, -10, 0, 12, 30, 44])
def test_edges_show_by_how_much_they_are_turned(degrees: float) -> None:
    turn, peak = edge_turn(book(degrees))
    assert turn == pytest.approx(degrees, abs=2) and peak > 2
    assert edge_turn(book(degrees + 90))[0] == pytest.approx(degrees, abs=2)  # which side is up they do not show


def test_where_no_direction_stands_out_nothing_is_turned() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8)
    for image in (noise, np.full((200, 300, 3), 77, np.uint8), np.zeros((1, 1, 3), np.uint8), book(4)):
        cuts = query_crops(image)
        assert len(cuts) == 2 and all(min(cut.pixels.shape) > 0 for cut in cuts)
    assert edge_turn(np.full((200, 300, 3), 77, np.uint8)) == (0, 0)


def test_a_turned_thing_is_also_seen_level() -> None:
    whole, centre, *turned = query_crops(book(30))
    assert whole.pixels.shape == (240, 300, 3) and centre.pixels.shape == (144, 180, 3)
    upright = middle(book(0)).astype(float)
    away = [np.abs(cut.pixels - upright).mean() for cut in (centre, *turned)]
    assert len(turned) == 2 and min(away) == away[1] < away[0] / 3  # the first of the two is upright


@pytest.mark.parametrize("degrees", [0, 25, -65, 90])
def test_frames_lead_back_to_the_image(degrees: float) -> None:
    """In an image whose colours are coordinates, each pixel of the middle has the colour that its frame says."""
    height, width = 200, 320
    y, x = np.mgrid[:height, :width] + 0.5
    image = np.stack([x / width * 255, y / height * 255, 0 * x], axis=-1).round().astype(np.uint8)
    cut = middle(np.asarray(Image.fromarray(image).rotate(degrees, Image.Resampling.BICUBIC)))
    at = np.stack(
        [(np.arange(9) + 0.5) / 9, ((np.arange(9) * 4) % 9 + 0.5) / 9], axis=1
    )  # (9, 2), fractions of the cut
    rows, cols = (at[:, 1] * cut.shape[0]).astype(int), (at[:, 0] * cut.shape[1]).astype(int)
    frame = middle_frame(image, degrees)
    there = at @ frame[:, :2].T + frame[:, 2]
    inside = ((there > 0.02) & (there < 0.98)).all(1)  # turned corners come from outside
    assert inside.sum() >= 6
    np.testing.assert_allclose(cut[rows, cols, :2][inside] / 255, there[inside], atol=0.015)


@pytest.mark.slow
def test_a_turned_photo_is_found_and_its_match_lies_where_it_is(tmp_path: Path, tiny_backbone: Path) -> None:
    for n in range(4):
        draw_photo(tmp_path / f"{n}.jpg", n + 60)
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize((240, 240), Image.Resampling.NEAREST).save(tmp_path / "blocks.png")
    sync_folder(tmp_path, options=SyncOptions(resolution=112, workers=1), backbone=str(tiny_backbone))
    large = Image.new("RGB", (400, 400), (90, 90, 90))
    large.paste(Image.open(tmp_path / "blocks.png").copy(), (80, 80))
    query = large.rotate(-30, Image.Resampling.BICUBIC, fillcolor=(90, 90, 90))
    with Searcher.open(tmp_path / ".seenit") as searcher:
        searcher.use(Backbone.load(str(tiny_backbone)))
        first = searcher.search(query, SearchOptions(top=1))[0]
    assert first.path.endswith("blocks.png") and first.evidence is not None and first.evidence.transform is not None
    linear, shift = first.evidence.transform[:, :2], first.evidence.transform[:, 2]
    centre = linear @ [0.5, 0.5] + shift
    np.testing.assert_allclose(centre, [0.5, 0.5], atol=0.05)
    turn = np.degrees(np.arctan2(linear[1, 0], linear[0, 0]))  # from the query to the image; both are square
    assert turn == pytest.approx(-30, abs=5)
    assert np.hypot(*linear[:, 0]) == pytest.approx(400 / 240, rel=0.15)
