"""The DINOv2 vision transformer, with the official names for its parameters.

Images of any height and width that are multiples of the patch size go in; a CLS token, registers and one token per
patch come out. Inside, all tokens of all images lie behind each other in one (T, D) matrix, and a layout says where
each image's tokens are. So one forward serves a plain batch and the trainer's mixture of large and small crops alike,
and only attention (see attention.py) needs to know of the borders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Layout, attention, attention_of_first, first_rows


@dataclass(frozen=True)
class Architecture:
    """What a network looks like; everything that its parameters' names and shapes follow from."""

    patch_size: int = 14  # pixels
    embed_dim: int = 384
    depth: int = 12  # blocks
    num_heads: int = 6
    mlp_ratio: float = 4.0  # hidden width of the feed-forward part over embed_dim
    ffn: Literal["mlp", "swiglu"] = "mlp"
    num_registers: int = 0
    image_size: int = 518  # pixels, side of the square that the position embeddings were made for
    interpolate_offset: float = 0.1  # official: 0.1 without registers, 0 with them
    interpolate_antialias: bool = False
    layerscale: float | None = 1.0  # initial value; None: the blocks have no LayerScale
    drop_path: float = 0.0  # share of images that skip a block's branch, in training only

    def __post_init__(self) -> None:
        sizes = (self.patch_size, self.embed_dim, self.depth, self.num_heads, self.image_size // self.patch_size)
        if min(sizes) < 1 or self.num_registers < 0 or self.hidden_dim < 1:
            raise ValueError(f"impossible architecture: every size must be positive in {self}")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"impossible architecture: {self.embed_dim} channels in {self.num_heads} equal heads")
        if self.ffn not in ("mlp", "swiglu"):
            raise ValueError(f"impossible architecture: ffn is {self.ffn!r}; mlp and swiglu are known")
        for share in ("drop_path", "interpolate_offset"):
            if not 0 <= getattr(self, share) < 1:
                raise ValueError(f"impossible architecture: {share} {getattr(self, share)} is not in [0, 1)")

    @property
    def hidden_dim(self) -> int:
        """Width inside the feed-forward part; SwiGLU's two halves cost as much as an MLP when they are 2/3 as wide."""
        hidden = int(self.embed_dim * self.mlp_ratio)
        return (int(hidden * 2 / 3) + 7) // 8 * 8 if self.ffn == "swiglu" else hidden

    @property
    def pretrained_grid(self) -> int:
        """Rows (and columns) of the stored position embeddings."""
        return self.image_size // self.patch_size


def _with_registers(architecture: Architecture) -> Architecture:
    return replace(architecture, num_registers=4, interpolate_offset=0.0, interpolate_antialias=True)


_OFFICIAL = {
    "dinov2_vits14": Architecture(embed_dim=384, depth=12, num_heads=6),
    "dinov2_vitb14": Architecture(embed_dim=768, depth=12, num_heads=12),
    "dinov2_vitl14": Architecture(embed_dim=1024, depth=24, num_heads=16),
    "dinov2_vitg14": Architecture(embed_dim=1536, depth=40, num_heads=24, ffn="swiglu"),
}
ARCHITECTURES: dict[str, Architecture] = _OFFICIAL | {
    f"{name}_reg": _with_registers(architecture) for name, architecture in _OFFICIAL.items()
}


# B images, H x W pixels, P patch side, N = rows * cols patches, R registers, L = 1 + R + N tokens, D channels,
# T tokens of all images together, h heads, d = D / h, G = pretrained_grid
@dataclass(frozen=True)
class TokenFeatures:
    """What the network outputs for B images of one size."""

    cls: Tensor  # (B, D)
    registers: Tensor  # (B, R, D)
    patches: Tensor  # (B, N, D), row by row
    grid: tuple[int, int]  # rows, cols; N = rows * cols


