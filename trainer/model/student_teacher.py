"""One step of DINOv2: the teacher's targets, the student's outputs, the losses (Oquab et al. 2024, sections 4 and 5).

The teacher is a moving average of the student. In distillation it is a frozen larger network instead, and a moving
average of the student is kept beside it, for that is what the run is for. A frozen teacher without heads (any
published backbone) has no prototypes, so there the student learns to predict its features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from indexer.backbone.attention import prepare_to_compile
from indexer.backbone.vit import TokenFeatures, VisionTransformer

from ..config import Config
from ..data.masking import PatchMasks
from .heads import Head
from .losses import centred_softmax, dino_loss, ibot_loss, koleo_loss, moved_center, sinkhorn


# B images, V local views of each, N patches and P picked patches of global crops, D channels, K and K' prototypes
class Outputs(NamedTuple):
    """What a network outputs for a batch; a tuple, since DDP and FSDP look for tensors in those."""

    global_cls: Tensor  # (2 * B, D)
    global_scores: Tensor  # (2 * B, K)
    local_scores: Tensor  # (V * B, K)
    patch_scores: Tensor  # (P, K'), of the picked patches


class Network(nn.Module):
    """A backbone with its heads; student and teacher are one each."""

    def __init__(self, backbone: VisionTransformer, dino_head: nn.Module, ibot_head: nn.Module | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.dino_head = dino_head
        self.ibot_head = ibot_head  # None: patches go through the other one

    def forward(self, crops: Sequence[Tensor], masks: Tensor | None, picked: Tensor, packed: bool = True) -> Outputs:
        """Scores of global and, where they are given, local crops.

        crops   (2 * B, 3, G, G) and perhaps (V * B, 3, L, L)
        masks   (2 * B, N) bool, what is hidden in the global crops
        picked  (P,) int64, places in (2 * B * N) of the patches that are scored
        packed  all crops in one sequence with block-diagonal attention; or one size after the other
        """
        features = self._features(crops, [masks, None][: len(crops)], packed)
        patches = features[0].patches.flatten(0, 1).index_select(0, picked)  # (P, D)
        tokens = [output.cls for output in features]
        if self.ibot_head is None:
            tokens.append(patches)
        scores = self.dino_head(torch.cat(tokens)).split([len(part) for part in tokens])
        empty = scores[0][:0]
        return Outputs(
            global_cls=features[0].cls,
            global_scores=scores[0],
            local_scores=scores[1] if len(crops) > 1 else empty,
            patch_scores=scores[-1] if self.ibot_head is None else self.ibot_head(patches),
        )

    def _features(self, crops: Sequence[Tensor], masks: list[Tensor | None], packed: bool) -> list[TokenFeatures]:
        if packed:
            return self.backbone.forward_packed(crops, masks)
        return [self.backbone(part, mask) for part, mask in zip(crops, masks, strict=True)]

    def parts(self) -> list[nn.Module]:
        """Those whose gradients are clipped each by itself."""
        return [part for part in (self.backbone, self.dino_head, self.ibot_head) if part is not None]


def make_network(backbone: VisionTransformer, config: Config) -> Network:
    """Heads with random weights on a backbone."""
    dim = backbone.architecture.embed_dim
    widths: dict[str, int] = {
        "hidden": config.head_hidden,
        "bottleneck": config.head_bottleneck,
        "layers": config.head_layers,
    }
    separate = config.separate_heads and config.ibot_weight > 0
    ibot_head = Head(dim, config.ibot_prototypes, **widths) if separate else None
    return Network(backbone, Head(dim, config.prototypes, **widths), ibot_head)


def make_predictor(backbone: VisionTransformer, teacher_dim: int, config: Config) -> Network:
    """A network whose heads predict features of `teacher_dim` channels, for a teacher that has no heads."""

    def predictor() -> nn.Module:
        dim = backbone.architecture.embed_dim
        return nn.Sequential(nn.Linear(dim, config.head_hidden), nn.GELU(), nn.Linear(config.head_hidden, teacher_dim))

    return Network(backbone, predictor(), predictor())


class FeatureTeacher(nn.Module):
    """A frozen backbone whose scores are its features: K = K' = D."""

    def __init__(self, backbone: VisionTransformer) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, crops: Sequence[Tensor], masks: Tensor | None, picked: Tensor, packed: bool = True) -> Outputs:
        features = self.backbone(crops[0], masks)
        patches = features.patches.flatten(0, 1).index_select(0, picked)  # (P, D)
        return Outputs(features.cls, features.cls, features.cls[:0], patches)


