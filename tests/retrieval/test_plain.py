"""Plain areas, texture and what transparency lies on are no evidence."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from plain_images import blank_wall, bordered, chequered_cloth, gradient, logo

from indexer import sync_folder
from indexer.images.colour import to_rgb
from indexer.images.preprocess import preprocess
from indexer.sync.options import SyncOptions
from retrieval import Searcher
from retrieval.calibrate import calibrate
from retrieval.options import SearchOptions
from retrieval.query.plain import PLAIN_DEVIATION, plain_patches
from retrieval.scenes import draw_scenes

PATCH = 14


def seen(image: Image.Image) -> np.ndarray:
    return preprocess(to_rgb(image), patch_size=PATCH)


def test_plain_is_what_lies_on_one_slope_of_colour() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.normal(128, 1, (2 * PATCH, 3 * PATCH, 3))
    pixels[:, PATCH : 2 * PATCH] += 4 * np.arange(PATCH)[None, :, None]  # a slope is plain
    pixels[:, 2 * PATCH :] += rng.normal(0, 8, (2 * PATCH, PATCH, 3))
    image = pixels.clip(0, 255).astype(np.uint8)
    plane = np.stack([np.ones(PATCH**2), *np.mgrid[:PATCH, :PATCH].reshape(2, -1)], axis=1)
    by_hand = []
    for row in range(2):
        for column in range(3):
            patch = image[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH].reshape(-1, 3)
            away = patch - plane @ np.linalg.lstsq(plane, patch.astype(float), rcond=None)[0]
            by_hand.append(bool((np.sqrt((away**2).mean(0)) <= PLAIN_DEVIATION).all()))
    assert by_hand == [True, True, False] * 2
    assert plain_patches(image, PATCH).tolist() == by_hand


def test_which_areas_are_plain() -> None:
    for plain in (*map(gradient, range(3)), *map(blank_wall, range(3)), Image.new("RGB", (300, 200), "navy")):
        assert plain_patches(seen(plain), PATCH).all()
    assert not plain_patches(seen(chequered_cloth(0)), PATCH).any()
    for number in range(3):
        assert 0.6 < plain_patches(seen(logo(number)), PATCH).mean() < 0.95, "ground, and the insides of figures"
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    grid = plain_patches(seen(bordered(noise)), PATCH).reshape(14, 18)
    assert grid[:3].all() and grid[-3:].all() and grid[:, :3].all() and not grid[4:-4, 5:-5].any()


@pytest.mark.slow
def test_what_is_plain_is_paired_with_nothing(photos: Path, tiny_backbone: Path) -> None:
    sync_folder(photos, options=SyncOptions(resolution=112, workers=1), backbone=str(tiny_backbone))
    with Searcher.open(photos / ".seenit") as searcher:
        logos = [to_rgb(logo(number)) for number in range(3)]
        for pixels, query in zip(logos, searcher.encode(logos), strict=True):
            whole = preprocess(searcher.encoder.pixels(pixels), resolution=112, patch_size=PATCH)
            plain = plain_patches(whole, PATCH)
            assert 0 < plain.sum() < len(plain)
            np.testing.assert_array_equal(~query.views[0].tokens.any(axis=1), plain)
        for result in searcher.search(gradient(0)):
            assert result.evidence is not None and result.evidence.num_inliers == 0 and result.evidence.box is None


@pytest.mark.long
def test_what_has_little_to_see_is_no_match(tmp_path: Path) -> None:
    """With the shipped backbone; random weights tell nothing apart."""
    demo = draw_scenes(tmp_path / "demo", instances=1, views=2, distractors=8)
    rooms = [Image.open(path) for path in sorted((demo / "photos").glob("other_*"))]
    kinds = {
        "logo": [logo(n) for n in range(3)],
        "cloth": [chequered_cloth(n) for n in range(3)],
        "gradient": [gradient(n) for n in range(3)],
        "wall": [blank_wall(n) for n in range(3)],
        "border": [bordered(room) for room in rooms[:3]],
    }
    folder = tmp_path / "photos"
    folder.mkdir()
    for n, room in enumerate(rooms[3:]):
        room.save(folder / f"room_{n}.png")
    for kind, images in kinds.items():
        for n, image in enumerate(images):
            image.save(folder / f"{kind}_{n}.png")
    sync_folder(folder, backbone="seenit_vits14")
    assert calibrate(folder / ".seenit") is not None
    asked = [folder / f"{kind}_{n}.png" for kind in kinds for n in range(3)]
    resized = tmp_path / "resized.png"
    logo(0).resize((300, 300)).rotate(5, Image.Resampling.BICUBIC).save(resized)
    with Searcher.open(folder / ".seenit") as searcher:
        answers = searcher.search_batch([*asked, resized], SearchOptions(top=20))
    for path, results in zip(asked, answers, strict=False):
        matches = [result for result in results if result.evidence is not None and result.evidence.is_match]
        assert not matches, (path.name, matches)
    assert Path(answers[-1][0].path).name == "logo_0.png"
    assert answers[-1][0].evidence is not None and answers[-1][0].evidence.is_match
