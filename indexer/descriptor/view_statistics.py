"""Statistics of few images made trustworthy, and of how the views of one image differ: plain tensor arithmetic.

A whitening divides by variances. Of few images most directions have none that was seen, and whitening then enlarges
noise, or takes away what tells the images apart: an index of three buildings differs most by building. Two things help
without any other photos. A covariance of n rows is drawn towards a multiple of the identity by as much as n rows are
too few (Chen et al., 2010). And synthetic views of an image show what does not tell images apart: what differs between
them is light, place and zoom, so that is what is whitened away.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# L parts of D channels, V views of an image


def shrink_covariance(covariance: Tensor, num_rows: int) -> Tensor:
    """A covariance (D, D) of so many rows, shrunk by OAS, the oracle approximating shrinkage (Chen et al., 2010).

    With S the covariance, mu = trace(S) / D and n rows, equation 23:

        rho = ((1 - 2 / D) trace(S^2) + trace(S)^2) / ((n + 1 - 2 / D) (trace(S^2) - trace(S)^2 / D)), at most 1
        returns (1 - rho) S + rho mu I
    """
    dim = len(covariance)
    trace, square = float(covariance.trace()), float(covariance.square().sum())
    excess = (num_rows + 1 - 2 / dim) * (square - trace**2 / dim)
    wanted = (1 - 2 / dim) * square + trace**2
    rho = 1.0 if excess <= wanted else wanted / excess
    return (1 - rho) * covariance + rho * trace / dim * torch.eye(dim, dtype=covariance.dtype)


def within_views(views: Sequence[Tensor]) -> Tensor:
    """How views of one image differ: of each part the covariance of an image and its views about their mean.

    views    of each image (1 + V, L, D), the image itself first
    returns  (L, D, D) float64
    """
    residuals = torch.cat([(parts - parts.mean(0)).double() for parts in views])  # (all, L, D)
    return torch.einsum("nld,nle->lde", residuals, residuals) / len(residuals)
