"""Geometric verification: which pairs of patches of two images are consistent with one transform, the inliers.

Patches of a query and of a candidate are paired where each is the other's nearest. Chance pairs point anywhere; those
of one thing are all carried from the query to the candidate by one shift, turn and change of size. Two pairs fix such
a similarity transform, so every combination of the strongest pairs is tried, and the one that carries most of the
others wins: RANSAC (Fischler and Bolles, 1981) without the dice, for there are few enough to go through them all. An
affine transform fitted to the inliers then gathers the pairs that perspective had bent away.

Plain tensor arithmetic: nothing here knows of stores or images.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

# B candidates, V views of a query, N patches of one, M candidate patches (zero-padded), D numbers a token, K pairs and
# H transforms tried

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
    """Mutual nearest neighbours of B candidates' patches among a query's; of several views each is (V, B, M).

    cosine   (B, M)  float32, of each candidate patch with its nearest in the query; 0 where that is not mutual, or
                     where none is above 0
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


def mutual_pairs(query: Tensor, gallery: Tensor) -> Pairs:
    """Pair each candidate's patches with the query's.

    query    (N, D)     float32, L2-normalised; or (B, N, D), one for each candidate
    gallery  (B, M, D)  float32, L2-normalised, zero-padded

    for b, m: nearest[b, m] = argmax_n query[n] . gallery[b, m]; mutual where m is in turn the best for that n
    """
    pairs = mutual_of((gallery @ query.mT)[:, :, None])
    return Pairs(pairs.cosine[0], pairs.nearest[0])


def mutual_of(similarity: Tensor, *, overwrite: bool = False) -> Pairs:
    """`mutual_pairs` of cosines that are at hand, with each of several views; Pairs are (V, B, M).

    similarity  (B, M, V, N)  float32, of each candidate patch with each of a view's; 0 of padding. In the order of its
                              bytes: with views in front, the maxima of four views take five times as long
    overwrite   it may be

    Where it counts, above 0, a float32 is larger where its bits are as a whole number. So each cosine's last bits give
    way to n, and one pass finds the best and which it is, three times as fast as a maximum with its place. It costs a
    cosine up to 2^-15 of its size where there are 256 patches.
    """
    count = similarity.shape[-1]
    below = (1 << max(count - 1, 1).bit_length()) - 1  # the bits that hold n
    bits = similarity.view(torch.int32)
    keys = bits.bitwise_and_(~below) if overwrite else bits.bitwise_and(~below)
    keys.bitwise_or_(torch.arange(count, dtype=torch.int32))
    best = keys.amax(3).permute(2, 0, 1).contiguous()  # (V, B, M); below 0 where no cosine is above
    best_of_query = keys.amax(1).transpose(0, 1)  # (V, B, N), likewise
    nearest = best.bitwise_and(below).long()
    mutual = (best > 0) & (best >= best_of_query.gather(-1, nearest))
    return Pairs(torch.where(mutual, best.bitwise_and_(~below).view(torch.float32), 0.0), nearest)


def find_inliers(cosine: Tensor, start: Tensor, end: Tensor) -> Inliers:
    """The similarity transform that carries most pairs of each candidate to their places, made affine.

    cosine  (B, M)     float32, of the pairs; 0 where there is none
    start   (B, M, 2)  float32, x, y of each pair's query patch, in patches
    end     (B, M, 2)  float32, x, y of its candidate patch

    for b: over all transforms T that two of the strongest pairs fix, the largest sum of (cosine - FLOOR) over the
    strongest pairs m with |T start[m] - end[m]| < TOLERANCE
    """
    all_weights = (cosine - FLOOR).clamp(min=0)  # (B, M)
    weight, strongest = all_weights.topk(min(PAIRS, all_weights.shape[1]), dim=1)  # (B, K)
    at = strongest[..., None].expand(-1, -1, 2)
    transform = _best_of_two(start.gather(1, at), end.gather(1, at), weight)  # (B, 2, 3)

    real = all_weights > 0
    is_inlier = _lands(transform, start, end) & real  # (B, M)
    refined = _affine(start, end, is_inlier * all_weights, transform)
    is_inlier_refined = _lands(refined, start, end) & real
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
    """How far the inliers stand out from what else they might have been paired with.  (B,) float32, of views (V, B)

    is_inlier   (B, M)     True for the candidate's patches whose pair is an inlier; of views (V, B, M)
    similarity  (B, M, N)  cosine of each candidate patch with each of the query's; of views (V, B, M, N)
    apart       (N, N)     see `far_apart`

    A patch of lawn is as like any other patch of the lawn; where two lawns are consistent with a transform it is by
    chance, or because features know a little of their place in the image. What shows the same spot is like that spot
    alone (the ratio test of Lowe, 2004, as a difference):

        sum over inliers m of  cosine[b, m] - max(0, max over n of similarity[b, m, n])

    where n lies farther than ELSEWHERE from m's partner; a negative term counts 0.
    """
    of_inlier = is_inlier.nonzero(as_tuple=True)  # of (P,) each
    elsewhere = similarity[of_inlier].mul_(apart[pairs.nearest[of_inlier]]).amax(1).clamp_(min=0)  # (P,)
    margin = torch.zeros_like(pairs.cosine)
    margin[of_inlier] = (pairs.cosine[of_inlier] - elsewhere).clamp_(min=0)
    return margin.sum(-1)


