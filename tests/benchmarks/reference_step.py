"""A plain training step as DINOv2's reference does it, for comparing speed and memory on one device.

Written anew from what the reference computes: crops of each size by themselves, or nested for xformers; half precision
copies of the weights for the networks and float32 masters, as FSDP gives them; weight_norm heads; Sinkhorn over the
whole matrix; foreach AdamW; loss scaling; `.item()` of each loss. Nothing of it is used by the trainer.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indexer.backbone.vit import Architecture
from trainer.config import Config
from trainer.data.masking import draw_masks


# B images, L tokens of each, D channels
class Block(nn.Module):
    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        dim, hidden = architecture.embed_dim, architecture.hidden_dim
        self.heads, self.drop, self.gated = architecture.num_heads, architecture.drop_path, architecture.ffn == "swiglu"
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.first, self.last = nn.Linear(dim, 2 * hidden if self.gated else hidden), nn.Linear(hidden, dim)
        self.ls1, self.ls2 = (nn.Parameter(torch.full((dim,), 1e-5)) for _ in range(2))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)"""
        for branch in (self._attend, self._feed):
            kept, scale = self._keep(tokens)
            tokens = tokens + branch(tokens) if kept is None else _added(tokens, kept, branch(tokens[kept]), scale)
        return tokens

    def nested(self, parts: list[Tensor]) -> list[Tensor]:
        """The same of several sizes in one sequence with xformers' mask."""
        for attends in (True, False):
            chosen = [self._keep(part) for part in parts]
            rows = [
                torch.arange(len(part), device=part.device) if kept is None else kept
                for part, (kept, _) in zip(parts, chosen, strict=True)
            ]
            flat = torch.cat([p[k].reshape(1, -1, p.shape[-1]) for p, k in zip(parts, rows, strict=True)], 1)
            layout = tuple((len(k), p.shape[1]) for p, k in zip(parts, rows, strict=True))
            out = self._attend_nested(flat, _mask_of(layout)) if attends else self._feed(flat)
            pieces = out.split([count * length for count, length in layout], 1)
            parts = [
                _added(part, row, piece, scale)
                for part, row, piece, (_, scale) in zip(parts, rows, pieces, chosen, strict=True)
            ]
        return parts

    def _keep(self, tokens: Tensor) -> tuple[Tensor | None, float]:
        if not (self.training and self.drop):
            return None, 1.0
        count = max(int(len(tokens) * (1 - self.drop)), 1)
        return torch.randperm(len(tokens), device=tokens.device)[:count], len(tokens) / count

    def _attend(self, tokens: Tensor) -> Tensor:
        shape = (*tokens.shape[:2], 3, self.heads, -1)
        query, key, value = self.qkv(self.norm1(tokens)).view(shape).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(tokens.shape)
        return self.proj(out) * self.ls1

    def _attend_nested(self, tokens: Tensor, mask: Any) -> Tensor:
        import xformers.ops

        query, key, value = self.qkv(self.norm1(tokens)).view(1, tokens.shape[1], 3, self.heads, -1).unbind(2)
        out = xformers.ops.memory_efficient_attention(query, key, value, attn_bias=mask).reshape(tokens.shape)
        return self.proj(out) * self.ls1

    def _feed(self, tokens: Tensor) -> Tensor:
        hidden = self.first(self.norm2(tokens))
        if self.gated:
            gate, content = hidden.chunk(2, -1)
            hidden = F.silu(gate) * content
        else:
            hidden = F.gelu(hidden)
        return self.last(hidden) * self.ls2


def _added(tokens: Tensor, kept: Tensor, update: Tensor, scale: float) -> Tensor:
    rows = update.reshape(len(kept), -1).to(tokens.dtype)
    return torch.index_add(tokens.flatten(1), 0, kept, rows, alpha=scale).view_as(tokens)


_MASKS: dict[tuple[tuple[int, int], ...], Any] = {}