class VisionTransformer(nn.Module):
    """A DINOv2 network with random weights; `checkpoint.build_model` makes one with trained weights."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        dim = architecture.embed_dim
        self.architecture = architecture
        self.half_residual = False  # under autocast, keep tokens between blocks in its number format, too
        self.patch_embed = PatchEmbed(architecture.patch_size, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + architecture.pretrained_grid**2, dim))
        if architecture.num_registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, architecture.num_registers, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.blocks = nn.ModuleList(Block(architecture) for _ in range(architecture.depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        if not self.cls_token.is_meta:  # without memory there is nothing to draw
            self._initialise()

    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        if self.architecture.num_registers:
            nn.init.normal_(self.register_tokens, std=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> TokenFeatures:
        """The last block's tokens, normalised by the final norm.

        images  (B, 3, H, W)  mean and deviation already taken out; H and W multiples of the patch size
        mask    (B, N) bool   True where a patch is hidden behind the mask token
        """
        return self.forward_packed([images], [mask])[0]

    def forward_packed(
        self, images: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None
    ) -> list[TokenFeatures]:
        """`forward` of several batches of different sizes at once; equal to one call for each.

        images  tensors (B_i, 3, H_i, W_i)
        masks   tensors (B_i, N_i) or None, one for each batch
        """
        tokens, layout = self._pack(images, masks or [None] * len(images))  # (T, D)
        for block in self.blocks:
            tokens = block(tokens, layout)
        parts = self.norm(tokens).split([count * length for count, length in layout])
        return [
            self._unpack(part.unflatten(0, (len(batch), -1)), self._grid(batch))
            for part, batch in zip(parts, images, strict=True)
        ]

    def intermediate(
        self, images: Tensor, layers: Sequence[int], norm: bool = True, patches_of: Sequence[int] | None = None
    ) -> list[TokenFeatures]:
        """The tokens after chosen blocks, in the order asked; blocks after the last one asked do not run.

        images      (B, 3, H, W)  as in `forward`
        layers      indices of blocks, the first is 0, the last depth - 1
        norm        apply the final norm to each
        patches_of  the blocks of which more than CLS is read; None: all. Where the network's last block is none of them
                    it is computed for CLS alone, a twelfth of a small network's work, and has no registers and patches
        """
        depth = len(self.blocks)
        if not layers or not all(0 <= layer < depth for layer in layers):
            raise ValueError(f"layers {list(layers)} of a network of {depth} blocks: give some of 0 to {depth - 1}")
        tokens, layout = self._pack([images], [None])  # (T, D)
        kept = {}
        for index in range(max(layers) + 1):
            block: Any = self.blocks[index]  # or what an inference form of the network has in its place
            if index == depth - 1 and patches_of is not None and index not in patches_of:
                tokens, layout = block.first(tokens, layout), ((len(images), 1),)
            else:
                tokens = block(tokens, layout)
            if index in layers:
                output = self.norm(tokens) if norm else tokens
                kept[index] = self._unpack(output.unflatten(0, (len(images), -1)), self._grid(images))
        return [kept[layer] for layer in layers]

    def _pack(self, images: Sequence[Tensor], masks: Sequence[Tensor | None]) -> tuple[Tensor, Layout]:
        """Tokens of all images behind each other, (T, D)."""
        batches = [self._tokens(batch, mask) for batch, mask in zip(images, masks, strict=True)]  # (B, L, D) each
        layout = tuple((len(batch), batch.shape[1]) for batch in batches)
        flat = [batch.flatten(0, 1) for batch in batches]
        tokens = flat[0] if len(flat) == 1 else torch.cat(flat)
        if self.half_residual and torch.is_autocast_enabled(tokens.device.type):
            tokens = tokens.to(torch.get_autocast_dtype(tokens.device.type))
        return tokens, layout

    def _tokens(self, images: Tensor, mask: Tensor | None) -> Tensor:
        """The first block's input: CLS, registers, patches with positions.  (B, L, D)"""
        rows, cols = self._grid(images)
        patches = self.patch_embed(images)  # (B, N, D)
        if mask is not None:
            patches = torch.where(mask[..., None], self.mask_token.to(patches.dtype), patches)
        positions = self.positions(rows, cols).to(patches.dtype)  # (1, 1 + N, D)
        cls = (self.cls_token + positions[:, :1]).expand(len(images), -1, -1)  # (B, 1, D)
        registers = [self.register_tokens.expand(len(images), -1, -1)] if self.architecture.num_registers else []
        return torch.cat([cls, *registers, patches + positions[:, 1:]], dim=1)

    def positions(self, rows: int, cols: int) -> Tensor:
        """Position embeddings of CLS and of a grid of patches, stretched from the pretrained grid.  (1, 1 + N, D)"""
        side = self.architecture.pretrained_grid
        if rows == cols == side:
            return self.pos_embed
        cls, patches = self.pos_embed.float().split([1, side * side], dim=1)
        square = patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, D, G, G)
        offset, antialias = self.architecture.interpolate_offset, self.architecture.interpolate_antialias
        if offset:  # the scale, not only the size, enters the arithmetic of the first official models
            scale = ((rows + offset) / side, (cols + offset) / side)
            stretched = F.interpolate(square, scale_factor=scale, mode="bicubic", antialias=antialias)
        else:
            stretched = F.interpolate(square, size=(rows, cols), mode="bicubic", antialias=antialias)
        assert stretched.shape[-2:] == (rows, cols)
        return torch.cat([cls, stretched.flatten(2).transpose(1, 2)], dim=1)

    def _grid(self, images: Tensor) -> tuple[int, int]:
        height, width = images.shape[-2:]
        size = self.architecture.patch_size
        if height % size or width % size or not height or not width:
            raise ValueError(f"images of {height}x{width} pixels: both sides must be multiples of {size}")
        return height // size, width // size

    def _unpack(self, tokens: Tensor, grid: tuple[int, int]) -> TokenFeatures:
        first = 1 + self.architecture.num_registers
        return TokenFeatures(cls=tokens[:, 0], registers=tokens[:, 1:first], patches=tokens[:, first:], grid=grid)


