"""Cosines of many patches with many: in whole numbers of 8 bits where the processor multiplies these fastest."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from indexer.backbone.dtype import best_dtype


@dataclass(frozen=True, eq=False)
class Factors:
    """Unit vectors as they are multiplied; each by itself, so that no cosine depends on what else is compared.

    numbers  (..., T)  float32, or int8
    step     (..., 1)  float32: a vector is numbers * step; empty where the numbers are the vector
    """

    numbers: Tensor
    step: Tensor

    @classmethod
    def of(cls, unit: Tensor) -> "Factors":
        """unit  (..., T) float32, L2-normalised rows, or zeros"""
        if not multiplies_bytes():
            return cls(unit, unit.new_empty(0))
        step = unit.abs().amax(-1, keepdim=True).clamp_(min=1e-6).div_(127)
        return cls((unit / step).round_().to(torch.int8), step)

    @classmethod
    def of_query(cls, unit: np.ndarray) -> "Factors":
        """The same of a few vectors (N, T): for so little torch wakes its threads, which takes longer than the work."""
        if not multiplies_bytes():
            return cls(torch.from_numpy(unit), torch.empty(0))
        step = np.maximum(np.abs(unit).max(-1, keepdims=True), np.float32(1e-6)) / 127
        return cls(torch.from_numpy(np.rint(unit / step).astype(np.int8)), torch.from_numpy(step))

    def some(self, kept: Tensor) -> "Factors":
        """Those for which `kept` (N,) is True."""
        return Factors(self.numbers[kept], self.step[kept] if len(self.step) else self.step)


def cosines(gallery: Factors, query: Factors) -> Tensor:
    """Of each gallery patch with each of the query's; whole numbers cost a cosine its third digit.

    gallery (B, M, T), query (N, T) -> (B, M, N) float32
    """
    if gallery.numbers.dtype == torch.int8:
        flat = torch._int_mm(gallery.numbers.flatten(0, -2), query.numbers.T).float()  # (B * M, N)
        flat = flat.mul_(query.step.T).view(*gallery.numbers.shape[:-1], -1)
    else:
        flat = gallery.numbers @ query.numbers.T
    return flat.mul_(gallery.step) if len(gallery.step) else flat


@cache
def multiplies_bytes() -> bool:
    """Whether this processor and this torch multiply whole numbers of 8 bits, and rightly.

    A processor with bfloat16 in hardware has the instructions for them as well, at twice the rate (3,200 x 192 by
    192 x 256 on one core: 0.72 ms against 1.40). torch does not document its product of them: so it is tried.
    """
    if best_dtype("cpu") != torch.bfloat16:
        return False
    left, right = (torch.arange(count * 64).view(count, 64) % 255 - 127 for count in (8, 16))
    try:
        found = torch._int_mm(left.to(torch.int8), right.to(torch.int8).T)
    except (AttributeError, RuntimeError):
        return False
    return bool((found == left @ right.T).all())
