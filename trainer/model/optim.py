"""Who learns how fast and when: schedules as functions of the step, and the parameters' own factors."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..config import Config
from .distributed import full_tensor, local_tensor


def cosine(
    step: int, total: int, start: float, end: float, *, warmup: int = 0, warmup_from: float = 0.0, frozen: int = 0
) -> float:
    """0 for `frozen` steps, a straight line from `warmup_from` to `start`, then half a cosine to `end`."""
    if step < frozen:
        return 0.0
    step -= frozen
    if step < warmup:
        return warmup_from + (start - warmup_from) * step / max(warmup - 1, 1)
    length = total - frozen - warmup
    if step - warmup >= length:
        return end
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * (step - warmup) / length))


@dataclass(frozen=True)
class ScheduleValues:
    """What the schedules say at one step."""

    rate: float  # of the heads
    backbone_rate: float
    prototype_rate: float  # of the heads' last layers
    weight_decay: float
    momentum: float  # of the teacher
    teacher_temperature: float


def pace_at(config: Config, step: int) -> ScheduleValues:
    """What holds at a step; the stage of high resolution has all schedules once more, in its own steps."""
    start = config.high_res_start
    if step < start:
        return _pace_within(replace(config, steps=start, high_res_share=0.0), step)
    stage = replace(
        config,
        steps=config.steps - start,
        high_res_share=0.0,
        rate=config.rate * config.high_res_rate,
        freeze_backbone=0.0,
    )
    return _pace_within(stage, step - start)


def _pace_within(config: Config, step: int) -> ScheduleValues:
    total = config.steps
    warmup, frozen = round(config.warmup * total), frozen_steps(config)
    heating = round(config.teacher_temperature_warmup * total)
    rate = cosine(step, total, config.scaled_rate, config.rate_end, warmup=warmup)
    late = min(warmup, total - frozen)
    rate *= config.head_rate
    return ScheduleValues(
        rate=rate,
        backbone_rate=cosine(step, total, config.scaled_rate, config.rate_end, warmup=late, frozen=frozen),
        prototype_rate=0.0 if step < round(config.freeze_last_layer * total) else rate,
        weight_decay=cosine(step, total, config.weight_decay, config.weight_decay_end),
        momentum=cosine(step, total, config.momentum, config.momentum_end),
        teacher_temperature=cosine(
            step,
            heating,
            config.teacher_temperature,
            config.teacher_temperature,
            warmup=heating,
            warmup_from=config.teacher_temperature_start,
        ),
    )


def frozen_steps(config: Config) -> int:
    """How many steps, from the first on, only the heads learn."""
    return round(config.freeze_backbone * config.high_res_start)


@dataclass(frozen=True)
class Factors:
    """How one parameter departs from the schedules."""

    rate: float
    weight_decay: float
    is_prototype: bool


def factors_of(name: str, depth: int, layer_decay: float, patch_embed_rate: float) -> Factors:
    """The factors of a parameter of the backbone, or with depth 0 of a head, by its name.

    The rate falls by `layer_decay` from the last block to the first and once more to the embeddings; biases, norms and
    LayerScale have no weight decay.
    """
    block = re.match(r"blocks\.(\d+)\.", name)
    embedding = name.startswith(("pos_embed", "patch_embed", "mask_token", "cls_token", "register_tokens"))
    layer = int(block[1]) + 1 if block else 0 if embedding else depth + 1
    return Factors(
        rate=layer_decay ** (depth + 1 - layer if depth else 0) * (patch_embed_rate if "patch_embed" in name else 1),
        weight_decay=0.0 if name.endswith(".bias") or "norm" in name or "gamma" in name else 1.0,
        is_prototype="last_layer" in name,
    )


def make_optimiser(network: nn.Module, depth: int, config: Config) -> torch.optim.AdamW:
    """AdamW over a network of `backbone`, `dino_head` and perhaps `ibot_head`; alike parameters share a group.

    It is torch's fused one, which reads and writes each number once, and can be told to skip an update by a number on
    the device.
    """
    groups: dict[tuple[bool, Factors], list[nn.Parameter]] = defaultdict(list)
    for full_name, parameter in network.named_parameters():
        part, name = full_name.split(".", 1)
        in_backbone = part == "backbone"
        factors = factors_of(name, depth if in_backbone else 0, config.layer_decay, config.patch_embed_rate)
        groups[in_backbone, factors].append(parameter)
    return torch.optim.AdamW(
        [{"params": parameters, "in_backbone": b, "factors": f} for (b, f), parameters in groups.items()],
        lr=0.0,
        betas=(config.beta1, config.beta2),
        fused=True,
    )


def set_pace(optimiser: torch.optim.Optimizer, pace: ScheduleValues) -> None:
    for group in optimiser.param_groups:
        factors: Factors = group["factors"]
        rate = pace.backbone_rate if group["in_backbone"] else pace.rate
        group["lr"] = (pace.prototype_rate if factors.is_prototype else rate) * factors.rate
        group["weight_decay"] = pace.weight_decay * factors.weight_decay


def clip_gradients(parts: Iterable[nn.Module], largest: float) -> Tensor:
    """Shorten each part's gradient to the norm `largest` (0: leave it).

    returns  () the largest norm there was, on the device
    """
    norms = []
    for part in parts:
        parameters = [parameter for parameter in part.parameters() if parameter.grad is not None]
        if parameters:
            norm = nn.utils.clip_grad_norm_(parameters, largest if largest else math.inf)
            norms.append(full_tensor(norm))
    return torch.stack(norms).max() if norms else torch.zeros(())


def update_if_finite(optimiser: torch.optim.Optimizer, norm: Tensor) -> None:
    """An update of a fused optimiser, which skips it on the device where the gradients' norm is infinite or no number.

    Asking for the norm here would let the device run dry before the update is queued.
    """
    optimiser.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]  # as torch's GradScaler tells it
    optimiser.step()
    del optimiser.found_inf  # type: ignore[attr-defined]


@torch.no_grad()
def update_ema(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """The teacher's weights move by 1 - momentum of the way towards the student's."""
    slow = [local_tensor(parameter) for parameter in teacher.parameters()]
    fast = [local_tensor(parameter) for parameter in student.parameters()]
    moving: list[tuple[Tensor, Tensor]] = [(s, f) for s, f in zip(slow, fast, strict=True) if s.numel()]
    slow, fast = [s for s, _ in moving], [f for _, f in moving]
    torch._foreach_lerp_(slow, fast, 1 - momentum)
