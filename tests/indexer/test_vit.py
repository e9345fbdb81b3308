"""The network against the reference implementation's numbers, its fast paths against the plain ones."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from indexer.backbone import attention as attention_module
from indexer.backbone.attention import Layout, attention
from indexer.backbone.cpu_fusion import fuse_for_cpu
from indexer.backbone.vit import ARCHITECTURES, Architecture, Block, Mlp, VisionTransformer

PARITY = Path(__file__).parents[1] / "data" / "parity"
SMALL = Architecture(embed_dim=48, depth=3, num_heads=3)
REFERENCE = {
    "vit_plain": SMALL,
    "vit_reg4": replace(SMALL, num_registers=4, interpolate_offset=0.0, interpolate_antialias=True),
    "vit_swiglu": replace(SMALL, depth=2, ffn="swiglu"),
}
TINY = Architecture(embed_dim=32, depth=3, num_heads=2, image_size=56)


def random_network(architecture: Architecture, seed: int = 0) -> VisionTransformer:
    """Weights large enough for every part to matter."""
    torch.manual_seed(seed)
    model = VisionTransformer(architecture)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_plain", "70x98"),
        ("vit_plain", "224x224"),
        ("vit_reg4", "56x56"),
        ("vit_reg4", "70x98"),
        ("vit_swiglu", "56x70"),
    ],
)
@torch.inference_mode()
def test_reference_outputs(name: str, size: str) -> None:
    tensors = load_file(PARITY / f"{name}.safetensors")
    architecture = REFERENCE[name]
    model = VisionTransformer(architecture).eval()
    model.load_state_dict({key[6:]: value for key, value in tensors.items() if key.startswith("param.")}, strict=True)
    images, mask = tensors[f"{size}.input"], tensors[f"{size}.mask"]
    plain, masked = model(images), model(images, mask)
    last_two = model.intermediate(images, [architecture.depth - 2, architecture.depth - 1])

    assert mask.any()
    ours = {"cls": plain.cls, "patches": plain.patches, "masked_cls": masked.cls, "masked_patches": masked.patches}
    for index, features in enumerate(last_two):
        ours |= {f"intermediate{index}.cls": features.cls, f"intermediate{index}.patches": features.patches}
    if architecture.num_registers:
        ours["registers"] = plain.registers
    for key, value in ours.items():
        torch.testing.assert_close(value, tensors[f"{size}.{key}"], rtol=0, atol=1e-5)
    assert plain.registers.shape == (2, architecture.num_registers, 48)
    assert plain.grid == tuple(int(side) // 14 for side in size.split("x"))


def test_official_names_and_shapes() -> None:
    official = json.loads((PARITY / "official_shapes.json").read_text())
    assert len(official) == len(ARCHITECTURES) == 8
    for name, shapes in official.items():
        with torch.device("meta"):
            model = VisionTransformer(ARCHITECTURES[name.replace("_reg4", "_reg")])
        assert {key: list(value.shape) for key, value in model.state_dict().items()} == shapes, name


@torch.inference_mode()
def test_patch_16_any_aspect_and_no_layerscale() -> None:
    model = random_network(replace(TINY, patch_size=16, image_size=64, layerscale=None))
    features = model(torch.randn(2, 3, 32, 112))
    assert features.grid == (2, 7)
    assert features.patches.shape == (2, 14, 32)
    assert not any("ls1" in name for name in model.state_dict())


@pytest.mark.parametrize("registers", [0, 4])
@torch.inference_mode()
def test_packed_batches_equal_separate_ones(registers: int) -> None:
    model = random_network(replace(TINY, num_registers=registers))
    images = [torch.randn(2, 3, 56, 42), torch.randn(3, 3, 28, 28), torch.randn(1, 3, 28, 28)]
    masks = [torch.rand(2, 12) < 0.5, None, torch.rand(1, 4) < 0.5]
    for packed, batch, mask in zip(model.forward_packed(images, masks), images, masks, strict=True):
        alone = model(batch, mask)
        assert packed.grid == alone.grid
        for part in ("cls", "registers", "patches"):
            torch.testing.assert_close(getattr(packed, part), getattr(alone, part), rtol=0, atol=1e-5)


@torch.inference_mode()
def test_intermediate_stops_at_the_last_layer_asked_and_keeps_the_order() -> None:
    model = random_network(TINY)
    images = torch.randn(2, 3, 42, 42)
    first, last = model.intermediate(images, [0])[0], model(images)
    ran = []
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    one, zero = model.intermediate(images, [1, 0])
    assert ran == [0, 1]
    assert torch.equal(zero.patches, first.patches)
    assert not torch.allclose(one.patches, zero.patches)
    torch.testing.assert_close(model.intermediate(images, [2])[0].cls, last.cls)
    raw = model.intermediate(images, [2], norm=False)[0]
    torch.testing.assert_close(model.norm(raw.patches), last.patches)


def test_refusals_say_what_is_allowed() -> None:
    model = random_network(TINY)
    with pytest.raises(ValueError, match="30x42 pixels: both sides must be multiples of 14"):
        model(torch.zeros(1, 3, 30, 42))
    for layers in ([3], [-1], []):
        with pytest.raises(ValueError, match="give some of 0 to 2"):
            model.intermediate(torch.zeros(1, 3, 28, 28), layers)
    for change in ({"num_heads": 3}, {"depth": 0}, {"drop_path": 1.0}, {"ffn": "moe"}):
        with pytest.raises(ValueError, match="impossible architecture"):
            replace(TINY, **change)


def test_drop_path_skips_work_and_scales_what_is_kept() -> None:
    block = random_network(replace(TINY, depth=1, drop_path=0.5)).blocks[0]
    assert isinstance(block, Block) and isinstance(block.mlp, Mlp)
    torch.nn.init.zeros_(block.mlp.fc2.weight)  # leaves the attention branch alone
    torch.nn.init.zeros_(block.mlp.fc2.bias)
    layout = ((4, 5), (2, 3))
    tokens = torch.randn(4 * 5 + 2 * 3, 32)
    with torch.no_grad():
        branch = block.eval()(tokens, layout) - tokens
        seen = []
        block.attn.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[0]))
        update = block.train()(tokens, layout) - tokens
    assert seen == [2 * 5 + 1 * 3]  # half of each group
    kept = 0
    for image in [slice(n * 5, n * 5 + 5) for n in range(4)] + [slice(20 + n * 3, 23 + n * 3) for n in range(2)]:
        if update[image].any():
            kept += 1
            torch.testing.assert_close(update[image], 2 * branch[image], rtol=1e-4, atol=1e-4)
    assert kept == 3


def test_training_reaches_every_parameter() -> None:
    model = random_network(replace(TINY, num_registers=2, drop_path=0.4)).train()
    mask = torch.zeros(4, 9, dtype=torch.bool)
    mask[:, :4] = True
    features = model(torch.randn(4, 3, 42, 42), mask)
    (features.cls.square().sum() + features.registers.sum() + features.patches.pow(3).sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.slow
def test_compiles_without_graph_breaks() -> None:
    model = random_network(TINY)
    compiled = torch.compile(lambda images: model(images).patches, backend="eager", fullgraph=True)
    images = torch.randn(2, 3, 42, 28)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images).patches)


# Attention


def slow_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout) -> torch.Tensor:
    """One image and one head at a time, in float64."""
    output = torch.zeros_like(query, dtype=torch.float64)
    start = 0
    for length in [length for images, length in layout for _ in range(images)]:
        image = slice(start, start + length)
        for head in range(query.shape[1]):
            q, k, v = (x[image, head].double() for x in (query, key, value))
            output[image, head] = torch.softmax(q @ k.T / q.shape[1] ** 0.5, dim=-1) @ v
        start += length
    return output


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_attention_equals_the_slow_loop(
    dtype: torch.dtype, tolerance: float, gradients: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_module, "_SCORES_BYTES", 2000)  # several steps even for small tensors
    layout = ((5, 17), (3, 6), (1, 2))
    torch.manual_seed(0)
    qkv = torch.randn(5 * 17 + 3 * 6 + 2, 3, 2, 16, dtype=dtype)
    query, key, value = qkv.unbind(1)
    with torch.set_grad_enabled(gradients):
        ours = attention(query, key, value, layout)
    assert ours.dtype == dtype
    expected = slow_attention(query, key, value, layout)
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=tolerance)


@torch.inference_mode()
def test_large_common_part_of_keys_costs_no_precision() -> None:
    """Real keys share a large part, which moves every score of a query alike and would drown the rest in rounding."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2 * 50, 2, 16)
    query[..., 0], key[..., 0] = 8, 40
    query, key, value = (x.bfloat16() for x in (query, key, value))
    error = attention(query, key, value, ((2, 50),)).double() - slow_attention(query, key, value, ((2, 50),))
    assert error.square().mean().sqrt() < 0.005