class PatchEmbed(nn.Module):
    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)  # (B, 3, H, W) -> (B, N, D)


class Block(nn.Module):
    """x + attention(x), then x + mlp(x), each with a norm before and a LayerScale behind."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        dim, scale = architecture.embed_dim, architecture.layerscale
        self.drop_path = architecture.drop_path
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, architecture.num_heads)
        self.ls1 = nn.Identity() if scale is None else LayerScale(dim, scale)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp: Mlp | SwiGLU = FEED_FORWARD[architecture.ffn](dim, architecture.hidden_dim)
        self.ls2 = nn.Identity() if scale is None else LayerScale(dim, scale)

    def forward(self, tokens: Tensor, layout: Layout) -> Tensor:
        tokens = self._add_branch(tokens, layout, self._attend, self.ls1)
        return self._add_branch(tokens, layout, self._feed, self.ls2)

    def first(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Each image's first token, CLS, as `forward` has it in eval mode.  (T, D) -> (B, D)"""
        own = tokens[first_rows(layout).to(tokens.device)]
        own = self._add_branch(own, layout, lambda *_: self.attn.first(self.norm1(tokens), layout), self.ls1)
        return self._add_branch(own, layout, self._feed, self.ls2)

    def _attend(self, tokens: Tensor, layout: Layout) -> Tensor:
        return self.attn(self.norm1(tokens), layout)

    def _feed(self, tokens: Tensor, layout: Layout) -> Tensor:
        return self.mlp(self.norm2(tokens))

    def _add_branch(
        self, tokens: Tensor, layout: Layout, branch: Callable[[Tensor, Layout], Tensor], scale: nn.Module
    ) -> Tensor:
        """tokens + scale(branch(tokens)); in training only for some images, whose branch is scaled up to make it even.

        The images that drop out cost nothing (DINOv2, section 5, "Efficient stochastic depth").
        """
        if not (self.training and self.drop_path):
            update = branch(tokens, layout)
            if isinstance(scale, LayerScale):  # in one operation
                return torch.addcmul(tokens, update, scale.gamma.to(tokens.dtype))
            return tokens + update
        rows, weights, kept_layout = _keep_some(layout, 1 - self.drop_path, tokens.device)  # (K,), (K,)
        update = scale(branch(tokens.index_select(0, rows), kept_layout)) * weights[:, None]  # (K, D)
        return tokens.index_add(0, rows, update.to(tokens.dtype))


def _keep_some(layout: Layout, share: float, device: torch.device) -> tuple[Tensor, Tensor, Layout]:
    """Draw about `share` of each group's images, at least one.

    returns  the kept images' rows in the packed matrix (K,), each row's weight (K,) and the layout of what is kept.
    A group that keeps k of B images weights them B / k, so that the expected sum is that of all.
    """
    rows, weights, kept_layout, start = [], [], [], 0
    for images, length in layout:
        kept = max(1, round(images * share))
        chosen = torch.randperm(images, device=device)[:kept]  # (k,)
        offsets = torch.arange(length, device=device)  # (L,)
        rows.append((start + chosen[:, None] * length + offsets).flatten())  # (k * L,)
        weights.append(torch.full((kept * length,), images / kept, device=device))
        kept_layout.append((kept, length))
        start += images * length
    return torch.cat(rows), torch.cat(weights), tuple(kept_layout)


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, layout: Layout) -> Tensor:
        query, key, value = self.qkv(tokens).unflatten(1, (3, self.num_heads, -1)).unbind(1)  # (T, h, d) each
        return self.proj(attention(query, key, value, layout).flatten(1))  # (T, D)

    def first(self, tokens: Tensor, layout: Layout) -> Tensor:
        """What each image's first token gathers.  (T, D) -> (B, D)"""
        dim = tokens.shape[1]
        weights = zip(self.qkv.weight.split([dim, 2 * dim]), self.qkv.bias.split([dim, 2 * dim]), strict=True)
        (query, query_bias), key_value = weights
        own = F.linear(tokens[first_rows(layout).to(tokens.device)], query, query_bias)  # (B, D)
        key, value = F.linear(tokens, *key_value).unflatten(1, (2, self.num_heads, -1)).unbind(1)  # (T, h, d) each
        return self.proj(attention_of_first(own.unflatten(1, (self.num_heads, -1)), key, value, layout).flatten(1))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class SwiGLU(nn.Module):
    """Gated feed-forward; the gate and the value come from one matrix, as in the official fused version."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        gate, value = self.w12(tokens).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


FEED_FORWARD: dict[str, type[Mlp] | type[SwiGLU]] = {"mlp": Mlp, "swiglu": SwiGLU}


class LayerScale(nn.Module):
    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.gamma
