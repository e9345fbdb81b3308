"""Geometric verification: which pairs of patches of two images are consistent with one transform, the inliers.

Patches of a query and of a candidate are paired where each is the other's nearest. Chance pairs point anywhere; those
of one thing are all carried from the query to the candidate by one shift, turn and change of size. Two pairs fix such
a similarity transform, so every combination of the strongest pairs is tried, and the one that carries most of the
others wins: RANSAC (Fischler and Bolles, 1981) without the dice, for there are few enough to go through them all. An
affine transform fitted to the inliers then gathers the pairs that perspective had bent away.

Plain tensor arithmetic: nothing here knows of stores or images.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# B candidates, N query patches, M candidate patches (zero-padded), D numbers a token, K pairs and H transforms tried

# Where nothing else is said, none of these was tuned; all patches of an image in place of 64 are no better.
FLOOR = 0.15  # cosine of whitened patches from which on a pair is worth anything
PAIRS = 24  # strongest pairs of a candidate that are tried
ANCHORS = 8  # of which one of the two that fix a transform must be
TOLERANCE = 1.5  # how far from its place a pair may land, in patches of the candidate
ELSEWHERE = 2.6  # patches; a thing's neighbour is still much like it
LARGEST_ZOOM = 4.0  # by which the thing may be larger or smaller in the candidate
APART = 1.5  # patches that lie closer together fix no turn


@dataclass(frozen=True, eq=False)
class Pairs:
    """Mutual nearest neighbours of B candidates' patches among a query's.

    cosine   (B, M)  float32, of each candidate patch with its nearest in the query; 0 where that is not mutual
    nearest  (B, M)  int64, index of it among the query's patches
    """

    cosine: Tensor
    nearest: Tensor


@dataclass(frozen=True, eq=False)
class Inliers:
    """The transform that most pairs of each candidate are consistent with.

    weight     (B,)       sum of the inliers' cosines above FLOOR
    total      (B,)       likewise of all mutual pairs
    is_inlier  (B, M)     True for the candidate's patches whose pair is consistent with it
    transform  (B, 2, 3)  float32, affine: candidate position = transform @ (x, y, 1) of the query, in patches
    """

    weight: Tensor
    total: Tensor
    is_inlier: Tensor
    transform: Tensor


def mutual_pairs(query: Tensor, gallery: Tensor, mask: Tensor) -> Pairs:
    """Pair each candidate's patches with the query's.

    query    (N, D)     L2-normalised
    gallery  (B, M, D)  L2-normalised, zero-padded
    mask     (B, M)     True where the patch is real
    Both in float32, or in bfloat16, which costs a cosine its third digit.

    for b, m: nearest[b, m] = argmax_n query[n] . gallery[b, m]; mutual where m is in turn the best for that n
    """
    return mutual_of(gallery @ query.T, mask)


def mutual_of(similarity: Tensor, mask: Tensor) -> Pairs:
    """`mutual_pairs` of cosines that are at hand.

    similarity  (B, M, N)  of each candidate patch with each of the query's; rows of padding are overwritten
    mask        (B, M)     True where the patch is real
    """
    if not mask.all():
        similarity.masked_fill_(~mask[..., None], -2.0)
    cosine, nearest = similarity.max(2)  # (B, M)
    best_of_query = similarity.amax(1)  # (B, N)
    mutual = cosine >= best_of_query.gather(1, nearest)
    return Pairs(torch.where(mutual & mask, cosine.float(), 0.0), nearest)


def find_inliers(pairs: Pairs, query_at: Tensor, gallery_at: Tensor) -> Inliers:
    """The similarity transform that carries most pairs of each candidate to their places, made affine.

    query_at    (N, 2)     x, y of the query's patches, in patches
    gallery_at  (B, M, 2)  likewise of the candidates'

    for b: over all transforms T that two of the strongest pairs fix, the largest sum of (cosine - FLOOR) over the
    pairs m with |T query_at[nearest[m]] - gallery_at[m]| < TOLERANCE
    """
    return agreement_of(pairs.cosine, query_at[pairs.nearest], gallery_at)


def agreement_of(cosine: Tensor, start_all: Tensor, end_all: Tensor) -> Inliers:
    """`find_inliers` for pairs that each have a start in a query of their own.

    cosine     (B, M)     of the pairs; 0 where there is none
    start_all  (B, M, 2)  x, y of each pair's query patch, in patches
    end_all    (B, M, 2)  x, y of its candidate patch
    """
    all_weights = (cosine - FLOOR).clamp(min=0)  # (B, M)
    weight, strongest = all_weights.topk(min(PAIRS, all_weights.shape[1]), dim=1)  # (B, K)
    at = strongest[..., None].expand(-1, -1, 2)
    start, end = start_all.gather(1, at), end_all.gather(1, at)  # (B, K, 2)
    transforms = _transforms_of_two(start, end, weight)  # (B, H, 2, 3)

    landed = _squared_miss(transforms, start, end) < _squared_tolerance(transforms)[..., None]  # (B, H, K)
    best = (landed * weight[:, None]).sum(2).argmax(1)  # (B,)
    transform = transforms[torch.arange(len(best)), best]  # (B, 2, 3)

    real = all_weights > 0
    is_inlier = _lands(transform, start_all, end_all) & real  # (B, M)
    refined = _affine(start_all, end_all, is_inlier * all_weights, transform)
    is_inlier_refined = _lands(refined, start_all, end_all) & real
    plain, affine = (is_inlier * all_weights).sum(1), (is_inlier_refined * all_weights).sum(1)  # (B,)
    better = affine > plain
    return Inliers(
        torch.where(better, affine, plain),
        all_weights.sum(1),
        torch.where(better[:, None], is_inlier_refined, is_inlier),
        torch.where(better[:, None, None], refined, transform),
    )


def far_apart(query_at: Tensor) -> Tensor:
    """Which of a query's patches (N, 2) lie farther than ELSEWHERE from each of them.  (N, N) bool"""
    return torch.cdist(query_at, query_at) > ELSEWHERE


