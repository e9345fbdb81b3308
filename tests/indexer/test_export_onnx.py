"""ONNX files against torch, in onnxruntime: other batches and sizes than the one that was exported."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import TINY

from indexer import Backbone, SeenitError
from indexer.backbone.checkpoint import save_checkpoint
from indexer.backbone.export_onnx import export_onnx, stretching
from indexer.backbone.vit import Architecture, VisionTransformer

KINDS = {
    "first models": replace(TINY, interpolate_offset=0.1, interpolate_antialias=False),
    "registers": replace(TINY, num_registers=4, interpolate_offset=0.0, interpolate_antialias=True),
}


def saved(path: Path, architecture: Architecture) -> Backbone:
    torch.manual_seed(0)
    model = VisionTransformer(architecture)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_checkpoint(path, model.state_dict(), architecture, name="tiny")
    return Backbone.load(path, device="cpu", dtype="float32", say=lambda line: None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", [(8, 8), (8, 5), (3, 2), (16, 11), (20, 20), (2, 30)])
def test_matrices_stretch_as_torch_does(kind: str, grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = VisionTransformer(KINDS[kind])
    side = model.architecture.pretrained_grid
    assert side == 8
    rows, cols = stretching(*grid, model)
    positions = model.pos_embed[0, 1:].unflatten(0, (side, side))
    ours = torch.einsum("rg,gwd,cw->rcd", rows, positions, cols).flatten(0, 1)
    torch.testing.assert_close(ours, model.positions(*grid)[0, 1:], atol=2e-6, rtol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_onnxruntime_gives_what_torch_gives(kind: str, tmp_path: Path) -> None:
    backbone = saved(tmp_path / "tiny.safetensors", KINDS[kind])
    file = export_onnx(backbone, tmp_path / "tiny.onnx")
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    assert "multiples of 14" in model.doc_string and {one.key for one in model.metadata_props} >= {"backbone", "sha256"}
    session = onnxruntime.InferenceSession(file)
    for shape in ((1, 3, 28, 42), (3, 3, 112, 112), (2, 3, 140, 70)):
        images = torch.randn(shape)
        cls, patches = session.run(None, {"images": images.numpy()})
        expected = backbone.forward_features(images)
        np.testing.assert_allclose(cls, expected["x_norm_clstoken"].numpy(), atol=2e-4)
        np.testing.assert_allclose(patches, expected["x_norm_patchtokens"].numpy(), atol=2e-4)
    with pytest.raises(SeenitError, match="not overwritten"):
        export_onnx(backbone, file)


@pytest.mark.long
def test_an_export_says_nothing_of_what_torch_lacks_for_it(
    tmp_path: Path, tiny_backbone: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    backbone = Backbone.load(tiny_backbone, device="cpu", say=lambda line: None)
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = log.level
    export_onnx(backbone, tmp_path / "tiny.onnx")
    assert capfd.readouterr() == ("", "") and [str(warning.message) for warning in recwarn] == []
    assert log.level == before
