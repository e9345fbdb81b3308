"""Dark images are brightened before they are described, and what is described otherwise stays as it was."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_photo
from PIL import Image

from indexer import Backbone
from indexer.descriptor.config import DARK_BELOW, DESCRIPTOR_CONFIGS, DescriptorConfig
from indexer.descriptor.embedder import Embedder
from indexer.descriptor.mean_colours import mean_colours
from indexer.descriptor.patch_codec import unpack_patches
from indexer.descriptor.whitening import Whitening
from indexer.images.light import LIT_MEAN, lighten


@pytest.fixture
def photo(tmp_path: Path) -> np.ndarray:
    return np.asarray(Image.open(draw_photo(tmp_path / "photo.png", 3)).convert("RGB").resize((56, 56)))


def darkened(pixels: np.ndarray, share: float) -> np.ndarray:
    return np.rint(pixels * share).astype(np.uint8)


def grey(pixels: np.ndarray) -> float:
    return float((pixels @ np.array([0.299, 0.587, 0.114])).mean())


def test_what_is_not_dark_is_the_same_array(photo: np.ndarray) -> None:
    assert grey(photo) > DARK_BELOW
    assert lighten(photo, DARK_BELOW) is photo
    night = darkened(photo, 0.2)
    assert lighten(night, 0) is night


def test_a_dark_image_comes_to_the_light_of_others(photo: np.ndarray) -> None:
    lit = lighten(darkened(photo, 0.2), DARK_BELOW)
    assert lit.dtype == np.uint8 and lit.shape == photo.shape
    assert LIT_MEAN - 8 < grey(lit) < 128
    assert np.ptp(lit) > 200  # of a range of 51


def test_what_is_lighter_stays_lighter(photo: np.ndarray) -> None:
    night = darkened(photo, 0.2)
    lit = lighten(night, DARK_BELOW)
    levels = [int(lit[night == level].min()) for level in np.unique(night)]
    assert levels == sorted(levels)


def test_what_shows_next_to_nothing_is_not_blown_up_to_noise() -> None:
    noise = np.random.default_rng(0).integers(0, 2, (56, 56, 3)).astype(np.uint8)
    assert np.isfinite(lighten(np.zeros((56, 56, 3), np.uint8), DARK_BELOW)).all()
    assert lighten(noise, DARK_BELOW).max() < 160


def test_a_dark_copy_is_described_more_like_its_original(photo: np.ndarray, tiny_backbone: Path) -> None:
    backbone = Backbone.load(tiny_backbone)
    config = DescriptorConfig(global_dim=64, token_dim=16, num_tokens=8)
    cosines = []
    for dark_below in (0, DARK_BELOW):
        embedder = Embedder(backbone, 56, replace(config, dark_below=dark_below))
        whitening = embedder.fit_whitening([embedder.pooled_of(photo)])
        (bright, dark) = embedder.describe([photo, darkened(photo, 0.15)], whitening)
        cosines.append(float(bright.vector @ dark.vector))
        assert np.array_equal(stored(embedder, whitening, darkened(photo, 0.15)), dark.vector)
    assert cosines[1] > cosines[0] + 0.01


def stored(embedder: Embedder, whitening: Whitening, pixels: np.ndarray) -> np.ndarray:
    """The vector of an image that is indexed."""
    return embedder.indexed(pixels, whitening).view.vector


def test_new_indexes_brighten_and_a_descriptor_without_the_setting_does_not() -> None:
    settings = DESCRIPTOR_CONFIGS["balanced"].settings
    assert settings.pop("dark_below") == DARK_BELOW
    assert DescriptorConfig.from_settings(settings).dark_below == 0


def test_colours_are_those_of_the_image_as_it_is(photo: np.ndarray, tiny_backbone: Path) -> None:
    config = DescriptorConfig(global_dim=64, token_dim=16, num_tokens=8, colour_bits=8, dark_below=DARK_BELOW)
    embedder, night = Embedder(Backbone.load(tiny_backbone), 56, config), darkened(photo, 0.2)
    indexed = embedder.indexed(night, embedder.fit_whitening([embedder.pooled_of(night)]))
    kept = unpack_patches([indexed.packed])
    assert indexed.view.colours is not None and kept.colours is not None
    at = kept.positions.astype(int) @ (indexed.view.grid[1], 1)
    assert np.array_equal(kept.colours, indexed.view.colours[at])
    assert np.array_equal(indexed.view.colours, mean_colours(night, embedder.backbone.patch_size))
