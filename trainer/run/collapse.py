"""Watches a run for collapse: a network that outputs the same for every image, while its loss may look fine.

Signs are measured every few steps over the last images: how many directions the embeddings fill, how far they lie
apart, how sharp and how varied the teacher's assignments are, and whether student and teacher assign more alike on one
image than on two. A network that starts from random weights outputs nearly the same for every image, too, and may need
thousands of steps to leave that state, so it is the fall from what was reached that counts. One bad check is nothing;
several in a row stop the run with a sentence on what to change.
"""

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from indexer.errors import SeenitError

LOOK_EVERY = 10  # steps
PATIENCE = 5  # bad checks in a row
MEMORY = 256  # embeddings
NAN_PATIENCE = 3  # steps in a row; loss scaling of float16 probes its limit in more of them
NAN_PATIENCE_FLOAT16 = 20

ENOUGH = 32  # embeddings, before anything is judged
LARGEST_FALL = 0.1  # of the spread, and of the rank in excess of 1, from the highest so far
LOW_SPREAD = 0.1  # above this no fall is a collapse
LOW_RANK = 4.0
LOWEST_USAGE = 0.1
LATE = 0.5  # share of the run after which a spread below LEAST_SPREAD means that nothing was learnt
LEAST_SPREAD = 1e-3


class CollapseError(SeenitError):
    """Training was stopped because the network collapses or diverges."""


@dataclass(frozen=True)
class CollapseSigns:
    """What one check measured."""

    effective_rank: float  # directions that the embeddings fill, 1 to min(D, MEMORY)
    spread: float  # one minus the squared length of the mean unit embedding, 0 where all are one
    target_entropy: float  # of the teacher's assignments over its largest value; 1: it says nothing of any image
    usage: float  # entropy of the mean assignment over its largest value; 0: one prototype for everything
    agreement: float  # cosine of student and teacher on two views of an image; of a distilled student with itself
    contrast: float  # that, less the cosine on two images

    def as_metrics(self) -> dict[str, float]:
        return {name: round(value, 6) for name, value in asdict(self).items() if math.isfinite(value)}


