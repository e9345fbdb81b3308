"""Things that were photographed sideways: found by quarter turned crops, and told where they are in the query."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_photo
from PIL import Image

from indexer import sync_folder
from indexer.descriptor.features import CropFeatures
from indexer.images.metadata import content_id
from indexer.index.calibration import CALIBRATION_BLOB, Calibration, calibration_json
from indexer.index.index import Index
from indexer.store.protocol import Hit
from indexer.sync.options import SyncOptions
from retrieval import Searcher, match_images
from retrieval.options import SearchOptions
from retrieval.query import plain
from retrieval.query.crops import QueryCrop, query_crops
from retrieval.query.encoder import frame_of, read_query
from retrieval.query.feature_cache import IdentifiedImage
from retrieval.query.query import EncodedQuery, MultiQuery, combined
from retrieval.query.turned import turned, turned_crops
from retrieval.rerank.evidence import Evidence
from retrieval.rerank.ranking import Ranked
from retrieval.rerank.turned import take_proven

TURNS = (90, 180, 270)
RESOLUTION = 224
PATCH = 0.09  # a patch and a half as a share of an image's side, about
CLOCKWISE = {90: Image.Transpose.ROTATE_270, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_90}


def coordinates(height: int, width: int) -> np.ndarray:
    """An image whose red is x and whose green is y, as fractions of 255."""
    y, x = np.mgrid[:height, :width] + 0.5
    return np.stack([x / width * 255, y / height * 255, 0 * x], axis=-1).round().astype(np.uint8)


@pytest.mark.parametrize("degrees", TURNS)
def test_a_turned_crop_is_turned_clockwise_and_its_frame_leads_back(degrees: int) -> None:
    image = coordinates(200, 320)
    part = QueryCrop(image[40:180, 100:300], frame_of((100, 40, 200, 140), 320, 200))
    crop = turned(part, degrees)
    assert np.array_equal(crop.pixels, np.asarray(Image.fromarray(part.pixels).transpose(CLOCKWISE[degrees])))
    assert crop.turn == degrees
    at = np.array([(0.1, 0.2), (0.5, 0.5), (0.9, 0.3), (0.35, 0.95)])
    rows, cols = (at * crop.pixels.shape[1::-1]).astype(int).T[::-1]
    there = at @ crop.frame[:, :2].T + crop.frame[:, 2]
    np.testing.assert_allclose(crop.pixels[rows, cols, :2] / 255, there, atol=0.01)


def test_all_quarter_turns_are_seen_once() -> None:
    flat = np.full((120, 160, 3), 90, np.uint8)
    flat[30:90, 40:120] = 200
    assert [crop.turn for crop in turned_crops(read_query(flat, None, 56))] == list(TURNS)
    aslant = read_query(Image.fromarray(flat).rotate(30, Image.Resampling.BICUBIC, fillcolor=(90, 90, 90)), None, 56)
    level = [crop.turn for crop in query_crops(aslant.pixels)[2:]]
    assert sorted(level + [crop.turn for crop in turned_crops(aslant)]) == [0, *TURNS]
    region = read_query(flat, (10, 10, 80, 60), 56)
    of_region = turned_crops(region)
    assert [crop.turn for crop in of_region] == list(TURNS)
    assert {crop.pixels.shape for crop in of_region} == {(60, 80, 3), (80, 60, 3)}


def blocks(seed: int) -> Image.Image:
    colours = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((320, 240), Image.Resampling.NEAREST)


@pytest.fixture(scope="module", autouse=True)
def nothing_is_plain() -> Iterator[None]:
    """The blocks are plain within, and random weights need all that there is to see of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain, "PLAIN_DEVIATION", -1.0)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("turned")
    for n in range(4):
        draw_photo(folder / f"{n}.jpg", n + 60)
    blocks(0).save(folder / "blocks.png")
    return folder


@pytest.fixture(scope="module")
def searcher(folder: Path, tiny_backbone: Path) -> Iterator[Searcher]:
    sync_folder(folder, options=SyncOptions(resolution=RESOLUTION, workers=1), backbone=str(tiny_backbone))
    calibrate_by_hand(folder / ".seenit")
    with Searcher.open(folder / ".seenit") as opened:
        yield opened


def calibrate_by_hand(index: Path) -> None:
    """A random backbone gives upright blocks a score of .33 and inliers standing out by .17, others by .15 at most."""
    with Index.open(index, write=True) as opened:
        learnt = Calibration(100.0, -31.0, 200.0, -32.4, opened.manifest.whitening_id, opened.count, 0.0, 0.0, 0.0)
        opened.store.write_blob(CALIBRATION_BLOB, calibration_json(learnt))


PLACE = (100, 90)  # left, top of the blocks in an upright scene of 500 x 400


