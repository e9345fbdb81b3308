"""The settings of a descriptor, as an index keeps them in its manifest, and those that a new index can have.

Reading and comparing them loads no torch: a run that has nothing to embed asks no more of the descriptor.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..errors import SeenitError


@dataclass(frozen=True)
class DescriptorConfig:
    """All that decides a vector besides the backbone and the whitening. Depths are fractions: 1 is the last block.

    Blocks and tokens were chosen on covers and paintings; `descriptor_ablation.py` prints what each step brings.
    Patches of blocks 6, 7, 9 and 10 of 12 are no better than those of block 8, tokens of fewer than 192 numbers are
    worse, and 2 bits a number lose .01 to .02 against 32, 1 bit .02 to .04. The rest was not tuned.
    """

    cls_depths: tuple[float, ...] = (1.0, 11 / 12)  # where the CLS token is read
    mean_depths: tuple[float, ...] = (10 / 12, 9 / 12)  # where the mean of the patches is read
    global_dim: int = 512  # at most; a small backbone has fewer
    shrinkage: float = 0.05  # share of a layer's mean variance that is added to all its variances before whitening
    token_depth: float = 8 / 12  # where patch tokens are read
    token_dim: int = 192  # at most; a small backbone has fewer
    num_tokens: int = 64  # patches kept of each image; a small grid has fewer
    token_bits: int = 2  # of each number of a token as it is stored
    part_bits: int = 0  # 8: of each number of the pooled features that are kept beside the patches; 0: none are kept
    colour_bits: int = 0  # 8: of each of the two numbers of a kept patch's mean colour; 0: none are kept
    num_views: int = 0  # synthetic views that the whitening is fitted on as well, where a backbone carries no prior
    dark_below: int = 0  # mean grey level of images that are brightened before they are described; 0: none are

    @property
    def settings(self) -> dict[str, object]:
        """By name, as an index's manifest keeps them; `from_settings` reads them."""
        return asdict(self)

    @property
    def version(self) -> str:
        """The settings as text; equal texts make equal vectors."""
        return json.dumps(self.settings, sort_keys=True)

    @classmethod
    def from_settings(cls, settings: Mapping[str, object]) -> "DescriptorConfig":
        """The config of an index's manifest; ValueError where a setting is unknown or no number.

        A setting that is missing has its default: one that is added later gets the default that means "as before".
        """
        known = {field.name: field.default for field in fields(cls)}
        if unknown := sorted(settings.keys() - known.keys()):
            raise ValueError(f"unknown setting {unknown[0]!r}")
        return cls(**{name: _as(value, known[name]) for name, value in settings.items()})

    def layers_of(self, depth: int) -> list[int]:
        """The blocks to ask of `VisionTransformer.intermediate`, ascending, the first is 0."""
        depths = (*self.cls_depths, *self.mean_depths, self.token_depth)
        return sorted({block_at(fraction, depth) for fraction in depths})

    def patch_layers_of(self, depth: int) -> list[int]:
        """Those of them of which more than CLS is read."""
        return sorted({block_at(fraction, depth) for fraction in (*self.mean_depths, self.token_depth)})


NUM_VIEWS = 300  # of a new index
DARK_BELOW = 65  # likewise

_NEW = DescriptorConfig(part_bits=8, colour_bits=8, num_views=NUM_VIEWS, dark_below=DARK_BELOW)
# How much of its patches an image keeps, by the name that a user gives it: bytes an image, at 192 numbers a token; the
# pooled features take 1.5 kB more with a ViT-S
DESCRIPTOR_CONFIGS = {
    "compact": replace(_NEW, num_tokens=40, token_bits=1),  # 1 kB
    "balanced": _NEW,  # 3 kB
    "full": replace(_NEW, num_tokens=65535, token_bits=8),  # 49 kB: every patch
}
DEFAULT_TOKENS = "balanced"


def config_named(tokens: str) -> DescriptorConfig:
    """The descriptor config that a new index has by the name of its tokens; SeenitError for an unknown name."""
    if tokens not in DESCRIPTOR_CONFIGS:
        raise SeenitError(f"unknown --tokens {tokens!r}; choose {', '.join(DESCRIPTOR_CONFIGS)}")
    return DESCRIPTOR_CONFIGS[tokens]


def block_at(fraction: float, depth: int) -> int:
    """The block, the first is 0, at a fraction of a backbone of so many blocks."""
    return max(1, round(fraction * depth)) - 1


def _as(value: object, default: object) -> Any:
    """A value from JSON of the default's kind; ValueError where it is none."""
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        return tuple(_as(one, default[0]) for one in value)
    right = (int, float) if isinstance(default, float) else type(default)
    if not isinstance(value, right) or isinstance(value, bool) or not math.isfinite(value):  # type: ignore[arg-type]
        raise ValueError(f"{value!r} is no number")
    return type(default)(value)  # type: ignore[call-arg]
