"""The drawn photos of the demo: an instance-retrieval set whose answers are right."""

import csv
import filecmp
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from indexer.errors import SeenitError
from indexer.images.decode import DecodedImage, decode
from retrieval.scenes import draw, draw_scenes
from retrieval.scenes.camera import Camera, paint
from retrieval.scenes.photo import save_photo
from retrieval.scenes.plan import plan
from retrieval.scenes.shoot import shoot
from retrieval.scenes.things import KINDS, make_thing

pytestmark = pytest.mark.slow

ASKED = dict(instances=6, views=2, distractors=3, seed=3)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_scenes(tmp_path_factory.mktemp("scenes") / "demo", **ASKED)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "manifest.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def opened(path: Path) -> DecodedImage:
    return decode(path.read_bytes(), path=str(path))


@pytest.mark.long
def test_manifest_lists_every_image_with_its_answer(drawn: Path) -> None:
    listed = rows(drawn)
    on_disk = {path.relative_to(drawn).as_posix() for path in drawn.rglob("*.jpg")}
    assert {row["path"] for row in listed} == on_disk and len(listed) == len(on_disk) == 6 * 2 + 3
    for role, count in (("query", 6), ("gallery", 6), ("distractor", 3)):
        assert sum(row["role"] == role for row in listed) == count
    for row in listed:
        folder, name = row["path"].split("/")
        assert folder == ("queries" if row["role"] == "query" else "photos")
        assert name.startswith("other_" if row["role"] == "distractor" else row["instance"] + "_")
    for query in (row for row in listed if row["role"] == "query"):
        assert sum(row["instance"] == query["instance"] and row["role"] == "gallery" for row in listed) == 1
    assert {row["instance"] for row in listed if row["role"] == "distractor"} == {"none"}
    assert {row["instance"] for row in listed if row["note"].startswith("look-alike")} == {"poster_02"}


def test_boxes_lie_in_the_upright_image(drawn: Path) -> None:
    for row in rows(drawn):
        image = opened(drawn / row["path"])
        if row["role"] == "distractor":
            assert row["x"] == row["y"] == row["w"] == row["h"] == ""
            continue
        x, y, w, h = (int(row[key]) for key in "xywh")
        assert x >= 0 and y >= 0 and x + w <= image.width and y + h <= image.height
        assert 0.01 < w * h / (image.width * image.height) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_thing_is_where_its_box_says(kind: str) -> None:
    shot = next(shot for shot in plan(5, 2, 0, seed=1) if shot.thing.kind == kind and shot.role == "gallery")
    image, box = shoot(shot)
    without, _ = shoot(replace(shot, shows_thing=False))
    assert box is not None
    x, y, w, h = box
    change = np.abs(np.asarray(image, float) - np.asarray(without, float)).mean(-1)  # (H, W)
    assert change[y : y + h, x : x + w].sum() > 0.8 * change.sum()  # the rest is its shadow
    seen = np.argwhere(change > 30)
    assert np.abs(seen.min(0) - (y, x)).max() < 0.4 * max(w, h) and len(seen) > 0.25 * w * h


def test_same_seed_same_images_other_seed_others(drawn: Path, tmp_path: Path) -> None:
    shots = [shot for shot in plan(**ASKED) if shot.thing.kind in ("poster", "box")]
    assert len(shots) == 8  # one poster and its look-alike, one box, two distractors
    for shot in shots:
        save_photo(shoot(shot)[0], tmp_path / "again.jpg", shot.seed)
        assert filecmp.cmp(tmp_path / "again.jpg", drawn / shot.path, shallow=False), shot.path
    first, other = (next(plan(1, 2, 0, seed)) for seed in (3, 4))
    assert shoot(first)[0].tobytes() != shoot(other)[0].tobytes()


def test_a_finished_folder_is_left_alone(drawn: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in drawn.rglob("*")}
    (drawn / "photos" / ".seenit").mkdir()  # an index is made inside it
    assert draw_scenes(drawn, **ASKED) == drawn
    (drawn / "photos" / ".seenit").rmdir()
    after = {path: path.stat().st_mtime_ns for path in drawn.rglob("*")}
    assert set(after) == set(before)
    assert all(after[path] == before[path] for path in before if path.is_file())