def distinctiveness_of(is_inlier: Tensor, pairs: Pairs, similarity: Tensor, apart: Tensor) -> Tensor:
    """How far the inliers stand out from what else they might have been paired with.  (B,) float32

    is_inlier   (B, M)     True for the candidate's patches whose pair is an inlier
    similarity  (B, M, N)  cosine of each candidate patch with each of the query's
    apart       (N, N)     see `far_apart`

    A patch of lawn is as like any other patch of the lawn; where two lawns are consistent with a transform it is by
    chance, or because features know a little of their place in the image. What shows the same spot is like that spot
    alone (the ratio test of Lowe, 2004, as a difference):

        sum over inliers m of  cosine[b, m] - max(0, max over n of similarity[b, m, n])

    where n lies farther than ELSEWHERE from m's partner; a negative term counts 0.
    """
    candidate, patch = is_inlier.nonzero(as_tuple=True)  # (P,)
    paired = pairs.nearest[candidate, patch]  # (P,)
    elsewhere = similarity[candidate, patch].masked_fill_(~apart[paired], 0).amax(1).clamp(min=0).float()  # (P,)
    margin = (pairs.cosine[candidate, patch] - elsewhere).clamp(min=0)
    return torch.zeros(len(is_inlier)).index_add_(0, candidate, margin)


def _transforms_of_two(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """Every similarity transform (B, H, 2, 3) that two pairs fix; zeros where two fix none, and first of all.

    As complex numbers z -> a z + b with a = (end_j - end_i) / (start_j - start_i).
    """
    count = start.shape[1]
    first, second = torch.triu_indices(min(ANCHORS, count), count, 1)
    pairs = torch.cat([start, end, weight[..., None]], -1)  # (B, K, 5)
    one, other = pairs.index_select(1, first), pairs.index_select(1, second)  # (B, H, 5)
    x, y, to_x, to_y, _ = (other - one).unbind(-1)  # (B, H)
    square, to_square = x * x + y * y, to_x * to_x + to_y * to_y
    fixed = (square > APART**2) & (to_square > APART**2) & (one[..., 4] > 0) & (other[..., 4] > 0)
    fixed &= (to_square < LARGEST_ZOOM**2 * square) & (square < LARGEST_ZOOM**2 * to_square)
    share = fixed / square.clamp(min=1e-6)
    real, imaginary = (x * to_x + y * to_y) * share, (x * to_y - y * to_x) * share
    at_x, at_y, lands_x, lands_y, _ = one.unbind(-1)
    shift_x = lands_x * fixed - real * at_x + imaginary * at_y
    shift_y = lands_y * fixed - imaginary * at_x - real * at_y
    transforms = torch.stack([real, -imaginary, shift_x, imaginary, real, shift_y], -1).unflatten(-1, (2, 3))
    return torch.cat([transforms.new_zeros(len(start), 1, 2, 3), transforms], 1)  # one at least


def _squared_miss(transforms: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """How far from its end each start lands, squared, (B, H, K)."""
    points = torch.cat([start, torch.ones_like(start[..., :1])], -1).mT  # (B, 3, K)
    x = (transforms[..., 0, :] @ points).sub_(end[:, None, :, 0])  # (B, H, K)
    y = (transforms[..., 1, :] @ points).sub_(end[:, None, :, 1])
    return x.square_().add_(y.square_())


def _squared_tolerance(transforms: Tensor) -> Tensor:
    """How far a pair may miss, squared; where the candidate shows the thing larger, a query patch is a larger spot.

    Below 0 for a transform that is none, and for one that mirrors.
    """
    area = _area(transforms)
    return torch.where(area > 0, TOLERANCE**2 * area.clamp(min=1), -1.0)


def _area(transforms: Tensor) -> Tensor:
    """By how much a transform enlarges areas."""
    return transforms[..., 0, 0] * transforms[..., 1, 1] - transforms[..., 0, 1] * transforms[..., 1, 0]


def _lands(transform: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Which starts (B, M) land near their ends under one transform (B, 2, 3) for each candidate."""
    one = transform[:, None]
    return _squared_miss(one, start, end)[:, 0] < _squared_tolerance(one)


def _affine(start: Tensor, end: Tensor, weight: Tensor, otherwise: Tensor) -> Tensor:
    """The affine transform (B, 2, 3) of least weighted squares; `otherwise` where the points do not fix one."""
    points = torch.cat([start, torch.ones_like(start[..., :1])], -1)  # (B, N, 3)
    weighted = points * weight[..., None]
    normal = weighted.mT @ points + 1e-3 * torch.eye(3)  # (B, 3, 3)
    solved = torch.linalg.solve(normal, weighted.mT @ end + 1e-3 * otherwise.mT)  # (B, 3, 2), drawn to `otherwise`
    refined = solved.mT
    area, before = _area(refined), _area(otherwise)
    sane = (weight > 0).sum(1).ge(4) & (area > before / 2) & (area < before * 2)
    return torch.where(sane[:, None, None], refined, otherwise)