@dataclass(frozen=True)
class MaskedCrops:
    """What a step needs of B images, on the device."""

    global_crops: Tensor  # (2 * B, 3, G, G), view-major
    local_crops: Tensor  # (V * B, 3, L, L), view-major
    masks: PatchMasks  # of the 2 * B global crops


@dataclass(frozen=True)
class Losses:
    """Of one batch in this process; `total` is what is minimised, the parts are before their weights."""

    total: Tensor
    dino: Tensor
    dino_global: Tensor  # mean over pairs of global views, and below over pairs of a local and a global one
    dino_local: Tensor
    ibot: Tensor
    koleo: Tensor
    student_cls: Tensor  # (2 * B, D), without gradient
    teacher_cls: Tensor  # (2 * B, D)
    targets: Tensor  # (2 * B, K), the teacher's assignments; features where it has no heads


class Centers(nn.Module):
    """The teacher's mean scores, (1, K) and (1, K'); part of a run's state."""

    def __init__(self, prototypes: int, ibot_prototypes: int) -> None:
        super().__init__()
        self.register_buffer("dino", torch.zeros(1, prototypes))
        self.register_buffer("ibot", torch.zeros(1, ibot_prototypes))
        self.dino: Tensor
        self.ibot: Tensor


def compute_losses(
    student: nn.Module,
    teacher: nn.Module,
    centers: Centers,
    batch: MaskedCrops,
    config: Config,
    *,
    temperature: float,
    autocast: Any,
) -> Losses:
    """The losses of one batch; the centers follow where targets are centred.

    student      Network, or a wrapper around it
    temperature  of the teacher
    autocast     a function that gives the context in which networks run
    """
    distils = bool(config.distill_from)
    masks, picked = batch.masks, batch.masks.picked
    with torch.no_grad(), autocast():
        teacher_out = teacher([batch.global_crops], None, picked)
    with autocast():
        # a distilled student sees everything: the mask only says which patches are scored
        crops = [batch.global_crops, batch.local_crops] if len(batch.local_crops) else [batch.global_crops]
        hidden = None if distils or not config.ibot_weight else masks.hidden
        outputs = student(crops, hidden, picked, config.packed)
    if isinstance(teacher, FeatureTeacher):
        return _feature_losses(outputs, teacher_out, masks.counted, centers, config)
    targets, patch_targets = _targets(teacher_out, masks.counted, centers, config, temperature)  # (2 * B, K), (P, K')

    views = targets.unflatten(0, (2, -1))  # (2, B, K)
    first, second = outputs.global_scores.unflatten(0, (2, -1)).split(1)  # (1, B, K) each
    local_scores = outputs.local_scores.unflatten(0, (-1, views.shape[1])) if len(batch.local_crops) else None
    num_local = 0 if local_scores is None else len(local_scores)
    pairs = 2 + 2 * num_local
    across = dino_loss(first, views[1:], config.student_temperature)
    across = across + dino_loss(second, views[:1], config.student_temperature)
    local = across.new_zeros(())
    if local_scores is not None:
        local = dino_loss(local_scores, views, config.student_temperature)
    dino = (across + local) / pairs
    ibot = ibot_loss(outputs.patch_scores, patch_targets, masks.weights, len(masks.hidden), config.student_temperature)
    koleo = _koleo(outputs, config)
    total = config.dino_weight * dino + config.koleo_weight * koleo
    if config.ibot_weight:
        total = total + config.ibot_weight * ibot
    return Losses(
        total=total,
        dino=dino.detach(),
        dino_global=across.detach() / 2,
        dino_local=local.detach() / max(2 * num_local, 1),
        ibot=ibot.detach(),
        koleo=koleo.detach(),
        student_cls=outputs.global_cls.detach().float(),
        teacher_cls=teacher_out.global_cls.float(),
        targets=targets,
    )