@pytest.mark.skipif(
    vars(attention_module)["xformers_ops"] is None or not torch.cuda.is_available(),
    reason="no xformers or no CUDA",
)
def test_xformers_equals_torch() -> None:
    for layout in (((4, 257),), ((2, 257), (3, 50))):
        tokens = sum(images * length for images, length in layout)
        query, key, value = torch.randn(tokens, 3, 6, 64, device="cuda", dtype=torch.bfloat16).unbind(1)
        ours = attention_module._xformers_attention(query, key, value, layout)
        torch.testing.assert_close(
            ours, attention_module._torch_attention(query, key, value, layout), rtol=0, atol=0.02
        )


# The fused form for the CPU


@pytest.mark.parametrize(
    "architecture",
    [TINY, replace(TINY, ffn="swiglu", num_registers=4), replace(TINY, layerscale=None)],
    ids=["mlp", "swiglu", "no layerscale"],
)
@torch.inference_mode()
def test_fused_network_equals_the_plain_one(architecture: Architecture) -> None:
    images = torch.randn(3, 3, 42, 56)
    for dtype in (torch.float32, torch.bfloat16):
        model = random_network(architecture).to(dtype)
        plain = model.intermediate(images.to(dtype), [0, 2])
        if not fuse_for_cpu(model):
            pytest.skip(f"this torch and processor have no fused operators for {dtype}")
        fused = model.intermediate(images.to(dtype), [0, 2])
        for ours, theirs in zip(fused, plain, strict=True):
            if dtype == torch.float32:
                torch.testing.assert_close(ours.patches, theirs.patches, rtol=0, atol=1e-4)
                torch.testing.assert_close(ours.cls, theirs.cls, rtol=0, atol=1e-4)
            else:
                cosines = F.cosine_similarity(ours.patches.float(), theirs.patches.float(), dim=-1)
                assert cosines.min() > 0.999