def _best_of_two(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """Of the similarity transforms that two pairs fix, the one (B, 2, 3) that carries the heaviest to their ends.

    start, end  (B, K, 2)
    weight      (B, K)     descending

    With places as complex numbers a transform is z -> a z + b, where a = (end_j - end_i) / (start_j - start_i). By how
    much it misses an end w, squared, is a product of what is known of it and of what is known of the pair, so that all
    transforms meet all pairs in one multiplication of matrices:

        |a z + b - w|^2 = |a|^2 |z|^2 + |b|^2 + |w|^2 + 2 Re(a conj(b) z) - 2 Re(a z conj(w)) - 2 Re(b conj(w))
    """
    count = start.shape[1]
    i, j = _combinations(count)
    pairs = torch.cat([start.mT, end.mT, weight[:, None]], 1)  # (B, 5, K)
    x, y, to_x, to_y, weight_i = pairs.index_select(2, i).unbind(1)  # (B, H)
    x_j, y_j, to_x_j, to_y_j, weight_j = pairs.index_select(2, j).unbind(1)
    dx, dy, to_dx, to_dy = x_j - x, y_j - y, to_x_j - to_x, to_y_j - to_y
    square, to_square = dx * dx + dy * dy, to_dx * to_dx + to_dy * to_dy
    fixed = (square > APART**2) & (to_square > APART**2) & (weight_i > 0) & (weight_j > 0)
    fixed &= (to_square < LARGEST_ZOOM**2 * square) & (square < LARGEST_ZOOM**2 * to_square)
    share = fixed / square.clamp(min=1e-6)
    a, a_i = (dx * to_dx + dy * to_dy) * share, (dx * to_dy - dy * to_dx) * share  # real and imaginary part
    b, b_i = to_x * fixed - a * x + a_i * y, to_y * fixed - a_i * x - a * y
    area = a * a + a_i * a_i
    allowed = _squared_tolerance(area)
    of_transform = torch.stack(
        [area, 2 * (a * b + a_i * b_i), 2 * (a * b_i - a_i * b), a, a_i, b, b_i, b * b + b_i * b_i - allowed], 1
    )  # (B, 8, H)
    x, y, to_x, to_y = pairs[:, :4].unbind(1)  # (B, K)
    with_a, with_a_i = -2 * (x * to_x + y * to_y), 2 * (y * to_x - x * to_y)
    of_pair = torch.stack(
        [x * x + y * y, x, y, with_a, with_a_i, -2 * to_x, -2 * to_y, torch.ones_like(x)], 2
    )  # (B, K, 8)
    miss = torch.baddbmm((to_x * to_x + to_y * to_y)[..., None], of_pair, of_transform)  # (B, K, H), less what may be
    landed = miss.lt_(0)  # 1.0 where it lands
    best = (weight[:, None] @ landed)[:, 0].argmax(1)  # (B,)
    chosen = torch.stack([a, -a_i, b, a_i, a, b_i], 1).gather(2, best[:, None, None].expand(-1, 6, 1))
    return chosen.view(-1, 2, 3)


@cache
def _combinations(count: int) -> tuple[Tensor, Tensor]:
    """Which two of `count` pairs are tried; also each by itself, which fixes none, so that something is there."""
    i, j = torch.triu_indices(min(ANCHORS, count), count)
    return i, j


def _squared_miss(transform: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """How far from its end each start (B, M, 2) lands under one transform (B, 2, 3) for each candidate, squared."""
    landed = torch.baddbmm(transform[:, None, :, 2], start, transform[..., :2].mT)  # (B, M, 2)
    return landed.sub_(end).square_().sum(2)


def _squared_tolerance(area: Tensor) -> Tensor:
    """How far a pair may miss, squared; where the candidate shows the thing larger, a query patch is a larger spot.

    area  by how much the transform enlarges areas; below 0 it mirrors, and nothing lands
    """
    return torch.where(area > 0, TOLERANCE**2 * area.clamp(min=1), -1.0)


def _area(transforms: Tensor) -> Tensor:
    """By how much a transform enlarges areas."""
    return transforms[..., 0, 0] * transforms[..., 1, 1] - transforms[..., 0, 1] * transforms[..., 1, 0]


def _lands(transform: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Which starts (B, M) land near their ends under one transform (B, 2, 3) for each candidate."""
    return _squared_miss(transform, start, end) < _squared_tolerance(_area(transform))[:, None]


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
