"""The 8-bit network beside the plain one, and when it is not taken; on small random networks."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from small_network import SMALL, needs_vnni, network
from torch import Tensor

from indexer.backbone import cpu_int8
from indexer.backbone.backbone import Backbone
from indexer.backbone.calibration_images import calibration_images
from indexer.backbone.checkpoint import build_model, load_checkpoint, save_checkpoint
from indexer.backbone.cpu_int8 import is_eight_bit, quantise_for_cpu
from indexer.backbone.vit import Architecture, VisionTransformer


def eight_bit(model: VisionTransformer) -> VisionTransformer:
    made = copy.deepcopy(model).bfloat16()
    assert quantise_for_cpu(made) and is_eight_bit(made)
    return made


def photos(count: int, height: int = 70, width: int = 70) -> Tensor:
    """Other images than those that the scales are measured on."""
    rows, cols = torch.meshgrid(torch.linspace(0, 6, height), torch.linspace(0, 4, width), indexing="ij")
    waves = [torch.sin(rows * (n + 1) + cols * phase) for n in range(count) for phase in (0.5, 1.5, 4.0)]
    return torch.stack(waves).unflatten(0, (count, 3))


@pytest.mark.slow
@needs_vnni
@pytest.mark.parametrize("registers", [0, 4])
def test_it_is_close_to_the_plain_network(registers: int) -> None:
    model = network(Architecture(embed_dim=128, depth=3, num_heads=2, image_size=70, num_registers=registers))
    ours, images = eight_bit(model), photos(3)
    with torch.inference_mode():
        for mine, exact in zip(
            ours.intermediate(images.bfloat16(), [0, 2]), model.intermediate(images, [0, 2]), strict=True
        ):
            assert mine.patches.shape == exact.patches.shape and mine.registers.shape == exact.registers.shape
            assert torch.cosine_similarity(mine.cls.float(), exact.cls, dim=-1).min() > 0.999
            assert torch.cosine_similarity(mine.patches.float(), exact.patches, dim=-1).min() > 0.99


@pytest.mark.slow
@needs_vnni
def test_images_of_several_sizes_do_not_see_each_other() -> None:
    ours = eight_bit(network())
    large, small = photos(2).bfloat16(), photos(3, 28, 42).bfloat16()
    with torch.inference_mode():
        together = ours.forward_packed([large, small])
        for packed, batch in zip(together, (large, small), strict=True):
            alone = ours(batch)
            torch.testing.assert_close(packed.cls, alone.cls, rtol=0, atol=0.05)
            torch.testing.assert_close(packed.patches, alone.patches, rtol=0, atol=0.3)


@pytest.mark.slow
@needs_vnni
def test_outputs_that_were_handed_out_stay_as_they_are() -> None:
    ours = eight_bit(network())
    with torch.inference_mode():
        first, _ = ours.intermediate(photos(2).bfloat16(), [0, 2], norm=False)
        (alone,) = ours.intermediate(photos(2).bfloat16(), [0], norm=False)
    assert torch.equal(first.patches, alone.patches) and torch.equal(first.cls, alone.cls)


@pytest.mark.slow
@needs_vnni
@pytest.mark.parametrize("registers", [0, 4])
def test_the_last_block_may_be_computed_for_cls_alone(registers: int) -> None:
    ours = eight_bit(network(Architecture(embed_dim=128, depth=3, num_heads=2, image_size=70, num_registers=registers)))
    with torch.inference_mode():
        whole, alone = (ours.intermediate(photos(2).bfloat16(), [2], patches_of=of) for of in (None, [1]))
    assert not alone[0].patches.numel() and whole[0].patches.numel()
    assert torch.cosine_similarity(alone[0].cls.float(), whole[0].cls.float(), dim=-1).min() > 0.9999


@pytest.mark.slow
@pytest.mark.parametrize("what", ["processor", "result", "gated", "float32"])
def test_where_it_cannot_be_done_the_network_stays_as_it_is(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = SMALL
    if what == "processor":
        monkeypatch.setattr(cpu_int8, "_works", lambda: False)
    elif what == "result":
        monkeypatch.setattr(cpu_int8, "LEAST_COSINE", 1.1)
    elif what == "gated":
        architecture = Architecture(embed_dim=128, depth=2, num_heads=2, image_size=70, ffn="swiglu")
    dtype = torch.float32 if what == "float32" else torch.bfloat16
    model = network(architecture).to(dtype)
    images = photos(1).to(dtype)
    with torch.inference_mode():
        before = model(images).cls
        assert not quantise_for_cpu(model) and not is_eight_bit(model)
        assert torch.equal(model(images).cls, before)


def test_drawn_images_are_the_same_for_everybody() -> None:
    first, again = calibration_images(2, 56), calibration_images(2, 56)
    assert first.shape == (2, 3, 56, 56) and first.dtype == torch.float32
    assert torch.equal(first, again) and not torch.equal(first[0], first[1])
    assert first.std() > 0.5


@pytest.mark.slow
def test_a_backbone_says_what_it_computes_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    file = tmp_path / "small.safetensors"
    save_checkpoint(file, model.state_dict(), model.architecture, name="small", dtype="int8")
    lines: list[str] = []
    pixels = np.zeros((1, 70, 70, 3), np.uint8)
    if cpu_int8._works():
        loaded = Backbone.load(file, device="cpu", dtype="int8", say=lines.append)
        assert loaded.precision == "int8" and "in int8" in lines[0] and "int8)" in repr(loaded)
        assert loaded.intermediate(pixels, [2])[0].cls.dtype == torch.float32
        assert loaded(pixels).shape == (1, 128)
    monkeypatch.setattr(cpu_int8, "_works", lambda: False)
    lines.clear()
    fallen_back = Backbone.load(file, device="cpu", dtype="int8", say=lines.append)
    assert fallen_back.precision in ("bfloat16", "float32") and "8 bits are not for small" in lines[0]
    assert fallen_back(pixels).shape == (1, 128)


def test_weights_of_8_bits_are_what_a_float_network_gets(tmp_path: Path) -> None:
    model = network()
    save_checkpoint(tmp_path / "a.safetensors", model.state_dict(), SMALL, name="a", dtype="int8")
    state = load_checkpoint(tmp_path / "a.safetensors").state
    name = "blocks.0.attn.qkv.weight"
    assert state[name].dtype == torch.float32
    assert (state[name] - model.state_dict()[name]).abs().max() <= model.state_dict()[name].abs().max() / 127
    built = build_model(load_checkpoint(tmp_path / "a.safetensors"))
    assert torch.equal(dict(built.named_parameters())[name], state[name])
