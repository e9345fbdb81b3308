"""The same network in fewer, larger steps, for inference on a CPU.

Three things are done once instead of in every forward: weights are brought into the order that oneDNN multiplies
fastest, LayerScale is multiplied into the matrix before it, and bias, GELU and the residual addition become part of
the matrix multiplication. The operators are those that torch.compile emits for a CPU; calling them directly needs no
compiler. They are not public, so whoever lacks them, or gets other numbers from them, keeps the plain network.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Layout, attention, attention_of_first, first_rows
from .vit import Block, SwiGLU, VisionTransformer


def fuse_for_cpu(model: VisionTransformer) -> bool:
    """Replace the blocks of a network on the CPU by fused ones; whether this torch and processor can.

    Afterwards the network is for inference only: it has no weights to train or to save in its blocks.
    """
    weight = model.patch_embed.proj.weight
    if weight.device.type != "cpu" or model.training or not _works(weight.dtype):
        return False
    fused: list[_FusedBlock] = []
    for block in model.blocks:
        assert isinstance(block, Block), "fused already"
        fused.append(_FusedBlock(block, is_last=len(fused) == len(model.blocks) - 1))
    model.blocks = nn.ModuleList(fused)
    return True


def _works(dtype: torch.dtype) -> bool:
    """Try the operators on a small matrix and compare with the plain ones."""
    with torch.no_grad():
        ramp = torch.linspace(-1, 1, 64 * 32).reshape(64, 32).to(dtype)  # (T, D)
        linear = nn.Linear(32, 64, device="meta")  # draws no random numbers
        linear.weight = nn.Parameter(ramp.flip(0) / 4)
        linear.bias = nn.Parameter(torch.full((64,), 0.5, dtype=dtype))
        residual = torch.ones(64, 64, dtype=dtype)
        try:
            fused = _fused(linear, activation="gelu")(ramp), _fused(linear).plus(residual, ramp)
        except (AttributeError, RuntimeError, TypeError, NotImplementedError):
            return False
        plain = F.gelu(linear(ramp)), residual + linear(ramp)
        return all((a - b).abs().max() <= 0.02 * b.abs().max() for a, b in zip(fused, plain, strict=True))


# T tokens of all images together, D channels, h heads, d = D / h
class _FusedBlock(nn.Module):
    """`vit.Block` in eval mode."""

    def __init__(self, block: Block, is_last: bool) -> None:
        super().__init__()
        mlp = block.mlp
        self.gated = isinstance(mlp, SwiGLU)
        first, last = (mlp.w12, mlp.w3) if isinstance(mlp, SwiGLU) else (mlp.fc1, mlp.fc2)
        self.num_heads = block.attn.num_heads
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.qkv = _fused(block.attn.qkv)
        self.proj = _fused(block.attn.proj, scale=getattr(block.ls1, "gamma", None))
        self.widen = _fused(first, activation="none" if self.gated else "gelu")
        self.narrow = _fused(last, scale=getattr(block.ls2, "gamma", None))
        if is_last:  # see `first`
            dim = block.attn.proj.in_features
            weights, biases = (x.detach().split([dim, 2 * dim]) for x in (block.attn.qkv.weight, block.attn.qkv.bias))
            self.query, self.key_value = map(FusedLinear, weights, biases)

    def forward(self, tokens: Tensor, layout: Layout) -> Tensor:
        query, key, value = self.qkv(self.norm1(tokens)).unflatten(1, (3, self.num_heads, -1)).unbind(1)  # (T, h, d)
        return self._feed(self.proj.plus(tokens, attention(query, key, value, layout).flatten(1)))

    def first(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Each image's first token alone, of the network's last block.  (T, D) -> (B, D)"""
        rows, normed = first_rows(layout), self.norm1(tokens)
        query = self.query(normed[rows]).unflatten(1, (self.num_heads, -1))  # (B, h, d)
        key, value = self.key_value(normed).unflatten(1, (2, self.num_heads, -1)).unbind(1)  # (T, h, d)
        return self._feed(self.proj.plus(tokens[rows], attention_of_first(query, key, value, layout).flatten(1)))

    def _feed(self, tokens: Tensor) -> Tensor:
        hidden = self.widen(self.norm2(tokens))
        if self.gated:
            gate, content = hidden.chunk(2, dim=-1)
            hidden = F.silu(gate) * content
        return self.narrow.plus(tokens, hidden)


def _fused(linear: nn.Linear, activation: str = "none", scale: Tensor | None = None) -> "FusedLinear":
    """A layer with `scale (out,)` multiplied into its weight and bias."""
    weight, bias = linear.weight.detach(), linear.bias.detach()
    if scale is not None:
        weight = (weight.float() * scale.float()[:, None]).to(weight.dtype)
        bias = (bias.float() * scale.float()).to(bias.dtype)
    return FusedLinear(weight, bias, activation)


class FusedLinear(nn.Module):
    """activation(x W' + b), or residual + x W' + b, each in one operator; weight (out, in), bias (out,)."""

    def __init__(self, weight: Tensor, bias: Tensor, activation: str = "none") -> None:
        super().__init__()
        self.weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)  # opaque to other operators
        self.bias: Tensor = bias
        self.activation = activation

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(tokens, self.weight, self.bias, self.activation, [], "none")

    def plus(self, residual: Tensor, tokens: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.binary(tokens, residual, self.weight, self.bias, "add")
