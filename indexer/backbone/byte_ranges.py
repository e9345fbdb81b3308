"""How far a network's activations go, channel by channel: what 8-bit scales are made of, see `cpu_int8`.

An index keeps those of its own first images, and queries get theirs from it: photos go where drawn images do not.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..errors import SeenitError

PLACES = ("normed1", "attended", "normed2", "hidden", "key")  # before the products of a block; `key` is after one
FORMAT = "seenit-ranges-1"
LOW, HIGH, MEAN = range(3)


# N blocks, C channels: those of the network, in `hidden` of its feed-forward parts
@dataclass(frozen=True, eq=False)
class ByteRanges:
    """Least, greatest and mean value of each channel.

    places  by name of PLACES, (N, 3, C) float16 each
    """

    places: Mapping[str, Tensor]

    @cached_property
    def id(self) -> str:
        """32 hex digits that tell these ranges from all others."""
        digest = hashlib.blake2b(digest_size=16)
        for name in PLACES:
            digest.update(f"{name} {tuple(self.places[name].shape)}".encode())
            digest.update(self.places[name].contiguous().numpy().astype("<f2").tobytes())
        return digest.hexdigest()

    @classmethod
    def of_blocks(cls, blocks: list[dict[str, Tensor]]) -> "ByteRanges":
        """Ranges (3, C) float32 of each block by place, as they can be stored."""
        most = torch.finfo(torch.float16).max
        return cls({name: torch.stack([block[name].clamp(-most, most) for block in blocks]).half() for name in PLACES})

    def save(self) -> bytes:
        """The bytes of a safetensors file: 220 kB of a ViT-S."""
        return safetensors.torch.save({name: self.places[name].contiguous() for name in PLACES}, {"format": FORMAT})

    @classmethod
    def load(cls, data: bytes) -> "ByteRanges":
        """What `save` wrote; SeenitError for anything else, one line on what is wrong with it."""
        try:
            size = int.from_bytes(data[:8], "little")
            if json.loads(data[8 : 8 + size])["__metadata__"]["format"] != FORMAT:
                raise ValueError("they have another format")
            places = safetensors.torch.load(data)
            if set(places) != set(PLACES):
                raise ValueError("they are of other places")
            for name, ranges in places.items():
                _check(name, ranges, len(places["key"]))
        except (ValueError, KeyError, TypeError, IndexError, RecursionError, safetensors.SafetensorError) as error:
            raise SeenitError(f"8-bit ranges are damaged: {' '.join(str(error).split())[:200]}") from error
        return cls(places)

    def fit(self, num_blocks: int, embed_dim: int, hidden_dim: int) -> bool:
        """Whether they are of a network of this shape."""
        return all(
            self.places[name].shape == (num_blocks, 3, hidden_dim if name == "hidden" else embed_dim) for name in PLACES
        )


def _check(name: str, ranges: Tensor, num_blocks: int) -> None:
    if ranges.dtype != torch.float16 or ranges.ndim != 3 or ranges.shape[:2] != (num_blocks, 3) or not ranges.numel():
        raise ValueError(f"{name} is {ranges.dtype} {tuple(ranges.shape)}")
    if not bool(ranges.isfinite().all()) or bool((ranges[:, LOW] > ranges[:, HIGH]).any()):
        raise ValueError(f"{name} holds no ranges")