def test_a_folder_with_something_else_is_not_touched(drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(SeenitError, match="something else"):
        draw_scenes(drawn, **(ASKED | {"seed": 9}))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(SeenitError, match="something else"):
        draw_scenes(tmp_path / "mine", **ASKED)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "photo.jpg"]


def test_an_interrupted_run_is_redone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks_off(image: Image.Image, path: Path, seed: tuple[int, ...]) -> None:
        if path.parent.name == "photos":
            raise KeyboardInterrupt
        save_photo(image, path, seed)

    small = dict(instances=1, views=2, distractors=0)
    with monkeypatch.context() as patch:
        patch.setattr(draw, "save_photo", breaks_off)
        with pytest.raises(KeyboardInterrupt):
            draw_scenes(tmp_path / "demo", **small)
    assert not (tmp_path / "demo").exists()
    (tmp_path / "demo").mkdir()  # an empty folder is as good as none
    draw_scenes(tmp_path / "demo", **small)
    assert len(rows(tmp_path / "demo")) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_filters_have_something_to_find(tmp_path: Path) -> None:
    tall = Image.new("RGB", (60, 80), "teal")
    seen = []
    for number in range(40):
        save_photo(tall, tmp_path / "a.jpg", (0, number))
        seen.append(opened(tmp_path / "a.jpg"))
        with Image.open(tmp_path / "a.jpg") as stored:
            assert (stored.width > stored.height) == (stored.getexif().get(0x0112) == 6)
    assert {(image.width, image.height) for image in seen} == {(60, 80)}
    assert len({image.camera for image in seen}) == 5  # 4 cameras and none
    assert 5 < sum(image.gps is not None for image in seen) < 35
    assert any(image.gps[1] < -90 for image in seen if image.gps)  # Oaxaca, west
    assert len({image.taken_at.year for image in seen if image.taken_at}) > 3


def test_painting_a_plane_agrees_with_projecting_its_points() -> None:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    texture = Image.fromarray(colours).resize((400, 300), Image.Resampling.NEAREST)
    camera = Camera((0.8, 1.9, 2.6), (0.1, 1.4, 0.0), fov_deg=50, roll_deg=4, size=(640, 480))
    corner, across, down = np.array([-1, 2.2, 0.0]), np.array([2, 0, 0.3]), np.array([0, -1.5, 0.2])
    image = Image.new("RGB", camera.size)
    paint(image, camera, texture, corner, across, down)
    for row in range(3):
        for column in range(4):
            point = corner + across * (column + 0.5) / 4 + down * (row + 0.5) / 3
            x, y = camera.project(point[None])[0]
            assert image.getpixel((int(x), int(y))) == tuple(colours[row, column])


def test_a_plane_that_passes_the_camera_is_cut_off() -> None:
    camera = Camera((0, 1.5, 3), (0, 1.5, 0), fov_deg=60, roll_deg=0, size=(320, 240))
    image = Image.new("RGB", camera.size, (0, 0, 255))
    floor = Image.new("RGB", (900, 900), (255, 0, 0))
    paint(image, camera, floor, (-50, 0, 0), (100, 0, 0), (0, 0, 100))  # from the wall to far behind the camera
    pixels = np.asarray(image)
    horizon = int(camera.project(np.array([[0, 0, 0.0]]))[0, 1])
    assert (pixels[: horizon - 2] == (0, 0, 255)).all() and (pixels[horizon + 3 :] == (255, 0, 0)).all()


def test_a_look_alike_has_the_layout_and_other_colours() -> None:
    first, alike, other = (
        make_thing("a", "painting", nth, (0,), like_first=like) for nth, like in ((0, False), (4, True), (1, False))
    )

    def edges(image: Image.Image) -> np.ndarray:
        grey = np.asarray(image.convert("L").resize((82, 64)), float)
        return np.hypot(*np.gradient(grey)).ravel()

    def agreement(a: Image.Image, b: Image.Image) -> float:
        return float(np.corrcoef(edges(a), edges(b))[0, 1])

    assert np.abs(np.asarray(first.front, float) - np.asarray(alike.front, float)).mean() > 8
    assert agreement(first.front, alike.front) > agreement(first.front, other.front) + 0.2


@pytest.mark.parametrize("wrong", [{"instances": 0}, {"views": 1}, {"distractors": -1}])
def test_impossible_sets_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(SeenitError, match="cannot draw scenes"):
        draw_scenes(tmp_path / "demo", **wrong)
    assert not list(tmp_path.iterdir())
