"""Scaled dot-product attention over packed images; the only module that knows of xformers.

On CUDA, images of several sizes are attended to in one kernel, in half precision: xformers' where it is installed, else
torch's for sequences of different lengths. Everywhere else, so for images of one size, torch's fused attention runs,
once per group of equally long sequences; but in bfloat16 on a CPU two plain matrix products are nearly twice as fast,
since oneDNN multiplies them with the processor's own bfloat16 instructions.

Not run yet: both CUDA paths. Tests hold what they are given against the plain path, with a slow twin of the kernel.
"""

from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    import xformers.ops as xformers_ops
except ImportError:  # an optional extra, for CUDA only
    xformers_ops = None

HAS_VARLEN = find_spec("torch.nn.attention.varlen") is not None  # it is young

# How images lie behind each other in a packed (T, ...) tensor: groups of (number of images, tokens per image).
Layout = tuple[tuple[int, int], ...]
HALF = (torch.float16, torch.bfloat16)
LAYOUTS_KEPT = 32  # a run has two to four: of student and teacher, each with images dropped out or not


# T tokens of all images together, h heads, d channels per head, B images in a group, L tokens per image
def attention(query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
    """Each image attends to its own tokens only, as if it were alone.

    query, key, value  (T, h, d)
    layout             groups ((B, L), ...) with sum(B * L) == T
    returns            (T, h, d)

    for every image i: softmax(query[i] . key[i] / sqrt(d)) . value[i]
    """
    if len(layout) > 1 and _has_xformers(query):
        return _xformers_attention(query, key, value, layout)
    if len(layout) > 1 and _has_varlen(query):
        return _varlen_attention(query, key, value, layout)
    return _torch_attention(query, key, value, layout)


def attention_of_first(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float | None = None) -> Tensor:
    """`attention` of each image's first token alone.

    query       (B, h, d)  of the first token of each of the B images of all groups
    key, value  (T, h, d)
    scale       of the scores; None: 1 / sqrt(d)
    returns     (B, h, d)
    """
    sizes, counts = [images * length for images, length in layout], [images for images, _ in layout]
    outputs = []
    for images, q, k, v in zip(counts, query.split(counts), key.split(sizes), value.split(sizes), strict=True):
        k, v = (x.unflatten(0, (images, -1)).transpose(1, 2) for x in (k, v))  # (B, h, L, d)
        outputs.append(F.scaled_dot_product_attention(q[:, :, None], k, v, scale=scale)[:, :, 0])
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


@lru_cache(LAYOUTS_KEPT)
def first_rows(layout: Layout, count: int = 1) -> Tensor:
    """Where the first `count` tokens of each image lie among all tokens; (B * count,) int64."""
    with torch.inference_mode(False):
        starts = torch.tensor([n * length for images, length in layout for n in range(images)])
        borders = torch.tensor([0, *(images * length for images, length in layout)]).cumsum(0)[:-1]
        starts += borders.repeat_interleave(torch.tensor([images for images, _ in layout]))
        return (starts[:, None] + torch.arange(count)).flatten()


def _torch_attention(query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
    sizes = [images * length for images, length in layout]
    outputs = []
    for (images, _), *qkv in zip(layout, query.split(sizes), key.split(sizes), value.split(sizes), strict=True):
        q, k, v = (x.unflatten(0, (images, -1)).transpose(1, 2) for x in qkv)  # (B, h, L, d)
        if q.device.type == "cpu" and q.dtype == torch.bfloat16:
            # torch's fused attention is slow here, and the way back through it slower: a third of a training step
            out = _with_gradient(q, k, v) if torch.is_grad_enabled() else _two_products(q, k, v)  # (B, h, L, d)
        else:
            out = F.scaled_dot_product_attention(q, k, v)  # (B, h, L, d)
        outputs.append(out.transpose(1, 2).flatten(0, 1))  # (B * L, h, d)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _with_gradient(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention step by step, each (B, h, L, d); the mean key is taken away as in `_two_products`."""
    scores = (query * query.shape[-1] ** -0.5) @ (key - key.mean(dim=2, keepdim=True)).mT  # (B, h, L, L)
    return scores.softmax(-1) @ value


def prepared_attention(query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
    """`attention` where queries are divided by sqrt(d) already and keys are about zero in the mean; for inference.

    query, key, value  (T, h, d) bfloat16 on the CPU
    """
    sizes = [images * length for images, length in layout]
    outputs = []
    for (images, _), *qkv in zip(layout, query.split(sizes), key.split(sizes), value.split(sizes), strict=True):
        q, k, v = (x.unflatten(0, (images, -1)).transpose(1, 2) for x in qkv)  # (B, h, L, d)
        outputs.append(_two_products(q, k, v, prepared=True).transpose(1, 2).flatten(0, 1))  # (B * L, h, d)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


_SCORES_BYTES = 4_000_000  # of attention scores at a time: they stay in cache, and malloc keeps the memory


def _two_products(query: Tensor, key: Tensor, value: Tensor, prepared: bool = False) -> Tensor:
    """softmax(query . key / sqrt(d)) . value for (B, h, L, d), a few images at a time; for inference.

    The scores are rounded to bfloat16, so they should be small: taking the mean key away shifts all scores of a query
    alike, which softmax does not see, and brings the error back to that of the fused kernel, which scores in float32.
    """
    _, heads, length, dim = query.shape
    step = max(1, _SCORES_BYTES // (heads * length * length * query.element_size()))
    nothing = query.new_empty(1, 1, 1)  # beta=0 ignores it
    outputs = []
    for parts in zip(query.split(step), key.split(step), value.split(step), strict=True):
        q, k, v = (part.flatten(0, 1) for part in parts)  # (b * h, L, d)
        if prepared:
            scores = torch.bmm(q, k.transpose(1, 2))  # (b * h, L, L)
        else:
            k = k - k.mean(dim=1, keepdim=True)
            scores = torch.baddbmm(nothing, q, k.transpose(1, 2), beta=0, alpha=dim**-0.5)  # (b * h, L, L)
        torch.softmax(scores, dim=-1, out=scores)
        outputs.append(torch.bmm(scores, v).unflatten(0, (-1, heads)))  # (b, h, L, d)
    return torch.cat(outputs)


def _has_varlen(query: Tensor) -> bool:
    """Whether torch's kernel for sequences of different lengths takes these tensors."""
    if not HAS_VARLEN or not query.is_cuda or query.dtype not in HALF:
        return False
    ampere = torch.version.hip is None and torch.cuda.get_device_capability(query.device) >= (8, 0)
    return ampere and query.shape[-1] % 8 == 0


def _varlen_attention(query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # brings torch's compiler: half of what importing torch takes

    borders, longest = _borders(layout, query.device), max(length for _, length in layout)
    out = varlen_attn(query, key, value, borders, borders, longest, longest)  # (T, h, d)
    assert isinstance(out, Tensor)
    return out


def prepare_to_compile() -> None:
    """Tell torch.compile what is constant here; to be called before blocks are compiled.

    It is no decorator, since that imports torch's compiler, which a search does without.
    """
    torch.compiler.assume_constant_result(_borders)


def _borders(layout: Layout, device: torch.device) -> Tensor:
    """Where each image's tokens begin, and where the last one's end; the same tensor for all blocks and steps.

    returns  (sum of B + 1,) int32
    """
    return _made_borders(layout, device)


@lru_cache(LAYOUTS_KEPT)
def _made_borders(layout: Layout, device: torch.device) -> Tensor:
    lengths = [length for images, length in layout for _ in range(images)]
    with torch.inference_mode(False):  # training uses it later, whoever asked first
        return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)


def _has_xformers(query: Tensor) -> bool:
    """Whether xformers is there and takes these tensors; in float32 it has no kernel for the newest GPUs."""
    return xformers_ops is not None and query.is_cuda and query.dtype in HALF


def _xformers_attention(query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
    q, k, v = query[None], key[None], value[None]  # (1, T, h, d)
    return xformers_ops.memory_efficient_attention(q, k, v, attn_bias=_block_mask(layout, query.device))[0]


@lru_cache(LAYOUTS_KEPT)
def _block_mask(layout: Layout, device: torch.device) -> Any:
    """xformers' mask for the images of a layout; on their device, which need not be the first one."""
    lengths = [length for images, length in layout for _ in range(images)]
    with torch.inference_mode(False):
        return xformers_ops.fmha.BlockDiagonalMask.from_seqlens(lengths, device=device)
