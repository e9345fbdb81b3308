"""Plain features: of a backbone that is called, and of a folder's images in a file."""

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from conftest import draw_photo

from indexer import Backbone, SeenitError, embed_folder
from indexer.backbone.load_once import LoadOnce
from indexer.folder_features import save_features
from indexer.images.jobs import Decoded, Job, Settings, read_image


@pytest.fixture
def backbone(tiny_backbone: Path) -> Backbone:
    return Backbone.load(tiny_backbone, device="cpu", dtype="float32", say=lambda line: None)


def test_a_backbone_is_a_feature_extractor(backbone: Backbone) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 28, 42, 3), dtype=np.uint8)
    (tokens,) = backbone.intermediate(pixels, [backbone.depth - 1])
    features = backbone.forward_features(pixels)
    torch.testing.assert_close(features["x_norm_clstoken"], tokens.cls)
    torch.testing.assert_close(features["x_norm_patchtokens"], tokens.patches)
    assert features["x_norm_regtokens"].shape == (2, 0, 32) and features["x_prenorm"].shape == (2, 7, 32)
    torch.testing.assert_close(backbone.model.norm(features["x_prenorm"])[:, 0], backbone(pixels))
    mean, std = (
        torch.tensor(value)[:, None, None] for value in (backbone.preprocessing.mean, backbone.preprocessing.std)
    )
    normalised = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    torch.testing.assert_close(backbone(normalised), backbone(pixels), rtol=1e-4, atol=1e-4)
    for wrong in (pixels[0], pixels.astype(np.float32), pixels.transpose(0, 3, 1, 2)):
        with pytest.raises(ValueError, match=r"uint8 \(B, H, W, 3\) or normalised"):
            backbone(wrong)
    assert repr(backbone) == "Backbone('tiny0', 4 blocks of 32, patches of 14 px, cpu, float32)"


@pytest.mark.slow
def test_features_of_a_folder(photos: Path, backbone: Backbone, tmp_path: Path) -> None:
    (photos / "broken.jpg").write_bytes((photos / "a" / "0.jpg").read_bytes()[:200])
    (photos / "notes.txt").write_text("no image")
    said: list[str] = []
    found = embed_folder(photos, backbone, resolution=56, workers=1, say=said.append)
    assert len(found.paths) == 8 and found.features.shape == (8, 32) and found.features.dtype == np.float32
    assert len(found.skipped) == len(said) == 1 and "broken.jpg" in said[0]
    for path, row in zip(found.paths, found.features, strict=True):
        outcome = read_image(Job(path), Settings(resolution=56))
        assert isinstance(outcome, Decoded)
        expected = backbone(outcome.pixels[None])[0]
        np.testing.assert_allclose(row, (expected / expected.norm()).numpy(), atol=1e-5)
    files = save_features(found, tmp_path / "features.npy")
    np.testing.assert_array_equal(np.load(files[0]), found.features)
    assert files[1].read_text().splitlines() == list(found.paths)
    (parquet,) = save_features(found, tmp_path / "features.parquet")
    table = pyarrow.parquet.read_table(parquet)
    assert table["path"].to_pylist() == list(found.paths)
    np.testing.assert_array_equal(np.array(table["features"].to_pylist(), np.float32), found.features)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["features.npy", "features.parquet", "features.csv"])
def test_nothing_is_overwritten(name: str, photos: Path, backbone: Backbone, tmp_path: Path) -> None:
    found = embed_folder(photos / "a", backbone, resolution=56, workers=1)
    (tmp_path / name).write_text("mine")
    with pytest.raises(SeenitError, match=r"not overwritten|neither"):
        save_features(found, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [name]
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.slow
def test_a_folder_without_images(tmp_path: Path, backbone: Backbone) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(SeenitError, match="no images that can be read"):
        embed_folder(tmp_path, backbone, workers=1)
    draw_photo(tmp_path / "one.jpg", 0)
    assert (
        repr(embed_folder(tmp_path, backbone, resolution=56, workers=1)) == "FolderFeatures(1 images, 32 numbers each)"
    )


def test_a_mistyped_folder_is_told_before_a_backbone_is_loaded(tmp_path: Path) -> None:
    asked = LoadOnce("dinov2_vits14")
    (tmp_path / "empty").mkdir()
    for name in ("nosuch", "empty"):
        with pytest.raises(SeenitError, match=name):
            embed_folder(tmp_path / name, asked)
    assert not asked.is_loaded