class CollapseMonitor:
    """The memory of a run's last embeddings and assignments; a part of its snapshots."""

    def __init__(self, steps: int, patience: int = PATIENCE, *, float16: bool = False) -> None:
        self.steps = steps
        self.patience = patience
        self.nan_patience = NAN_PATIENCE_FLOAT16 if float16 else NAN_PATIENCE
        self.embeddings = torch.empty(0)  # (<= MEMORY, D), of the teacher, or of a distilled student
        self.mean_target = torch.empty(0)  # (K,)
        self.highest_spread = 0.0
        self.highest_rank = 1.0
        self.bad_looks = 0
        self.nan_steps = 0

    def state(self) -> dict[str, float]:
        return {
            "highest_spread": self.highest_spread,
            "highest_rank": self.highest_rank,
            "bad_looks": self.bad_looks,
            "nan_steps": self.nan_steps,
        }

    def tensors(self) -> dict[str, Tensor]:
        return {"watch.embeddings": self.embeddings, "watch.mean_target": self.mean_target}

    def restore(self, state: dict[str, float], tensors: dict[str, Tensor]) -> None:
        self.bad_looks, self.nan_steps = int(state["bad_looks"]), int(state["nan_steps"])
        self.highest_spread, self.highest_rank = float(state["highest_spread"]), float(state["highest_rank"])
        self.embeddings = tensors["watch.embeddings"].clone()
        self.mean_target = tensors["watch.mean_target"].clone()

    def remember(self, watched_cls: Tensor, targets: Tensor | None) -> None:
        """Take in a batch: watched_cls (2 * B, D), targets (2 * B, K) where there are any."""
        first = watched_cls[: len(watched_cls) // 2].float()
        known = self.embeddings.reshape(-1, first.shape[1]).to(first.device)
        self.embeddings = torch.cat([known, first])[-MEMORY:]
        if targets is None:
            return
        mean = targets.float().mean(0)
        known = self.mean_target.to(mean.device)
        self.mean_target = mean if known.shape != mean.shape else torch.lerp(known, mean, 0.05)

    def measure(self, student_cls: Tensor, watched_cls: Tensor, targets: Tensor | None) -> CollapseSigns:
        """Measure; student_cls and watched_cls (2 * B, D), targets (2 * B, K) of the last batch.

        watched_cls  the teacher's; the student's own where it is distilled. One that follows features has no targets,
                     and no numbers on them.
        """
        unit = F.normalize(self.embeddings, dim=1)
        mine, theirs = F.normalize(student_cls.float(), dim=1), F.normalize(watched_cls.float(), dim=1)
        crossed = theirs.roll(len(theirs) // 2, 0)  # the other view of the same image
        numbers = [
            1 - unit.mean(0).square().sum(),
            (mine * crossed).sum(1).mean(),
            (mine * crossed.roll(1, 0)).sum(1).mean(),  # of the image before
        ]
        if targets is not None:
            numbers += [
                torch.special.entr(targets.float()).sum(1).mean(),
                torch.special.entr(self.mean_target).sum(),
            ]
        spread, same, other, *entropies = torch.stack(numbers).tolist()  # one wait for the device
        entropy = usage = math.nan
        if targets is not None:
            entropy = entropies[0] / math.log(max(targets.shape[1], 2))
            # few images with sharp assignments cannot use many prototypes, so usage is held against their number
            most = math.log(max(2, min(len(self.mean_target), len(self.embeddings))))
            usage = min(1.0, entropies[1] / most)
        return CollapseSigns(
            effective_rank=effective_rank(self.embeddings),
            spread=spread,
            target_entropy=entropy,
            usage=usage,
            agreement=same,
            contrast=same - other,
        )

    def judge(self, step: int, signs: CollapseSigns) -> str | None:
        """Count a check; the reason where the run must stop."""
        if len(self.embeddings) < ENOUGH:
            return None
        self.highest_spread = max(self.highest_spread, signs.spread)
        self.highest_rank = max(self.highest_rank, signs.effective_rank)
        complaint = self._complaint(step, signs)
        self.bad_looks = self.bad_looks + 1 if complaint else 0
        if complaint is None or self.bad_looks < self.patience:
            return None
        return f"stopped at step {step}: {complaint}"

    def _complaint(self, step: int, signs: CollapseSigns) -> str | None:
        if signs.spread < min(LARGEST_FALL * self.highest_spread, LOW_SPREAD):
            return (
                f"the embeddings of all images are becoming one (spread {signs.spread:.4f}, it was"
                f" {self.highest_spread:.2f}); lower rate, raise koleo_weight, or use targets=sinkhorn"
            )
        if signs.effective_rank - 1 < LARGEST_FALL * (self.highest_rank - 1) and signs.effective_rank < LOW_RANK:
            return (
                f"the embeddings fill only {signs.effective_rank:.1f} directions (it was {self.highest_rank:.1f});"
                " lower rate, or raise koleo_weight or batch_size"
            )
        if signs.usage < LOWEST_USAGE:
            return (
                f"the teacher assigns every image to the same prototype (usage {signs.usage:.3f} of 1);"
                " use targets=sinkhorn, or raise teacher_temperature"
            )
        if step > LATE * self.steps and signs.spread < LEAST_SPREAD:
            return (
                f"after {step} of {self.steps} steps the embeddings of all images are still one (spread"
                f" {signs.spread:.1e}); raise rate or layerscale, or start from a trained backbone"
            )
        return None

    def judge_numbers(self, step: int, finite: bool) -> str | None:
        """Count steps whose gradients are infinite or no numbers, in a row."""
        self.nan_steps = 0 if finite else self.nan_steps + 1
        if self.nan_steps < self.nan_patience:
            return None
        return (
            f"stopped at step {step}: gradients were no finite numbers {self.nan_steps} steps in a row;"
            " lower rate, or set precision to bfloat16 or float32"
        )


def effective_rank(embeddings: Tensor) -> float:
    """How many directions the embeddings fill: the exponential of the entropy of their variance (Roy, Vetterli 2007).

    embeddings  (M, D)
    returns     1 (all on a line) to min(M - 1, D); 1 where they are all one
    """
    centred = embeddings.cpu().double()  # not every accelerator has these numbers
    centred = centred - centred.mean(0)
    gram = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
    variance = torch.linalg.eigvalsh(gram).clamp_min(0)
    total = variance.sum()
    if total <= 0:
        return 1.0
    return float(torch.special.entr(variance / total).sum().exp())