def scene(degrees: int) -> Image.Image:
    upright = Image.new("RGB", (500, 400), (90, 90, 90))
    upright.paste(blocks(0), PLACE)
    return upright if not degrees else upright.transpose(CLOCKWISE[360 - degrees])


def place_in_scene(degrees: int) -> np.ndarray:
    """x, y, width, height of the blocks as fractions of `scene(degrees)`, which is turned anticlockwise."""
    mask = Image.new("L", (500, 400))
    mask.paste(255, (*PLACE, PLACE[0] + 320, PLACE[1] + 240))
    box = (mask if not degrees else mask.transpose(CLOCKWISE[360 - degrees])).getbbox()
    assert box is not None
    left, top, right, bottom = box
    width, height = scene(degrees).size
    return np.array([left / width, top / height, (right - left) / width, (bottom - top) / height])


def check(evidence: Evidence | None, degrees: int) -> None:
    """The blocks, found in a scene that must be turned clockwise by `degrees` to be upright."""
    assert evidence is not None and evidence.turn == degrees
    assert (f", turned by {degrees} degrees" in evidence.reason) == bool(degrees)
    assert evidence.box is not None and evidence.query_box is not None and evidence.transform is not None
    own = place_in_scene(degrees)
    assert min(evidence.query_box[2:]) > 0.3, "most of the middle is found"
    low, high = np.array(evidence.query_box[:2]), np.array(evidence.query_box[:2]) + evidence.query_box[2:]
    assert (low > own[:2] - PATCH).all() and (high < own[:2] + own[2:] + PATCH).all()
    linear, shift = evidence.transform[:, :2], evidence.transform[:, 2]
    landed = evidence.pairs[:, :2] @ linear.T + shift
    np.testing.assert_allclose(landed, evidence.pairs[:, 2:4], atol=PATCH)
    middle = own[:2] + own[2:] / 2
    np.testing.assert_allclose(linear @ middle + shift, (0.5, 0.5), atol=PATCH)
    size, cells = np.array(scene(degrees).size), np.array((320, 240))
    pixels = np.diag(cells) @ linear @ np.diag(1 / size)
    turn = np.degrees(np.arctan2(pixels[1, 0] - pixels[0, 1], pixels[0, 0] + pixels[1, 1])) % 360
    assert min(abs(turn - degrees), 360 - abs(turn - degrees)) < 12


@pytest.mark.slow
@pytest.mark.parametrize("degrees", [0, *TURNS])
def test_a_thing_is_found_however_the_photo_is_turned(searcher: Searcher, degrees: int) -> None:
    for options in (SearchOptions(top=2), SearchOptions(top=2, exact=True), SearchOptions(top=2, expand=2)):
        first = searcher.search(scene(degrees), options)[0]
        assert first.path.endswith("blocks.png")
        check(first.evidence, degrees)


@pytest.mark.slow
def test_in_a_batch_each_query_has_its_own_turn(searcher: Searcher, tmp_path: Path) -> None:
    answers = searcher.search_batch([scene(degrees) for degrees in (0, *TURNS)], SearchOptions(top=1))
    for degrees, (first,) in zip((0, *TURNS), answers, strict=True):
        check(first.evidence, degrees)
    paths = [tmp_path / f"{degrees}.png" for degrees in TURNS]
    for path, degrees in zip(paths, TURNS, strict=True):
        scene(degrees).save(path)
    for (_, found), degrees in zip(searcher.search_files(paths, SearchOptions(top=1)), TURNS, strict=True):
        assert isinstance(found, list)
        check(found[0].evidence, degrees)


@pytest.mark.slow
def test_a_region_is_turned_as_it_is(searcher: Searcher) -> None:
    x, y, width, height = place_in_scene(90).tolist()
    first = searcher.search(scene(90), SearchOptions(top=1), region=(x, y, width, height))[0]
    assert first.path.endswith("blocks.png")
    check(first.evidence, 90)


@pytest.mark.slow
@pytest.mark.parametrize("degrees", TURNS)
def test_an_explanation_and_a_comparison_of_two_images_turn_as_well(
    searcher: Searcher, folder: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch, degrees: int
) -> None:
    found = searcher.explain(scene(degrees), folder / "blocks.png")
    check(found.evidence, degrees)
    rows, cols = found.query_similarity.shape
    x, y, width, height = place_in_scene(degrees).tolist()
    heat = found.query_similarity[
        round((y + height / 3) * rows) : round((y + height * 2 / 3) * rows),
        round((x + width / 3) * cols) : round((x + width * 2 / 3) * cols),
    ]
    assert np.median(heat) > np.median(found.query_similarity) and np.median(heat) > 0.5
    monkeypatch.setattr("retrieval.match.CONVINCING_SCORE", 0.9)  # random features score the wrong way round .7
    region = (x, y, width, height)
    matched = match_images(
        scene(degrees), folder / "blocks.png", str(tiny_backbone), region=region, resolution=RESOLUTION
    )
    assert matched.score >= 0.9
    check(matched.evidence, degrees)


