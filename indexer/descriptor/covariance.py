"""Linear algebra of covariances: the matrix that whitens, the main directions, factors of a low rank.

Where eigenvectors are kept their signs are settled, so that vectors made on other machines or in other batches agree.
"""

import numpy as np
import torch
from torch import Tensor

# n or R rows, D dimensions, L matrices

_TINY = 1e-12


def moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of rows (n, D)."""
    mean = rows.mean(0)
    centred = rows - mean
    return mean, centred.T @ centred / len(rows)


def mix_covariances(covariance: Tensor, other: Tensor, share: float) -> Tensor:
    """A covariance (D, D) with so large a share of another one, which is scaled to the same trace first."""
    return (1 - share) * covariance + share * other * (covariance.trace() / other.trace().clamp(min=_TINY))


def whitening_matrix(covariance: Tensor, shrinkage: float) -> Tensor:
    """The symmetric (D, D) matrix that makes all variances about equal."""
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(min=0)
    values = values + shrinkage * values.mean() + _TINY
    return (vectors * values.rsqrt()) @ vectors.T


def covariances_behind(matrices: Tensor, shrinkage: float) -> Tensor:
    """The covariances (L, D, D) float64 of which `whitening_matrix` made these; their scale is that of the shrunk ones.

    With C the covariance and c = shrinkage * trace(C) / D:  matrix = (C + c I) ** -1/2
    """
    shrunk = torch.linalg.inv(matrices.double())
    shrunk = shrunk @ shrunk  # C + c I
    mean = shrunk.diagonal(dim1=1, dim2=2).mean(1)  # (1 + shrinkage) trace(C) / D
    added = mean * shrinkage / (1 + shrinkage)
    return shrunk - added[:, None, None] * torch.eye(shrunk.shape[-1], dtype=shrunk.dtype)


def main_directions(covariance: Tensor, count: int) -> Tensor:
    """The `count` eigenvectors (D, count) of largest variance, or all there are.

    The sign of each, which rounding would choose, is that of `_one_sign`.
    """
    return _one_sign(torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :count])  # descending


def main_directions_of_rows(rows: Tensor, count: int) -> Tensor:
    """`main_directions` of rows.T @ rows, (R, D) -> (D, count), at less than a tenth of the time where rows are few.

    Fewer rows than `count` leave directions in which nothing varies. Any of them will do, so they are drawn, the same
    ones each time.
    """
    num_rows, dim = rows.shape
    if num_rows >= dim:
        return main_directions(rows.T @ rows, count)
    basis, within = torch.linalg.qr(rows.T)  # (D, R), (R, R)
    directions = basis @ main_directions(within @ within.T, count)
    missing = min(count, dim) - num_rows
    if missing > 0:
        drawn = torch.from_numpy(np.random.default_rng(0).standard_normal((dim, missing)))
        for _ in range(2):  # what rounding leaves of the basis goes the second time
            drawn = torch.linalg.qr(drawn - basis @ (basis.T @ drawn)).Q
        directions = torch.cat([directions, drawn], dim=1)
    return _one_sign(directions)


def low_rank_factors(covariance: Tensor, rank: int) -> Tensor:
    """Rows (rank, D) whose sum of outer products is nearest to the covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()).T.flip(0)[:rank].contiguous()


def _one_sign(vectors: Tensor) -> Tensor:
    """Of the two signs of each column that which makes its largest number positive."""
    return vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