def _mask_of(layout: tuple[tuple[int, int], ...]) -> Any:
    import xformers.ops

    if layout not in _MASKS:
        lengths = [length for count, length in layout for _ in range(count)]
        _MASKS[layout] = xformers.ops.fmha.BlockDiagonalMask.from_seqlens(lengths)
    return _MASKS[layout]


class ViT(nn.Module):
    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        dim, patch = architecture.embed_dim, architecture.patch_size
        self.patch = nn.Conv2d(3, dim, patch, patch)
        self.cls = nn.Parameter(torch.randn(1, 1, dim) * 1e-6)
        self.positions = nn.Parameter(torch.randn(1, 1 + architecture.pretrained_grid**2, dim) * 0.02)
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.blocks = nn.ModuleList(Block(architecture) for _ in range(architecture.depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, images: Sequence[Tensor], masks: Sequence[Tensor | None], nested: bool) -> list[Tensor]:
        parts = [self._tokens(batch, mask) for batch, mask in zip(images, masks, strict=True)]
        for block in self.blocks:
            assert isinstance(block, Block)
            parts = block.nested(parts) if nested else [block(part) for part in parts]
        return [self.norm(part) for part in parts]

    def _tokens(self, images: Tensor, mask: Tensor | None) -> Tensor:
        side, grid = images.shape[-1] // self.architecture.patch_size, self.architecture.pretrained_grid
        tokens = self.patch(images).flatten(2).transpose(1, 2)
        if mask is not None:
            tokens = torch.where(mask[..., None], self.mask_token.to(tokens.dtype), tokens)
        positions: Tensor = self.positions
        if side != grid:
            square = positions[:, 1:].float().view(1, grid, grid, -1).permute(0, 3, 1, 2)
            square = F.interpolate(square, scale_factor=((side + 0.1) / grid,) * 2, mode="bicubic")
            positions = torch.cat([positions[:, :1].float(), square.flatten(2).transpose(1, 2)], 1)
        return torch.cat([self.cls.expand(len(tokens), -1, -1), tokens], 1) + positions.to(tokens.dtype)


def _head(dim: int, config: Config, prototypes: int) -> nn.ModuleList:
    hidden, narrow = config.head_hidden, config.head_bottleneck
    layers = [nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, narrow)]
    last = torch.nn.utils.parametrizations.weight_norm(nn.Linear(narrow, prototypes, bias=False))
    return nn.ModuleList([nn.Sequential(*layers), last])


