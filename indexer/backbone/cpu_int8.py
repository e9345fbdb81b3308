"""The same network with its matrix products in 8 bits, for inference on a CPU with VNNI instructions.

Activations are unsigned bytes by fixed scales, weights signed bytes with a scale for each row. What is surprising: next
to nothing is done to quantise. A scale and an offset for each channel are folded into the LayerNorm before a product
(and out of the product's weights and bias again), the scale of attention's output into the rows that make the values,
and GELU with its rounding is part of the product. So only clamping and the conversion to bytes are added.

Two things go further than bytes can tell, and have ways of their own. The few hidden channels with the largest values
share a scale apart from the others. And CLS and the registers, which differ from all patches and are what descriptors
read, are computed in bfloat16: one row in 257.

Ranges are measured on an index's own first images (`byte_ranges`), and where there are none on images that are drawn
here, the same for everybody. The operators are oneDNN's, as torch.compile emits them. They are not public: whoever
lacks them, or gets other numbers from them, keeps the network as it is.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Layout, attention, attention_of_first, first_rows, prepared_attention
from .byte_ranges import HIGH, LOW, MEAN, PLACES, ByteRanges
from .calibration_images import calibration_images
from .cpu_fusion import FusedLinear
from .vit import Block, Mlp, VisionTransformer

LEVELS = 255  # the largest byte
MIDDLE = 128.0
# Chosen on 24 photos of four kinds: a stored vector's least cosine is .980 at 1.4, .995 at 1.8, .996 at 2.0 and 2.3
MARGIN = 2.0  # times the range that was measured: photos go further than drawn images
# The same of ranges of 16 photos. 48 photos of six sets: least cosine .997 and median .9985 at 1.5, .997 and .9987 at
# 1.25, .981 and .9989 at 1; with the ranges of drawn images .991 and .998
PHOTO_MARGIN = 1.5
SMOOTHING = 0.5  # the power of a channel's range that its scale follows; the rest is left to the weights
FAR = 1 / 8  # of the hidden channels, those of the largest ranges, have a scale of their own
CALIBRATED_ON = 4  # drawn images
LEAST_COSINE = 0.99  # with bfloat16 on the drawn images: CLS and mean patch


# T tokens of all images together, S of them CLS and registers, D channels, h heads, d = D / h
@dataclass(frozen=True)
class ByteScale:
    """An activation as bytes u: value = scale * u + zero, all (D,) float32.

    mean  of the value: there the product with rounded weights is exact
    """

    scale: Tensor
    zero: Tensor
    mean: Tensor


def quantise_for_cpu(model: VisionTransformer, own: ByteRanges | None = None) -> bool:
    """Replace the blocks of a network in bfloat16 on the CPU by ones in 8 bits; whether that can be done well here.

    own  ranges of photos, of `measure_photos`; None: those of drawn images
    Afterwards the network is for inference only. One whose feed-forward part is gated is left as it is.
    """
    weight = model.patch_embed.proj.weight
    plain = [block for block in model.blocks if isinstance(block, Block) and isinstance(block.mlp, Mlp)]
    if weight.dtype != torch.bfloat16 or weight.device.type != "cpu" or model.training or not _works():
        return False
    if len(plain) < len(model.blocks):
        return False
    with torch.inference_mode():
        patch = model.architecture.patch_size
        images = calibration_images(CALIBRATED_ON, 16 * patch).bfloat16()
        ranges, expected = measure_ranges(model, [images])
        if own is not None:
            assert own.fit(len(plain), model.architecture.embed_dim, model.architecture.hidden_dim), "other ranges"
            ranges = [_BlockRanges.stored(own, block) for block in range(len(plain))]
        special = 1 + model.architecture.num_registers
        blocks = nn.ModuleList(
            _ByteBlock(block, of, special, is_last=block is plain[-1]) for block, of in zip(plain, ranges, strict=True)
        )
        tokens, layout = model._pack([images], [None])
        for block in blocks:
            tokens = block(tokens, layout)
        close = _cosine(tokens, expected, CALIBRATED_ON, special) >= LEAST_COSINE
    if close:
        model.blocks = blocks
        model.norm.float()
    return close


def is_eight_bit(model: VisionTransformer) -> bool:
    return isinstance(model.blocks[0], _ByteBlock)


def _cosine(ours: Tensor, theirs: Tensor, images: int, special: int) -> float:
    """The least one of CLS and of the mean patch, over images of one size; -1 where there is no number."""
    parts = []
    for tokens in (ours, theirs):
        each = tokens.float().unflatten(0, (images, -1))  # (B, L, D)
        parts.append(torch.cat([each[:, 0], each[:, special:].mean(1)]))  # (2 * B, D)
    return float(F.cosine_similarity(parts[0], parts[1], dim=-1).nan_to_num(-1.0).min())


def measure_photos(model: VisionTransformer, images: Sequence[Tensor]) -> ByteRanges | None:
    """The ranges on photos (B, 3, H, W) each, of a plain network in bfloat16; None where its parts are others."""
    if not all(isinstance(block, Block) and isinstance(block.mlp, Mlp) for block in model.blocks):
        return None
    with torch.inference_mode():
        ranges, _ = measure_ranges(model, images)
    return ByteRanges.of_blocks([{name: getattr(block, name).values() for name in PLACES} for block in ranges])


def measure_ranges(model: VisionTransformer, images: Sequence[Tensor]) -> tuple[list["_BlockRanges"], Tensor]:
    """What is before each product of each block, on images (B, 3, H, W) each; and the last block's tokens, (T, D)."""
    tokens, layout = model._pack(list(images), [None] * len(images))
    patches = torch.ones(len(tokens), dtype=torch.bool)
    patches[first_rows(layout, 1 + model.architecture.num_registers)] = False
    found = []
    for block in model.blocks:
        assert isinstance(block, Block)
        ranges, tokens = _BlockRanges.of(block, tokens, layout, patches)
        found.append(ranges)
    return found, tokens


