"""Images that prove a match: what is drawn lies where the evidence says, and pages hold it whole."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_images import quarters
from PIL import Image, ImageDraw

from indexer.backbone.backbone import Backbone
from indexer.backbone.vit import TokenFeatures
from indexer.descriptor.embedder import Embedder
from indexer.descriptor.patch_maps import cls_attention, patch_colours
from indexer.descriptor.pooling import pool
from indexer.descriptor.whitening import Whitening, apply_whitening
from indexer.errors import SeenitError
from retrieval.rerank.evidence import Evidence, percent
from retrieval.show.draw_match import LINES, colour_of, draw_match, heat_image, heat_maps, side_by_side, spread_out
from retrieval.show.inspect import draw_inspection, inspect_image, patch_share
from retrieval.show.match_page import in_sentences, turned, write_explain_page, write_inspection_page

GREY = (128, 128, 128)


def evidence(
    pairs: list[tuple[float, float, float, float, float]], probability: float | None = 0.9, **more: Any
) -> Evidence:
    is_match = probability is not None and probability > 0.5
    return Evidence(probability, is_match, len(pairs), np.array(pairs, np.float32).reshape(-1, 5), **more)


def saturated(sheet: Image.Image) -> np.ndarray:
    """(H, W) bool: pixels that are clearly coloured."""
    pixels = np.asarray(sheet).astype(int)
    return pixels.max(-1) - pixels.min(-1) > 40


# ---- the evidence in words ----


def test_a_verdict_follows_match_and_probability() -> None:
    assert evidence([(0, 0, 0, 0, 1)], 0.9).in_words == "same: 90 % probable, 1 inlier"
    assert evidence([], 0.3).in_words == "perhaps: 30 % probable, 0 inliers"
    assert evidence([], 0.05).verdict == "no match"
    assert evidence([], None).verdict is None and evidence([], None).in_words == "0 inliers"
    assert Evidence(0.1, True, 0, np.empty((0, 5))).verdict == "same", "the index's threshold decides, not the word's"


def test_nothing_is_ever_certain() -> None:
    assert (percent(1.0), percent(0.999), percent(0.0), percent(0.5)) == ("99 %", "99 %", "1 %", "50 %")


# ---- the image of a match ----


def test_a_line_runs_from_patch_to_patch() -> None:
    query, result = Image.new("RGB", (300, 200), GREY), Image.new("RGB", (200, 200), GREY)
    sheet = draw_match(query, result, evidence([(0.25, 0.5, 0.75, 0.25, 0.9)]), width_px=700)
    empty = draw_match(query, result, evidence([]), width_px=700)
    assert sheet.size == empty.size and sheet.width == 700
    left, right = side_by_side(query.size, result.size, 700, 14, 14 + 48)
    drawn = (np.asarray(sheet).astype(int) != np.asarray(empty)).any(-1)
    drawn[:60] = False  # the words above differ too
    ends = [left.at(0.25, 0.5), right.at(0.75, 0.25)]
    for share in np.linspace(0, 1, 9):
        x, y = (a + share * (b - a) for a, b in zip(*ends, strict=True))
        assert drawn[round(y) - 2 : round(y) + 3, round(x) - 2 : round(x) + 3].any(), f"at {share} of the line"
    rows, cols = np.nonzero(drawn)
    assert abs(cols.min() - ends[0][0]) < 6 and abs(cols.max() - ends[1][0]) < 6
    assert abs(rows.min() - ends[1][1]) < 6 and abs(rows.max() - ends[0][1]) < 6


@pytest.mark.slow
def test_boxes_lie_at_their_fractions_unless_nothing_is_there() -> None:
    photo = Image.new("RGB", (200, 200), GREY)
    for probability, shown in ((0.9, True), (0.3, True), (None, True), (0.01, False)):
        proof = evidence([], probability, box=(0.25, 0.5, 0.5, 0.25))
        coloured = saturated(draw_match(photo, photo, proof, width_px=1400))
        _, right = side_by_side(photo.size, photo.size, 1400, 28, 28 + 96)
        inside = coloured[right.y : right.y + right.height, right.x : right.x + right.width]
        assert inside.any() == shown
        if shown:
            rows, cols = np.nonzero(inside)
            place = np.array([cols.min(), cols.max(), rows.min(), rows.max()]) / right.width
            assert place == pytest.approx([0.25, 0.75, 0.5, 0.75], abs=0.01)


def test_photos_of_any_shape_fit_side_by_side() -> None:
    for sizes in (((100, 100), (100, 100)), ((1000, 10), (10, 1000)), ((30, 90), (30, 90)), ((1, 4000), (4000, 1))):
        left, right = side_by_side(*sizes, 1400, 28, 0)
        assert left.height == right.height >= 1
        assert left.x >= 28 and left.x + left.width + 28 == right.x and right.x + right.width <= 1400 - 28
        sheet = draw_match(Image.new("RGB", sizes[0]), Image.new("RGB", sizes[1]), evidence([(0, 0, 1, 1, 0.5)]))
        assert sheet.width == 1400 and sheet.height < 1400


@pytest.mark.slow
def test_heat_makes_a_second_row() -> None:
    photo = Image.new("RGB", (200, 100), "white")
    heat = np.zeros((4, 8), np.float32)
    heat[:, 4:] = 1
    plain = draw_match(photo, photo, evidence([]))
    both = draw_match(photo, photo, evidence([]), heat, heat)
    assert both.height > plain.height + 200
    assert draw_match(photo, photo, evidence([]), heat).size == plain.size
    shown = np.asarray(heat_image(photo, heat, (200, 100))).astype(int)
    assert abs(shown[50, 20] - colour_of(np.array(0.0))).max() < 12
    assert abs(shown[50, 180] - colour_of(np.array(1.0))).max() < 12


def test_heat_is_never_stretched() -> None:
    photo = Image.new("RGB", (64, 64), "white")
    unlike = np.asarray(heat_image(photo, np.linspace(0, 0.2, 16).reshape(4, 4), (64, 64)))
    assert abs(unlike.astype(int) - colour_of(np.array(0.1))).max() < 60


def test_colours_grow_lighter_all_the_way() -> None:
    light = colour_of(np.linspace(0, 1, 50)) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(light) > 0).all()
    assert colour_of(np.array([-3.0, np.nan, 7.0])).tolist() == colour_of(np.array([0.0, 0.0, 1.0])).tolist()


def test_heat_is_the_best_cosine_anywhere() -> None:
    rng = np.random.default_rng(0)
    query, result = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 4, 8), (2, 5, 8)))
    query, result = (tokens / np.linalg.norm(tokens, axis=-1, keepdims=True) for tokens in (query, result))
    of_query, of_result = heat_maps(query, result)
    for row, col in np.ndindex(3, 4):
        assert of_query[row, col] == pytest.approx(max(query[row, col] @ token for token in result.reshape(-1, 8)))
    for row, col in np.ndindex(2, 5):
        assert of_result[row, col] == pytest.approx(max(result[row, col] @ token for token in query.reshape(-1, 8)))


def test_joined_pairs_are_spread_over_the_image() -> None:
    rng = np.random.default_rng(0)
    places = np.stack(np.meshgrid(np.arange(20) / 20, np.arange(20) / 20), -1).reshape(-1, 2)
    cosines = np.where(places[:, 1] < 0.3, 0.9, 0.5)[:, None]  # the best ones are all at the top
    pairs = np.hstack([places, places, cosines])[np.argsort(-cosines[:, 0], kind="stable")]
    chosen = pairs[spread_out(pairs)]
    assert len(chosen) == LINES and (np.diff(spread_out(pairs)) > 0).all()
    assert np.histogram(chosen[:, 1], 4, (0, 1))[0].min() >= LINES // 8
    assert np.histogram(chosen[:, 0], 4, (0, 1))[0].min() >= LINES // 8
    few = rng.random((7, 5))
    assert spread_out(few).tolist() == list(range(7)) and len(spread_out(few[:0])) == 0


# ---- the page of a match ----


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open += [] if tag == "meta" else [tag]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def test_the_page_of_a_match_holds_every_pair_and_nothing_foreign(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    proof = evidence(rng.random((LINES + 20, 5)).tolist(), box=(0.1, 0.1, 0.5, 0.4), query_box=(0, 0, 1, 1))
    heat = rng.random((6, 8)).astype(np.float32)
    names = ("/photos/<script>alert(1)</script>.jpg", "b.jpg")
    write_explain_page(
        tmp_path / "a.html", quarters(), quarters(), proof, heat, heat, titles=names, made_by=["index <x>"]
    )
    page = Page(tmp_path / "a.html")
    assert not page.open
    groups = [g["class"] for g in page.all("g")]
    assert len(groups) == LINES + 20 and groups.count("pair") == LINES
    assert len(page.all("image")) == 4
    assert all((image["href"] or "").startswith("data:image/jpeg;base64,") for image in page.all("image"))
    assert not {"script", "link", "iframe", "img", "x"} & {tag for tag, _ in page.tags}
    for words in ("same", "90 % probable", f"{LINES + 20} inliers", "20 % of the result", names[0], "index <x>"):
        assert words in page.text
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv"))
    assert policy and "script-src" not in policy and "default-src 'none'" in policy


def numbers(attrs: dict[str, str | None]) -> tuple[float, ...]:
    return tuple(float(attrs[name] or "nan") for name in ("x", "y", "width", "height"))


def test_pointing_at_a_patch_lights_up_its_pair(tmp_path: Path) -> None:
    proof = evidence([(0.25, 0.5, 0.75, 0.5, 0.8)])
    write_explain_page(tmp_path / "a.html", quarters(80, 80), quarters(80, 80), proof, np.ones((4, 4)), np.ones((8, 8)))
    page = Page(tmp_path / "a.html")
    patches = [rect for rect in page.all("rect") if rect.get("class") == "patch"]
    photos = page.all("image")[:2]
    for patch, photo, (x, y), side in zip(patches, photos, [(0.25, 0.5), (0.75, 0.5)], [4, 8], strict=True):
        middle = [
            float(patch[at] or "nan") + float(patch[size] or "nan") / 2
            for at, size in (("x", "width"), ("y", "height"))
        ]
        width = float(photo["width"] or "nan")
        assert middle == pytest.approx([float(photo["x"] or "nan") + x * width, y * width], abs=0.2)
        assert float(patch["width"] or "nan") == pytest.approx(width / side, abs=0.2)
    assert ".pair:hover" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_a_page_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SeenitError, match=r"cannot write .*name another file"):
        write_inspection_page(tmp_path / "no such folder" / "a.html", quarters())
    assert not list(tmp_path.iterdir())


def fractions(turn: float, scale: float, query: tuple[int, int], result: tuple[int, int], mirror: bool) -> np.ndarray:
    """The transform of fractions for a turn clockwise and a scale in pixels."""
    angle = np.radians(turn)
    pixels = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    pixels = pixels @ np.diag([-1 if mirror else 1, 1])
    linear = np.diag(1 / np.array(result)) @ pixels @ np.diag(query)
    return np.hstack([linear, [[0.1], [0.2]]]).astype(np.float32)


@pytest.mark.parametrize("turn", [-135, -20, 0, 61, 179])
@pytest.mark.parametrize("mirror", [False, True])
def test_the_turn_is_that_of_pixels_not_of_fractions(turn: float, mirror: bool) -> None:
    query, result = (640, 480), (300, 900)
    told, mirrored = turned(fractions(turn, 0.7, query, result, mirror), query, result)
    assert told == pytest.approx(turn, abs=0.01) and mirrored == mirror


def test_sentences_say_where_and_how() -> None:
    pairs = [(0.1, 0.1, 0.2, 0.2, 0.8), (0.2, 0.2, 0.3, 0.3, 0.4)]
    sizes = ((640, 480), (640, 480))
    proof = evidence(pairs, box=(0, 0, 0.5, 0.5), transform=fractions(30, 1, *sizes, mirror=True))
    text = in_sentences(proof, *sizes)
    for words in ("25 % of the result", "30 degrees clockwise", "mirrored", "0.40 to 0.80"):
        assert words in text
    not_there = in_sentences(evidence(pairs, 0.01, box=(0, 0, 0.5, 0.5)), *sizes)
    assert "no match" in not_there and "of the result" not in not_there


# ---- one image ----


@pytest.fixture
def embedder(tiny_backbone: Path) -> Embedder:
    return Embedder(Backbone.load(tiny_backbone, say=lambda line: None, dtype="float32"), resolution=140)


@pytest.fixture
def whitening(embedder: Embedder) -> Whitening:
    rng = np.random.default_rng(0)
    return embedder.fit_whitening(
        [embedder.pooled([rng.integers(0, 256, (140, 140, 3), dtype=np.uint8)]) for _ in range(6)]
    )


def drawn_photo(size: tuple[int, int] = (160, 120)) -> Image.Image:
    photo = quarters(*size)
    ImageDraw.Draw(photo).ellipse((20, 20, 70, 60), "orange")
    return photo


def test_a_look_has_every_map_on_the_grid(embedder: Embedder, whitening: Whitening) -> None:
    inspection = inspect_image(np.asarray(drawn_photo()), embedder, whitening)
    grid = inspection.kept.shape
    assert grid[0] < grid[1] and inspection.colours.shape == (*grid, 3)
    assert inspection.share.shape == inspection.attention.shape == grid
    assert inspection.kept.sum() == min(embedder.config.num_tokens, inspection.kept.size)
    assert 0 < inspection.attention.sum() < 1 and np.isfinite(inspection.share).all()


def test_the_share_is_what_the_formula_says(embedder: Embedder, whitening: Whitening) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (1, 70, 98, 3), dtype=np.uint8)
    features = embedder.backbone.intermediate(pixels, embedder.layers)
    share = patch_share(features, embedder, whitening)
    pooled = pool(features, embedder.config, embedder.backbone.depth)
    vector = torch.from_numpy(apply_whitening(pooled, whitening)[0][0])
    num_cls, dim = len(embedder.config.cls_depths), embedder.backbone.embed_dim
    for n in (0, 17, 34):
        alone = [
            TokenFeatures(one.cls, one.registers, one.patches[:, n : n + 1], (1, 1)) for one in features
        ]  # CLS stays here, and its part of the sum is left out
        parts = pool(alone, embedder.config, embedder.backbone.depth).parts.flatten(1)[0]
        expected = ((parts - whitening.mean)[num_cls * dim :] @ whitening.projection[num_cls * dim :]) @ vector
        assert share.flat[n] == pytest.approx(float(expected), rel=1e-3, abs=1e-4)


def test_patches_that_are_alike_have_like_colours() -> None:
    rng = np.random.default_rng(0)
    kinds = torch.from_numpy(rng.normal(size=(3, 16)).astype(np.float32))
    which = torch.from_numpy(rng.integers(0, 3, (2, 12)))
    patches = kinds[which] + 0.01 * torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(0))
    colours = patch_colours(TokenFeatures(torch.zeros(2, 16), torch.zeros(2, 0, 16), patches, (3, 4)))
    assert colours.shape == (2, 3, 4, 3) and colours.dtype == np.uint8
    flat = colours.reshape(-1, 3).astype(int)
    means = np.stack([flat[which.flatten().numpy() == kind].mean(0) for kind in range(3)])
    between = min(abs(means[a] - means[b]).max() for a, b in ((0, 1), (0, 2), (1, 2)))
    assert between > 60


def test_attention_is_a_share_of_one(embedder: Embedder) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 70, 42, 3), dtype=np.uint8)
    attention = cls_attention(embedder.backbone, pixels)
    assert attention.shape == (2, 5, 3) and (attention >= 0).all()
    assert (attention.sum((1, 2)) < 1).all() and (attention.sum((1, 2)) > 0.1).all()


@pytest.mark.slow
@pytest.mark.parametrize("size", [(160, 120), (120, 160)])
def test_one_image_is_drawn_in_four_panels(
    embedder: Embedder, whitening: Whitening, size: tuple[int, int], tmp_path: Path
) -> None:
    photo = drawn_photo(size)
    sheet = draw_inspection(photo, inspect_image(np.asarray(photo), embedder, whitening), width_px=800)
    lying = size[0] > size[1]  # then two rows of two, else one row of four
    assert sheet.width == 800 and (sheet.height > 600) == lying
    write_inspection_page(tmp_path / "look.html", sheet, title="/photos/a.jpg", made_by=["backbone tiny"])
    page = Page(tmp_path / "look.html")
    assert len(page.all("image")) == 1 and "backbone tiny" in page.text and not page.open
    assert re.search("file:///photos/a.jpg", str(page.all("a")))
