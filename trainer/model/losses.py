"""Targets of the teacher and losses of the student, as pure functions; sums run over all processes.

V, T views of the student and of the teacher, B images, K prototypes, M masked patches, D channels, W processes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .distributed import gather_rows, max_over_processes, sum_over_processes

# exp(-60) is 1e-26, which leaves float32 room for products with both factors; scores of unit vectors at the
# temperature .04 lie at most 50 apart
WIDEST_RANGE = 60.0


@torch.no_grad()
def sinkhorn(scores: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Soft assignments of samples to prototypes that use every prototype alike (Caron et al. 2020, section 3.1).

    scores   (B, K)  this process's samples; processes may have different numbers of them
    returns  (B, K) float32, each row sums to 1

    q = exp(scores / temperature); then in turns each column is made to sum to 1/K over the samples of all processes,
    and each row to 1/B

    Only a factor for each row and one for each column change, so that the exponentials are taken once. Where scores
    lie so far apart that some of these would be 0, all is done in logarithms, several times as slow: neither a row nor
    a column can become empty.
    """
    scores = scores.float() / temperature
    if not iterations:
        return torch.softmax(scores, 1)
    outermost = scores.new_full((2,), -torch.inf)  # of a process without samples
    if scores.numel():
        lowest, highest = scores.aminmax()
        outermost = torch.stack([highest, -lowest])
    highest, minus_lowest = max_over_processes(outermost)
    if highest + minus_lowest <= WIDEST_RANGE:
        return _scaled_by_factors(scores - highest, iterations)
    rows = scores.new_zeros(len(scores), 1)  # logarithms of the rows' factors; sizes that all share cancel
    for _ in range(iterations):
        columns = -_logsumexp_over_processes(scores + rows)  # (1, K)
        rows = -torch.logsumexp(scores + columns, 1, keepdim=True)  # (B, 1)
    return torch.exp(scores + columns + rows)


def _scaled_by_factors(scores: Tensor, iterations: int) -> Tensor:
    """Sinkhorn by the factors themselves; scores (B, K) from -WIDEST_RANGE to 0, which are overwritten."""
    q = scores.exp_()  # (B, K)
    rows = q.new_ones(len(q))
    for _ in range(iterations):
        columns = sum_over_processes(rows @ q).reciprocal()  # (K,)
        rows = (q @ columns).reciprocal()  # (B,)
    return q.mul_(columns).mul_(rows[:, None])


def _logsumexp_over_processes(values: Tensor) -> Tensor:
    """Log of the sum of exponentials over the rows of all processes.  (B, K) -> (1, K)"""
    lowest = values.new_full((1, values.shape[1]), -torch.inf)  # for a process without samples, where others have some
    highest = values.amax(0, keepdim=True) if len(values) else lowest  # (1, K)
    highest = max_over_processes(highest)
    total = sum_over_processes(torch.exp(values - highest).sum(0, keepdim=True))
    # without a sample anywhere nobody asks for the columns
    return torch.log(total) + highest


@torch.no_grad()
def centred_softmax(scores: Tensor, center: Tensor, temperature: float) -> Tensor:
    """Soft assignments after the prototypes' mean scores are taken out (Caron et al. 2021, equation 4).

    scores (B, K), center (1, K) -> (B, K) float32
    """
    return torch.softmax((scores.float() - center) / temperature, dim=-1)


@torch.no_grad()
def moved_center(center: Tensor, scores: Tensor, momentum: float = 0.9) -> Tensor:
    """The center after it has followed this batch's mean over all processes.  (1, K)"""
    total = sum_over_processes(scores.float().sum(0, keepdim=True))  # (1, K)
    count = sum_over_processes(torch.tensor(float(len(scores)), device=scores.device))
    return center * momentum + total / count.clamp_min(1) * (1 - momentum)


def cross_entropy(scores: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Of each sample, in float32; targets sum to 1.

    scores, targets  (..., K)
    returns          (...,)

    -sum_k targets[k] log softmax(scores / temperature)[k]
    """
    scores = scores.float() / temperature
    return torch.logsumexp(scores, -1) - (targets * scores).sum(-1)


def dino_loss(student: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Every view of the student against every view of the teacher: the sum over pairs of the mean over images.

    student  (V, B, K)  scores
    targets  (T, B, K)  assignments
    returns  scalar

    sum_v sum_t mean_b cross_entropy(student[v, b], targets[t, b])
    """
    views = len(targets)
    mean_target = targets.mean(0)  # (B, K); cross-entropy is linear in its target
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
        distances = F.pairwise_distance(points, points[nearest], eps=eps)  # (W * B,)
        return -torch.log(distances + eps).mean()


def mask_weights(masks: Tensor, masked: Tensor) -> Tensor:
    """For each masked patch one over the number of them in its crop.

    masks    (C, N) bool
    masked   (M,) int64  places of the masked patches in C * N
    returns  (M,)
    """
    share = 1 / masks.sum(1).clamp_min(1)  # (C,)
    return share[masked // masks.shape[1]]