@dataclass(frozen=True, eq=False)
class _Range:
    """Least, greatest and mean value of each channel, (D,) each, and how many times that range bytes are to span."""

    low: Tensor
    high: Tensor
    mean: Tensor
    margin: float = MARGIN

    @classmethod
    def of(cls, values: Tensor) -> "_Range":
        values = values.float()
        return cls(*values.aminmax(dim=0), values.mean(0))

    def values(self) -> Tensor:
        """(3, D), as `ByteRanges` has them."""
        return torch.stack([self.low, self.high, self.mean])

    def per_channel(self) -> ByteScale:
        span = ((self.high - self.low) * self.margin).clamp_min(1e-6)
        scale = span**SMOOTHING
        scale = scale * ((span / scale).amax() / LEVELS)
        return ByteScale(scale, (self.high + self.low) / 2 - scale * (LEVELS / 2), self.mean)

    def about_zero(self) -> ByteScale:
        """As `per_channel`, with the value 0 in the middle of the bytes."""
        span = (torch.maximum(self.high, -self.low) * 2 * self.margin).clamp_min(1e-6)
        scale = span**SMOOTHING
        scale = scale * ((span / scale).amax() / LEVELS)
        return ByteScale(scale, -MIDDLE * scale, self.mean)

    def together(self, channels: Tensor) -> ByteScale:
        """One scale for some channels, with a whole number of steps below zero."""
        low, high = self.low[channels].amin(), self.high[channels].amax() * self.margin
        scale = ((high - low) / LEVELS).clamp_min(1e-6)
        zero = (low / scale).round() * scale
        return ByteScale(scale.expand(len(channels)), zero.expand(len(channels)), self.mean[channels])

    def near_and_far(self) -> tuple[Tensor, Tensor]:
        """The channels of small and of large ranges, a fixed share of them."""
        order = (self.high - self.low).argsort()
        border = len(order) - round(len(order) * FAR)
        return order[:border], order[border:]


@dataclass(frozen=True, eq=False)
class _BlockRanges:
    """The ranges of one block's activations, over patches only; the names are those of PLACES, in their order."""

    normed1: _Range
    attended: _Range
    normed2: _Range
    hidden: _Range
    key: _Range

    @classmethod
    def stored(cls, ranges: ByteRanges, block: int) -> "_BlockRanges":
        rows = [ranges.places[name][block].float() for name in PLACES]  # (3, C) each
        return cls(*(_Range(row[LOW], row[HIGH], row[MEAN], PHOTO_MARGIN) for row in rows))

    @classmethod
    def of(cls, block: Block, tokens: Tensor, layout: Layout, rows: Tensor) -> tuple["_BlockRanges", Tensor]:
        """`vit.Block` in eval mode, watched in some rows; its ranges and its result."""
        assert isinstance(block.mlp, Mlp)
        scale1, scale2 = (getattr(scale, "gamma", 1.0) for scale in (block.ls1, block.ls2))
        normed1 = block.norm1(tokens)
        query, key, value = block.attn.qkv(normed1).unflatten(1, (3, block.attn.num_heads, -1)).unbind(1)  # (T, h, d)
        attended = attention(query, key, value, layout).flatten(1)
        tokens = tokens + scale1 * block.attn.proj(attended)
        normed2 = block.norm2(tokens)
        hidden = F.gelu(block.mlp.fc1(normed2))
        seen = (normed1, attended, normed2, hidden, key.flatten(1))
        return cls(*(_Range.of(values[rows]) for values in seen)), tokens + scale2 * block.mlp.fc2(hidden)