class Network(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        architecture = config.architecture()
        self.backbone = ViT(architecture)
        self.dino = _head(architecture.embed_dim, config, config.prototypes)
        self.ibot = _head(architecture.embed_dim, config, config.ibot_prototypes)

    def forward(
        self, images: Sequence[Tensor], masks: Sequence[Tensor | None], picked: Tensor, upper: int, nested: bool
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """CLS of the first size, scores of each size, scores of the picked patches padded to `upper` in between."""
        outputs = self.backbone(images, masks, nested)
        patches = outputs[0][:, 1:].flatten(0, 1)[picked]
        padded = patches.new_zeros(upper, patches.shape[1])
        padded[: len(patches)] = patches
        cls = [output[:, 0] for output in outputs]
        scores = list(_scored(self.dino, torch.cat(cls)).split([len(one) for one in cls]))
        return cls[0], scores, _scored(self.ibot, padded)[: len(patches)]


def _scored(head: nn.ModuleList, tokens: Tensor) -> Tensor:
    mlp, last = head
    scores = last(F.normalize(mlp(tokens), dim=-1, eps=1e-6))
    assert isinstance(scores, Tensor)
    return scores


class ReferenceStep:
    """One update on ready crops of random numbers.

    dtype   of the networks' copies of the weights
    nested  global and local crops in one sequence, which needs xformers
    """

    def __init__(self, config: Config, device: torch.device, dtype: torch.dtype, *, nested: bool = False) -> None:
        torch.manual_seed(0)
        self.config, self.device, self.dtype, self.nested = config, device, dtype, nested
        self.student, self.teacher = Network(config).to(device), Network(config).to(device)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False).eval()
        parts = (self.student.backbone, self.student.dino, self.student.ibot)
        self.parts = [list(part.parameters()) for part in parts]
        self.optimiser = torch.optim.AdamW([p for part in self.parts for p in part], lr=1e-5, foreach=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        shapes = ((2, config.global_size), (config.num_local, config.local_size))
        self.crops = [torch.randn(n * config.batch_size, 3, size, size, device=device) for n, size in shapes]
        self.grid = (config.global_size // config.architecture().patch_size,) * 2
        self.number = 0

    def __call__(self) -> None:
        config = self.config
        self.number += 1
        masks = draw_masks(config, self.grid, self.number)
        picked = masks.flatten().nonzero().flatten().to(self.device)
        weights = (1 / masks.sum(1).clamp_min(1)).unsqueeze(1).expand_as(masks)[masks].to(self.device)
        masks = masks.to(self.device)
        upper = int(1.02 * len(picked)) + 8
        self.optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            _, (theirs,), their_patches = self._run(self.teacher, self.crops[:1], [None], picked, upper, False)
            one, two = theirs.chunk(2)
            targets = _sinkhorn(torch.cat([two, one])).view(2, -1, theirs.shape[-1])
            patch_targets = _sinkhorn(their_patches)
        cls, (mine, local), patches = self._run(self.student, self.crops, [masks, None], picked, upper, self.nested)
        losses = self._losses(cls, mine, local, patches, targets, patch_targets, weights)
        self.scaler.scale(torch.stack(losses).sum()).backward()
        self.scaler.unscale_(self.optimiser)
        for part in self.parts:
            nn.utils.clip_grad_norm_(part, 3.0)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        with torch.no_grad():
            slow, fast = ([p.detach() for p in net.parameters()] for net in (self.teacher, self.student))
            torch._foreach_mul_(slow, 0.994)
            torch._foreach_add_(slow, fast, alpha=0.006)
        for value in losses:
            value.item()

    def _run(self, network: Network, images: Sequence[Tensor], *given: Any) -> Any:
        weights = {name: parameter.to(self.dtype) for name, parameter in network.named_parameters()}
        halved = [image.to(self.dtype) for image in images]
        return torch.func.functional_call(network, weights, (halved, *given))

    def _losses(
        self,
        cls: Tensor,
        mine: Tensor,
        local: Tensor,
        patches: Tensor,
        targets: Tensor,
        patch_targets: Tensor,
        weights: Tensor,
    ) -> list[Tensor]:
        terms = 2 + 2 * self.config.num_local
        of_local = mine.new_zeros((), dtype=torch.float32)
        for scores in local.chunk(self.config.num_local):
            logs = F.log_softmax(scores.float() / 0.1, -1)
            for target in targets:
                of_local = of_local - (target * logs).sum(-1).mean()
        of_global = -(targets.flatten(0, 1) * F.log_softmax(mine.float() / 0.1, -1)).sum(-1).mean() * 2 / terms
        per_patch = -(patch_targets * F.log_softmax(patches.float() / 0.1, -1)).sum(-1)
        ibot = (per_patch * weights).sum() / (2 * self.config.batch_size)
        koleo = 0.1 * torch.stack([_koleo(part) for part in cls.chunk(2)]).sum()
        return [of_local / terms, of_global, ibot, koleo]


@torch.no_grad()
def _sinkhorn(scores: Tensor, temperature: float = 0.07) -> Tensor:
    q = torch.exp(scores.float() / temperature).t()
    prototypes, samples = q.shape
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(1, keepdim=True)
        q /= prototypes
        q /= q.sum(0, keepdim=True)
        q /= samples
    return (q * samples).t()


def _koleo(embeddings: Tensor) -> Tensor:
    points = F.normalize(embeddings.float(), dim=-1)
    nearest = (points @ points.t()).fill_diagonal_(-1).argmax(1)
    return -torch.log(F.pairwise_distance(points, points[nearest], eps=1e-8) + 1e-8).mean()
