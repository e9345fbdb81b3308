"""Targets of the teacher and losses of the student, as pure functions; sums run over all processes.

V, T views of the student and of the teacher, B images, K prototypes, M masked patches, D channels, W processes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .distributed import gather_rows, max_over_processes, sum_over_processes


@torch.no_grad()
def sinkhorn(scores: Tensor, temperature: float, iterations: int = 3, counted: Tensor | None = None) -> Tensor:
    """Soft assignments of samples to prototypes that use every prototype alike (Caron et al. 2020, section 3.1).

    scores   (B, K)  this process's samples; processes may have different numbers of them
    counted  (B,) bool  samples that take part; None: all. Somewhere one must
    returns  (B, K) float32, each row sums to 1; rows that do not count are 0

    q = exp(scores / temperature); then in turns each column is made to sum to 1/K over the samples of all processes,
    and each row to 1/B

    Only a factor for each row and one for each column change, so the exponentials are taken once. They are taken
    relative to the largest score of each column, and then of each row, which leaves a 1 in every column and every row:
    whatever the range of the scores, none of them can become empty, and nothing has to ask the device for that range.
    """
    q = scores.to(torch.float32, copy=True).div_(temperature)  # (B, K), changed in place from here on
    if counted is not None:
        q.masked_fill_(~counted[:, None], -torch.inf)
    q.sub_(_largest_of_columns(q))
    highest = q.amax(1)  # (B,)
    if counted is not None:
        highest.masked_fill_(~counted, 0.0)
    q.sub_(highest[:, None]).exp_()
    rows = highest.exp_()  # (B,), undoes the shift of the rows
    columns = q.new_ones(q.shape[1])
    for _ in range(iterations):
        columns = sum_over_processes(rows @ q).reciprocal_()  # (K,)
        rows = (q @ columns).clamp_min_(torch.finfo(q.dtype).tiny).reciprocal_()  # (B,)
    return q.mul_(columns).mul_(rows[:, None])


def _largest_of_columns(values: Tensor) -> Tensor:
    """(B, K) of each process -> (K,), the same in all of them."""
    own = values.amax(0) if len(values) else values.new_full((values.shape[1],), -torch.inf)
    return max_over_processes(own)


@torch.no_grad()
def centred_softmax(scores: Tensor, center: Tensor, temperature: float) -> Tensor:
    """Soft assignments after the prototypes' mean scores are taken out (Caron et al. 2021, equation 4).

    scores (B, K), center (1, K) -> (B, K) float32
    """
    return torch.softmax((scores.float() - center) / temperature, dim=-1)


@torch.no_grad()
def moved_center(
    center: Tensor, scores: Tensor, momentum: float | Tensor = 0.9, counted: Tensor | None = None
) -> Tensor:
    """The center after it has followed this batch's mean over all processes.  (1, K)

    counted  (B,) bool  rows of scores (B, K) that belong to the batch; None: all
    """
    weights = scores.new_ones(len(scores), dtype=torch.float32) if counted is None else counted.float()
    total = sum_over_processes(weights @ scores.float())[None]  # (1, K)
    count = sum_over_processes(weights.sum())
    return center * momentum + total / count.clamp_min(1) * (1 - momentum)


CHUNK_NUMBERS = 1 << 24  # scores whose float32 copies are in memory together in a cross-entropy: 64 MB each


def cross_entropy(scores: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Of each sample, in float32 and a few samples at a time; targets sum to 1 and have no gradient.

    scores, targets  (B, K)
    returns          (B,)

    -sum_k targets[k] log softmax(scores / temperature)[k]

    Written out, there would be up to five float32 copies of all scores at a time, on the way back and forth: for 600
    patches and 131,072 prototypes 1.5 GB beside the scores, where this takes 0.3. Only scores and targets are kept.
    """
    return _CrossEntropy.apply(scores, targets, temperature)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, targets: Tensor, temperature: float) -> Tensor:
        losses, logs = [], []
        rows = max(1, CHUNK_NUMBERS // scores.shape[1])
        for part, target in zip(scores.split(rows), targets.split(rows), strict=True):
            part = part.float() / temperature  # (b, K)
            logs.append(part.logsumexp(1))
            losses.append(logs[-1] - torch.linalg.vecdot(target, part))
        ctx.save_for_backward(scores, targets, torch.cat(logs))
        ctx.temperature, ctx.rows = temperature, rows
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """d loss / d score = (softmax(scores / temperature) - targets) / temperature"""
        scores, targets, logs = ctx.saved_tensors
        found = torch.empty_like(scores)
        parts = (tensor.split(ctx.rows) for tensor in (found, scores, targets, logs, gradients[0] / ctx.temperature))
        for out, part, target, log, gradient in zip(*parts, strict=True):
            softmax = (part.float() / ctx.temperature).sub_(log[:, None]).exp_()  # (b, K)
            out.copy_(softmax.sub_(target).mul_(gradient[:, None]))
        return found, None, None


def dino_loss(student: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Every view of the student against every view of the teacher: the sum over pairs of the mean over images.

    student  (V, B, K)  scores
    targets  (T, B, K)  assignments
    returns  scalar

    sum_v sum_t mean_b cross_entropy(student[v, b], targets[t, b])
    """
    views = len(targets)
    mean_target = targets[0] if views == 1 else targets.mean(0)  # (B, K); cross-entropy is linear in its target
    per_view = [cross_entropy(view, mean_target, temperature).mean() for view in student]
    return views * torch.stack(per_view).sum()


def ibot_loss(student: Tensor, targets: Tensor, weights: Tensor, num_crops: int, temperature: float) -> Tensor:
    """Masked patches against what the teacher, who sees them, says: the mean over crops of each crop's mean.

    student, targets  (M, K)  the masked patches of all crops behind each other
    weights           (M,)    one over the number of masked patches in the patch's crop
    num_crops                 crops, with or without a mask
    returns           scalar
    """
    return (cross_entropy(student, targets, temperature) * weights).sum() / num_crops


def koleo_loss(embeddings: Tensor, eps: float = 1e-8) -> Tensor:
    """Minus the mean log distance to the nearest neighbour: spreads embeddings out (Sablayrolles et al. 2019).

    embeddings  (B, D)  neighbours are looked for among all processes' images, so that a run does not depend on how
                        many there are; the reference looks among those of one process
    returns     scalar, the same in every process
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        points = F.normalize(gather_rows(embeddings.float()), dim=-1, eps=eps)  # (W * B, D)
        if len(points) < 2:
            return points.sum() * 0  # nobody is near
        with torch.no_grad():
            similarity = points @ points.T  # (W * B, W * B)
            nearest = similarity.fill_diagonal_(-1).argmax(1)  # (W * B,)
        distances = F.pairwise_distance(points, points.index_select(0, nearest), eps=eps)  # (W * B,)
        return -torch.log(distances + eps).mean()