class _ByteBlock(nn.Module):
    """`vit.Block` in eval mode. Tokens are float32 from the first block on."""

    def __init__(self, block: Block, ranges: _BlockRanges, special: int, is_last: bool) -> None:
        super().__init__()
        assert isinstance(block.mlp, Mlp)
        self.special, self.num_heads = special, block.attn.num_heads
        first, second, attended = (
            ranges.normed1.per_channel(),
            ranges.normed2.per_channel(),
            ranges.attended.about_zero(),
        )
        qkv = _prepared_qkv(block.attn.qkv, ranges.key.mean, attended.scale, self.num_heads)
        proj = _scaled(block.attn.proj, getattr(block.ls1, "gamma", None))
        fc1 = block.mlp.fc1.weight.float(), block.mlp.fc1.bias.float()
        fc2 = _scaled(block.mlp.fc2, getattr(block.ls2, "gamma", None))

        self.norm1, self.norm2 = _ByteNorm(block.norm1, first), _ByteNorm(block.norm2, second)
        self.qkv, self.proj = _ByteLinear(*qkv, first), _ByteLinear(*proj, attended)
        if is_last:  # see `first`
            dim = block.attn.proj.in_features
            self.key_value = _ByteLinear(qkv[0][dim:], qkv[1][dim:], first)
        self.feed_forward: list[tuple[_ByteLinear, _ByteLinear]] = []
        bias = fc2[1]
        for channels in ranges.hidden.near_and_far():
            hidden = ranges.hidden.together(channels)
            widened = _ByteLinear(fc1[0][channels], fc1[1][channels], second, result=hidden)
            self.feed_forward.append((widened, _ByteLinear(fc2[0][:, channels], bias, hidden)))
            bias = torch.zeros_like(bias)  # it is added once

        self.special_norm1, self.special_norm2 = deepcopy(block.norm1).float(), deepcopy(block.norm2).float()
        self.special_qkv = _half_linear(*qkv)
        self.special_proj = _half_linear(proj[0] * attended.scale, proj[1])
        self.special_fc1, self.special_fc2 = _half_linear(*fc1, activation="gelu"), _half_linear(*fc2)

    def forward(self, tokens: Tensor, layout: Layout) -> Tensor:
        tokens = tokens.float()
        rows = first_rows(layout, self.special)
        special = tokens[rows]  # (S, D)

        qkv = self.qkv(self.norm1(tokens))  # (T, 3 * D)
        qkv.index_copy_(0, rows, self.special_qkv(self.special_norm1(special).bfloat16()))
        query, key, value = qkv.unflatten(1, (3, self.num_heads, -1)).unbind(1)  # (T, h, d) each
        attended = prepared_attention(query, key, value, layout).flatten(1)  # (T, D), in steps of bytes
        special = special + self.special_proj(attended[rows])
        tokens = self.proj.plus(tokens, (attended + MIDDLE).clamp_(0, LEVELS).byte())

        normed = self.norm2(tokens)
        for first, last in self.feed_forward:
            tokens = last.plus(tokens, first(normed), in_place=True)
        special = special + self.special_fc2(self.special_fc1(self.special_norm2(special).bfloat16()))
        return tokens.index_copy_(0, rows, special)

    def first(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Each image's first token alone, of the network's last block.  (T, D) -> (B, D) float32"""
        tokens = tokens.float()
        rows = first_rows(layout, self.special)
        own = self.special_qkv(self.special_norm1(tokens[rows]).bfloat16())  # (S, 3 * D)
        query, own = own.split([tokens.shape[1], 2 * tokens.shape[1]], dim=1)
        key_value = self.key_value(self.norm1(tokens)).index_copy_(0, rows, own)
        key, value = key_value.unflatten(1, (2, self.num_heads, -1)).unbind(1)  # (T, h, d) each
        query = query[:: self.special].unflatten(1, (self.num_heads, -1))  # (B, h, d)
        attended = attention_of_first(query, key, value, layout, scale=1.0).flatten(1)  # (B, D), in steps of bytes
        special = tokens[first_rows(layout)] + self.special_proj(attended)
        return special + self.special_fc2(self.special_fc1(self.special_norm2(special).bfloat16()))


def _prepared_qkv(linear: nn.Linear, key_mean: Tensor, value_scale: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Weight and bias whose queries are divided by sqrt(d), keys without their mean, values in steps of bytes.

    No softmax sees a mean key. Attention weighs values with a sum of 1, so its output has their scale.
    """
    weight, bias = linear.weight.float().clone(), linear.bias.float().clone()
    query, key, value = (slice(n * len(key_mean), (n + 1) * len(key_mean)) for n in range(3))
    shrink = (len(key_mean) // heads) ** -0.5
    weight[query] *= shrink
    bias[query] *= shrink
    bias[key] -= key_mean
    weight[value] /= value_scale[:, None]
    bias[value] /= value_scale
    return weight, bias


def _scaled(linear: nn.Linear, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    weight, bias = linear.weight.float(), linear.bias.float()
    return (weight, bias) if scale is None else (weight * scale.float()[:, None], bias * scale.float())


def _half_linear(weight: Tensor, bias: Tensor, activation: str = "none") -> FusedLinear:
    return FusedLinear(weight.bfloat16(), bias.bfloat16(), activation)


class _ByteNorm(nn.Module):
    """LayerNorm to bytes, (T, D) float32 -> (T, D) uint8."""

    def __init__(self, norm: nn.LayerNorm, to: ByteScale) -> None:
        super().__init__()
        self.eps = norm.eps
        self.weight = norm.weight.float() / to.scale
        self.bias = (norm.bias.float() - to.zero) / to.scale + 0.5  # the conversion cuts off

    def forward(self, tokens: Tensor) -> Tensor:
        return F.layer_norm(tokens, self.weight.shape, self.weight, self.bias, self.eps).clamp_(0, LEVELS).byte()


class _ByteLinear(nn.Module):
    """x W' + b of bytes x, as bfloat16; with `result` GELU of it, as bytes again."""

    def __init__(self, weight: Tensor, bias: Tensor, source: ByteScale, result: ByteScale | None = None) -> None:
        super().__init__()
        wide = weight * source.scale  # (out, in)
        self.scale = (wide.abs().amax(1) / 127).clamp_min(1e-12)  # (out,)
        rounded = (wide / self.scale[:, None]).round()
        mean_byte = (source.mean - source.zero) / source.scale
        self.bias = bias + weight @ source.mean - (rounded @ mean_byte) * self.scale
        self.weight = torch.ops.onednn.qlinear_prepack(rounded.to(torch.int8), None)  # opaque to other operators
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.step, self.zero = 1.0, 0  # of the bytes that come out
        if result is not None:
            self.step, self.zero = float(result.scale[0]), round(-float(result.zero[0] / result.scale[0]))
        self.output, self.activation = (torch.bfloat16, "none") if result is None else (torch.uint8, "gelu")

    def forward(self, source: Tensor) -> Tensor:
        given = source, 1.0, 0, self.weight, self.scale, self.zeros, self.bias  # zero points are in the bias
        return torch.ops.onednn.qlinear_pointwise(
            *given, self.step, self.zero, self.output, self.activation, [], "none"
        )

    def plus(self, residual: Tensor, source: Tensor, in_place: bool = False) -> Tensor:
        """residual + x W' + b, (T, D) float32."""
        given = source, 1.0, 0, self.weight, self.scale, self.zeros, residual, self.bias
        return torch.ops.onednn.qlinear_pointwise.binary(
            *given, 1.0, 0, torch.float32, 1.0, 0, "sum" if in_place else "add", 1.0, "none", [], "none"
        )


@lru_cache(1)
def _works() -> bool:
    """Whether the processor multiplies bytes, and the operators are there and right on a small matrix."""
    if not getattr(torch.cpu, "_is_vnni_supported", lambda: False)():
        return False
    with torch.inference_mode():
        source = torch.arange(256).reshape(8, 32)  # (T, D)
        weight = torch.linspace(-1, 1, 64 * 32).reshape(64, 32)
        scale = ByteScale(torch.full((32,), 1 / 64), torch.full((32,), -2.0), torch.zeros(32))
        values = source * scale.scale + scale.zero
        bias, residual = torch.linspace(-1, 1, 64), torch.ones(8, 64)
        plain = F.linear(values, weight, bias)
        hidden = ByteScale(torch.full((64,), 0.25), torch.full((64,), -0.25), torch.zeros(64))
        try:
            bytes_out = _ByteLinear(weight, bias, scale, result=hidden)(source.byte())
            ours = (
                _ByteLinear(weight, bias, scale)(source.byte()).float(),
                _ByteLinear(weight, bias, scale).plus(residual, source.byte()),
                bytes_out * hidden.scale + hidden.zero,
            )
        except (AttributeError, RuntimeError, TypeError, NotImplementedError):
            return False
        theirs = plain, residual + plain, F.gelu(plain)
        return all((a - b).abs().max() <= 0.03 * b.abs().max() for a, b in zip(ours, theirs, strict=True))
