"""Colours of matched patches: what is kept of them, and what they say of two near twins."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from indexer.backbone.backbone import Backbone
from indexer.descriptor.embedder import Embedder
from indexer.descriptor.features import CropFeatures
from indexer.descriptor.mean_colours import mean_colours
from indexer.descriptor.patch_codec import PatchTokens, pack_patches, read_codes, unpack_parts, unpack_patches
from indexer.errors import SeenitError
from indexer.index.index import Index
from indexer.sync.options import SyncOptions
from indexer.sync.sync import sync_folder
from retrieval.query.encoder import QueryEncoder
from retrieval.rerank.colour import FEWEST, colour_difference
from retrieval.rerank.rerank import Comparison


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    rows = rng.standard_normal(shape).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), np.float32)


def plain(*colours: tuple[int, int, int]) -> np.ndarray:
    """Patches of 14 x 14 pixels of these colours side by side."""
    return np.repeat(np.repeat(np.array(colours, np.uint8)[None], 14, 0), 14, 1)


@pytest.mark.parametrize(
    ("colour", "lab"),
    [  # a* and b* as CIE 15 defines them for sRGB's primaries under D65
        ((0, 0, 0), (0, 0)),
        ((255, 255, 255), (0, 0)),
        ((128, 128, 128), (0, 0)),
        ((255, 0, 0), (80, 67)),
        ((0, 255, 0), (-86, 83)),
        ((0, 0, 255), (79, -108)),
        ((255, 255, 0), (-22, 94)),
    ],
)
def test_colours_are_those_of_cielab(colour: tuple[int, int, int], lab: tuple[int, int]) -> None:
    assert mean_colours(plain(colour), 14).tolist() == [list(lab)]


def test_a_patch_has_the_mean_of_its_pixels_and_its_place() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2 * 14, 3 * 14, 3), np.uint8)
    of_all = mean_colours(pixels, 14)
    assert of_all.shape == (6, 2) and of_all.dtype == np.int8
    for n in range(6):
        patch = pixels[n // 3 * 14 :][:14, n % 3 * 14 :][:, :14]
        mean = patch.reshape(-1, 3).mean(0)
        assert np.abs(of_all[n] - mean_colours(plain(tuple(np.rint(mean).astype(int))), 14)[0].astype(int)).max() <= 1


def test_light_is_taken_out_and_twins_differ() -> None:
    rng = np.random.default_rng(1)
    one = rng.integers(-60, 60, (20, 2)).astype(np.int8)
    warm = one + np.array([8, 15], np.int8)
    assert colour_difference(one, one) == colour_difference(one, warm) == 0
    other = one.copy()
    other[:8] += np.array([30, 40], np.int8)  # what the flavour colours, 50 away
    spread = (other.astype(float).var(0).sum() * warm.astype(float).var(0).sum()) ** 0.25
    assert colour_difference(other, warm) == pytest.approx(8 * 50 / 20 / (10 + spread) ** 0.5)
    grey = np.zeros((5, 2), np.int8)
    noisy = grey.copy()
    noisy[0] = 3, 4
    assert colour_difference(noisy, grey) == pytest.approx(5 / 5 / 10**0.5), "what has no colour does not blow up"
    assert colour_difference(one[: FEWEST - 1], one[: FEWEST - 1]) is None
    extreme = np.array([[127, 127], [-127, -127], [127, -127]], np.int8)
    assert colour_difference(extreme, extreme[::-1]) is not None, "differences beyond 8 bits"


def patches(rng: np.random.Generator, count: int, grid: tuple[int, int], *, colours: bool = True) -> PatchTokens:
    cells = np.sort(rng.permutation(grid[0] * grid[1])[:count])
    of_cells = rng.integers(-127, 128, (count, 2)).astype(np.int8) if colours else None
    positions = np.stack(np.divmod(cells, grid[1]), 1).astype(np.uint8)
    return PatchTokens(unit(rng, count, 16), positions, grid, of_cells)


@pytest.mark.parametrize("bits", [1, 2, 8])
def test_colours_come_back_in_their_order(bits: int) -> None:
    rng = np.random.default_rng(2)
    images = [patches(rng, count, grid) for count, grid in ((6, (2, 3)), (5, (3, 4)), (6, (2, 3)))]
    parts = unit(rng, 3, 4, 48)
    packed = [pack_patches(image, bits, of_image) for image, of_image in zip(images, parts, strict=True)]
    expected = np.concatenate([image.colours for image in images if image.colours is not None])
    for found in (read_codes(packed), unpack_patches(packed)):
        assert found.colours is not None and found.counts == (6, 5, 6)
        np.testing.assert_array_equal(found.colours, expected)
        np.testing.assert_array_equal(found.positions, np.concatenate([image.positions for image in images]))
    back = unpack_parts(packed)
    assert back is not None and (back * parts).sum(2).min() > 0.9999
    bare = PatchTokens(images[0].tokens, images[0].positions, images[0].grid)
    assert len(packed[0]) == len(pack_patches(bare, bits, parts[0])) + 6 * 2
    np.testing.assert_array_equal(unpack_patches(packed[:1]).tokens, unpack_patches([pack_patches(bare, bits)]).tokens)
    alone = pack_patches(images[0], bits)
    assert unpack_parts([alone]) is None
    np.testing.assert_array_equal(read_codes([alone]).colours, images[0].colours)
    assert read_codes([packed[0], pack_patches(bare, bits, parts[0])]).colours is None, "one of them has none"


def test_damaged_colours_are_told() -> None:
    rng = np.random.default_rng(3)
    good = pack_patches(patches(rng, 6, (2, 3)), 2, unit(rng, 4, 48))
    alone = pack_patches(patches(rng, 6, (2, 3)), 2)
    for bad in (
        good[:-1],
        good + b"x",
        good[:7],
        good[:6] + b"\x00" + good[7:],
        alone[:-2],
        alone[:6] + b"\x01" + alone[7:],
    ):
        with pytest.raises(SeenitError, match="rebuild the index"):
            unpack_patches([bad])


def test_a_comparison_tells_the_twin_by_its_colours() -> None:
    rng = np.random.default_rng(4)
    grid = (8, 8)
    cells = np.stack(np.divmod(np.arange(64), 8), 1).astype(np.uint8)
    tokens = unit(rng, 64, 64)
    colours = rng.integers(-60, 60, (64, 2)).astype(np.int8)
    twin = colours.copy()
    twin[:24] = twin[:24] + np.array([0, 40], np.int8)
    kept = rng.permutation(64)[:40]
    kept.sort()
    packed = [pack_patches(PatchTokens(tokens[kept], cells[kept], grid, of_all[kept]), 8) for of_all in (colours, twin)]
    view = CropFeatures(np.zeros(4, np.float32), tokens, grid, colours=colours)
    found = Comparison([view], packed)
    assert found.inlier_weight[0] == pytest.approx(found.inlier_weight[1])
    assert found.colour_difference(0) == 0
    assert found.colour_difference(1) == colour_difference(colours[kept], twin[kept])
    assert (found.colour_difference(1) or 0) > 1.5 * np.mean(kept < 24)
    assert Comparison([CropFeatures(view.vector, tokens, grid)], packed).colour_difference(0) is None
    bare = [pack_patches(PatchTokens(tokens[kept], cells[kept], grid), 8)]
    assert Comparison([view], bare).colour_difference(0) is None
    assert found.colour_difference(2) is None, "not compared"


@pytest.mark.slow
def test_an_index_keeps_the_colours_of_the_patches_that_it_keeps(tmp_path: Path, tiny_backbone: Path) -> None:
    rng = np.random.default_rng(5)
    for n in range(2):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        coarse.resize((160, 120), Image.Resampling.NEAREST).save(tmp_path / f"{n}.png")
    sync_folder(tmp_path, options=SyncOptions(resolution=140, workers=1, tokens="compact"), backbone=str(tiny_backbone))
    with Index.open(tmp_path / ".seenit") as index:
        embedder = index.embedder(Backbone.load(str(tiny_backbone)))
        assert isinstance(embedder, Embedder) and embedder.config.colour_bits == 8
        encoder = QueryEncoder(lambda: (embedder, index.whitening), 140, index.dim)
        stored = {index.roots.path(one.files[0].key): one.patches for one in index.store.scroll(vectors=True)}
        for path, packed in stored.items():
            assert packed is not None
            kept = read_codes([packed])
            (query,) = encoder.encode([path])
            whole = query.views[0]
            assert kept.colours is not None and whole.colours is not None and whole.grid == kept.grids[0]
            at = kept.positions[:, 0].astype(int) * whole.grid[1] + kept.positions[:, 1]
            assert 0 < len(at) <= 40 and np.abs(kept.colours).max() > 20
            # a query is read a little larger before it is made as small as an indexed image
            assert np.abs(kept.colours.astype(int) - whole.colours[at]).mean() < 3