def test_fusing_leaves_a_network_in_training_alone() -> None:
    model = random_network(TINY).train()
    names = set(model.state_dict())
    assert fuse_for_cpu(model) is False
    assert set(model.state_dict()) == names


@pytest.mark.parametrize(
    "architecture", [TINY, replace(TINY, num_registers=2, ffn="swiglu"), replace(TINY, layerscale=None)]
)
@pytest.mark.parametrize("fused", [False, True])
def test_the_last_block_for_cls_alone_gives_the_cls_of_all(architecture: Architecture, fused: bool) -> None:
    model = random_network(architecture)
    if fused and not fuse_for_cpu(model):
        pytest.skip("no fused operators on this machine")
    last = architecture.depth - 1
    images = torch.randn(3, 3, 28, 42)
    with torch.inference_mode():
        before, whole = model.intermediate(images, [last - 1, last])
        same, alone = model.intermediate(images, [last - 1, last], patches_of=[last - 1])
        (asked,) = model.intermediate(images, [last], patches_of=[last])
    torch.testing.assert_close(alone.cls, whole.cls, rtol=1e-5, atol=1e-5)
    assert alone.patches.shape[:2] == (3, 0) and not alone.registers.numel() and alone.grid == whole.grid
    assert torch.equal(same.patches, before.patches) and torch.equal(asked.patches, whole.patches)
