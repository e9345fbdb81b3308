"""What the kernel for sequences of different lengths is given: it runs on CUDA only, its slow twin runs here."""

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from indexer.backbone import attention as attention_module
from indexer.backbone.vit import Architecture, VisionTransformer

pytestmark = pytest.mark.skipif(
    not attention_module.HAS_VARLEN, reason="this torch has no attention for different lengths"
)
LAYOUT = ((4, 17), (1, 9), (6, 5))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What torch's kernel is called with from now on, a slow twin in its place."""
    from torch.nn.attention import varlen  # here, since it brings torch's compiler, two seconds of every run of tests

    signature = inspect.signature(varlen.varlen_attn)
    called: list[dict[str, Any]] = []

    def kernel(*given: object) -> Tensor:
        called.append(dict(signature.bind(*given).arguments))
        return slow_kernel(called[-1])

    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    return called


def slow_kernel(call: dict[str, Any]) -> Tensor:
    """What torch documents of its kernel, one sequence at a time."""
    query, key, value = (call[name] for name in ("query", "key", "value"))
    borders = call["cu_seq_q"]
    assert torch.equal(borders, call["cu_seq_k"]) and borders.dtype == torch.int32
    lengths = borders.diff().tolist()
    assert borders[0] == 0 and sum(lengths) == len(query) and max(lengths) == call["max_q"] == call["max_k"]
    parts = zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True)
    return torch.cat(
        [F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in part)).transpose(0, 1) for part in parts]
    )


def test_borders_are_where_images_begin_and_the_last_one_ends() -> None:
    lengths = [length for images, length in LAYOUT for _ in range(images)]
    expected = [sum(lengths[:n]) for n in range(len(lengths) + 1)]
    assert attention_module._borders(LAYOUT, torch.device("cpu")).tolist() == expected


def test_first_rows_are_where_each_image_begins() -> None:
    assert attention_module.first_rows(((2, 5), (1, 4)), 2).tolist() == [0, 1, 5, 6, 10, 11]


@pytest.mark.slow
def test_the_kernel_is_given_what_the_plain_path_computes(calls: list[dict[str, Any]]) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(4 * 17 + 9 + 6 * 5, 3, 2, 16, requires_grad=True)
    gradients = []
    ways: list[Any] = [attention_module._varlen_attention, attention_module._torch_attention]
    for compute in ways:
        (gradient,) = torch.autograd.grad(compute(*qkv.unbind(1), LAYOUT).square().sum(), qkv)
        gradients.append(gradient)
    torch.testing.assert_close(*gradients)
    assert len(calls) == 1


def test_a_packed_forward_uses_it_for_crops_of_two_sizes_only(
    calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = VisionTransformer(Architecture(embed_dim=32, depth=2, num_heads=2, image_size=56))
    large, small = torch.randn(2, 3, 56, 56), torch.randn(3, 3, 28, 28)
    plain = model.forward_packed([large, small])
    assert not calls
    monkeypatch.setattr(attention_module, "_has_varlen", lambda query: True)
    packed = model.forward_packed([large, small])
    assert len(calls) == 2  # one a block
    for ours, expected in zip(packed, plain, strict=True):
        torch.testing.assert_close(ours.patches, expected.patches)
    model(large)
    assert len(calls) == 2


def test_tensors_on_the_cpu_or_in_full_precision_do_not_go_there() -> None:
    for device, dtype in (("cpu", torch.bfloat16), ("meta", torch.bfloat16)):
        assert not attention_module._has_varlen(torch.empty(4, 2, 16, dtype=dtype, device=device))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA is not there")
def test_on_cuda_it_is_the_plain_path() -> None:
    query, key, value = torch.randn(4 * 17 + 9 + 6 * 5, 3, 2, 64, device="cuda", dtype=torch.bfloat16).unbind(1)
    assert attention_module._has_varlen(query)
    ours = attention_module._varlen_attention(query, key, value, LAYOUT)
    torch.testing.assert_close(ours, attention_module._torch_attention(query, key, value, LAYOUT), rtol=0, atol=0.02)


def test_bfloat16_on_a_cpu_has_the_gradients_of_float32() -> None:
    torch.manual_seed(0)
    layout = ((2, 37), (3, 10))
    rows = [torch.randn(2 * 37 + 3 * 10, 3, 64) for _ in range(3)]
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        query, key, value = (row.clone().to(dtype).requires_grad_() for row in rows)
        out = attention_module.attention(query, key, value, layout)
        out.float().square().sum().backward()
        gradients.append(
            [out.detach().float(), *(one.grad.float() for one in (query, key, value) if one.grad is not None)]
        )
    for exact, rounded in zip(*gradients, strict=True):
        assert (rounded - exact).norm() < 0.02 * exact.norm()