def _targets(
    teacher_out: Outputs, counted: Tensor | None, centers: Centers, config: Config, temperature: float
) -> tuple[Tensor, Tensor]:
    """The teacher's assignments of global crops (2 * B, K) and of picked patches (P, K')."""
    scores, patches = teacher_out.global_scores, teacher_out.patch_scores
    if config.targets == "sinkhorn":
        patch_targets = sinkhorn(patches, temperature, counted=counted) if config.ibot_weight else patches.float()
        return sinkhorn(scores, temperature), patch_targets
    targets = centred_softmax(scores, centers.dino, temperature)
    patch_targets = centred_softmax(patches, centers.ibot, temperature)
    centers.dino.copy_(moved_center(centers.dino, scores))
    centers.ibot.copy_(moved_center(centers.ibot, patches, counted=counted))
    return targets, patch_targets


def _koleo(outputs: Outputs, config: Config) -> Tensor:
    """Within each view, since two views of one image shall not be pushed apart; the sum of both."""
    if not config.koleo_weight:
        return outputs.global_cls.new_zeros((), dtype=torch.float32)
    first, second = outputs.global_cls.chunk(2)  # (B, D) each
    return koleo_loss(first) + koleo_loss(second)


def _feature_losses(
    outputs: Outputs, teacher_out: Outputs, counted: Tensor | None, centers: Centers, config: Config
) -> Losses:
    """One minus the cosine between predicted and real features, from whose mean direction both depart."""
    dino_targets, ibot_targets = teacher_out.global_scores.float(), teacher_out.patch_scores.float()
    momentum = centers.dino.any() * 0.99  # 0 at the first batch: start where the features are
    centers.dino.copy_(moved_center(centers.dino, dino_targets, momentum))
    centers.ibot.copy_(moved_center(centers.ibot, ibot_targets, momentum, counted))
    dino_targets, ibot_targets = dino_targets - centers.dino, ibot_targets - centers.ibot
    dino = (1 - F.cosine_similarity(outputs.global_scores.float(), dino_targets)).mean()
    distances = 1 - F.cosine_similarity(outputs.patch_scores.float(), ibot_targets)  # (P,)
    weights = torch.ones_like(distances) if counted is None else counted.float()
    ibot = (distances * weights).sum() / weights.sum().clamp_min(1)
    koleo = _koleo(outputs, config)
    return Losses(
        total=config.dino_weight * dino + config.ibot_weight * ibot + config.koleo_weight * koleo,
        dino=dino.detach(),
        dino_global=dino.detach(),  # both are of global crops only
        dino_local=torch.zeros_like(dino.detach()),
        ibot=ibot.detach(),
        koleo=koleo.detach(),
        student_cls=outputs.global_cls.detach().float(),
        teacher_cls=teacher_out.global_cls.float(),
        targets=dino_targets,
    )


def set_learning(network: Network, config: Config, *, backbone: bool) -> None:
    """Say which parameters learn: all, or only the heads, or of the backbone only the last blocks."""
    network.requires_grad_(True)
    vit = network.backbone
    vit.requires_grad_(backbone)
    if backbone and config.train_blocks:
        vit.requires_grad_(False)
        vit.blocks[-config.train_blocks :].requires_grad_(True)
        vit.norm.requires_grad_(True)
    if not config.ibot_weight or config.distill_from:
        vit.mask_token.requires_grad_(False)  # it is never seen, and DDP waits for every gradient


def prepare_blocks(
    backbone: VisionTransformer, *, recompute: bool, compiled: bool | None, half_residual: bool = False
) -> None:
    """Let blocks forget what they can compute again in backward, compile them, keep their tokens in half precision.

    Compiled by hand on a CPU: the losses of three steps were those of plain blocks, with and without recomputing.
    """
    backbone.half_residual = half_residual
    if compiled:
        prepare_to_compile()
    for block in backbone.blocks:
        if recompute:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if compiled:
            # a run has few layouts, and each has its code: sizes that may vary would make all of it slower
            block.compile(dynamic=False)