def test_where_the_upright_photo_convinces_nothing_is_turned(
    searcher: Searcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    turn = searcher.encoder.turned

    def counted(queries: Sequence[EncodedQuery]) -> list[EncodedQuery]:
        asked.append(len(queries))
        return turn(queries)

    monkeypatch.setattr(searcher.encoder, "turned", counted)
    searcher.search(scene(0))
    assert not asked
    searcher.search(scene(90), SearchOptions(rerank=False))
    searcher.search(searcher.embed([scene(90)])[0])
    assert not asked, "without patches nothing could be proved"
    searcher.search_batch([scene(0), scene(90), scene(0), scene(180)])
    assert asked == [2]


@pytest.mark.slow
def test_a_photo_of_the_index_does_not_convince_by_itself(searcher: Searcher, folder: Path) -> None:
    sideways = scene(90)
    sideways.save(folder / "sideways.png")
    try:
        sync_folder(folder)
        result = searcher.search(folder / "sideways.png", SearchOptions(top=1))[0]
        assert result.path.endswith("blocks.png")
        check(result.evidence, 90)
    finally:
        (folder / "sideways.png").unlink()
        sync_folder(folder)


def test_turned_features_are_kept_with_the_others(searcher: Searcher, tmp_path: Path) -> None:
    scene(270).save(tmp_path / "query.png")
    reads = 0

    def read() -> QueryCrop:
        nonlocal reads
        reads += 1
        return read_query(tmp_path / "query.png", None, RESOLUTION)

    image = IdentifiedImage(content_id((tmp_path / "query.png").read_bytes()), None, (400, 500), read)
    first = searcher.search(image, SearchOptions(top=1))[0]
    check(first.evidence, 270)
    count = reads
    assert searcher.search(image, SearchOptions(top=1))[0].evidence.turn == 270 and reads == count  # type: ignore[union-attr]


def test_turned_crops_move_with_what_is_liked(searcher: Searcher, folder: Path) -> None:
    plain, liked = searcher.encode([scene(90), MultiQuery((scene(90),), likes=(folder / "1.jpg",))])
    one, other = searcher.encoder.turned([plain, liked])
    assert len(one.views) == len(other.views) > 0 and liked.shift is not None and plain.shift is None
    for before, after in zip(one.views, other.views, strict=True):
        moved = before.vector + liked.shift
        np.testing.assert_allclose(after.vector, moved / np.linalg.norm(moved), atol=1e-5)
    assert searcher.encoder.turned([EncodedQuery(plain.views)])[0].views == ()


def test_shift_is_rocchio() -> None:
    def view(*vector: float) -> list[CropFeatures]:
        return [CropFeatures(np.array(vector, np.float32), np.empty((0, 0), np.float32), (0, 0))]

    query = combined([view(1, 0)], [view(0, 1)], [view(0.6, 0.8)], ())
    assert query.shift is not None
    np.testing.assert_allclose(query.shift, np.array((-0.25 * 0.6, 0.75 - 0.25 * 0.8)), atol=1e-6)


class Fixed:
    """A comparison of known consistencies."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def consistency(self, n: int) -> float:
        return self.values[n]


def ranked(**scores: tuple[float, float]) -> Ranked:
    """Candidates by score, each with its consistency."""
    order = sorted(scores, key=lambda id: -scores[id][0])
    comparison = Fixed(*(scores[id][1] for id in order))
    return Ranked([Hit(id, scores[id][0]) for id in order], [(comparison, n) for n in range(len(order))])  # type: ignore[misc]


def test_a_turn_that_proves_nothing_leaves_the_order() -> None:
    def is_match(found: Ranked, n: int) -> bool:
        return found.hits[n].score > 0.5 and found.consistency(n) > 0.5

    upright = ranked(a=(0.4, 0.3), b=(0.3, 0.2), c=(0.2, 0.1))
    weak = ranked(c=(0.49, 0.9), d=(0.6, 0.4), b=(0.1, 0.9))
    assert take_proven(upright, weak, is_match) is upright
    both = take_proven(upright, ranked(c=(0.7, 0.8), d=(0.6, 0.9), b=(0.45, 0.9), e=(0.5, 0.1)), is_match)
    assert [(hit.id, hit.score) for hit in both.hits] == [("c", 0.7), ("d", 0.6), ("a", 0.4), ("b", 0.3)]
    assert [both.consistency(n) for n in range(4)] == [0.8, 0.9, 0.3, 0.2]
    high = ranked(a=(0.9, 0.9), b=(0.3, 0.2))
    assert take_proven(high, ranked(a=(0.7, 0.8)), is_match).hits == high.hits, "the higher score stays"
