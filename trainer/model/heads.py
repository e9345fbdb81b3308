"""The projection head: from tokens to scores over prototypes (Caron et al. 2021, section 3.1).

It exists for training only. Names of parameters are the reference's.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Head(nn.Module):
    """An MLP to a narrow unit vector, then its products with K prototypes of learnt length.

    dim, hidden, bottleneck  widths: tokens, between the MLP's layers, after them
    prototypes               K
    layers                   linear layers of the MLP
    """

    def __init__(self, dim: int, prototypes: int, hidden: int = 2048, bottleneck: int = 256, layers: int = 3) -> None:
        super().__init__()
        widths = [dim, *[hidden] * (layers - 1), bottleneck]
        steps: list[nn.Module] = []
        for wide, narrow in pairwise(widths):
            steps += [nn.Linear(wide, narrow), nn.GELU()]
        self.mlp = nn.Sequential(*steps[:-1])
        self.last_layer = Prototypes(bottleneck, prototypes)
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(M, D) tokens -> (M, K) scores."""
        narrow = self.mlp(tokens)  # (M, bottleneck)
        eps = 1e-6 if narrow.dtype == torch.float16 else 1e-12
        return self.last_layer(F.normalize(narrow, dim=-1, eps=eps))


class Prototypes(nn.Module):
    """A linear layer whose rows are a direction and a length (Salimans and Kingma 2016)."""

    def __init__(self, dim: int, prototypes: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(prototypes, 1))
        self.weight_v = nn.Parameter(torch.empty(prototypes, dim))
        nn.init.trunc_normal_(self.weight_v, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        weight = self.weight_v * (self.weight_g / self.weight_v.norm(dim=1, keepdim=True))  # (K, bottleneck)
        return F.linear(tokens, weight)
