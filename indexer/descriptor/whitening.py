"""The statistics of a corpus, and the vectors that they make of its images: one global vector, some patch tokens.

Raw DINOv2 tokens make poor descriptors for finding the same thing again: a few directions carry most of the variance
and say "a photo", not "this photo". So several layers are read, and means and whitening are fitted on the indexed
images themselves, see `whitening_fit`. The whole chain (centre, whiten each layer, keep the main directions of all of
them together) is one affine map, which is what a `Whitening` holds.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..errors import SeenitError
from .config import DescriptorConfig
from .pooling import PooledFeatures

# B images, K patches, D channels of the backbone, L layers read, G global and T token dimensions

_NAMES = ("mean", "projection", "token_mean", "token_projection")  # tensors that every whitening has
_TINY = 1e-12


@dataclass(frozen=True)
class Whitening:
    """The statistics of a corpus as two affine maps, x -> (x - mean) @ projection.

    mean              (L * D,)    float32
    projection        (L * D, G)
    token_mean        (D,)
    token_projection  (D, T)
    num_images      how many images it was fitted on
    kind_projection  (L, D, D), of each part, see `kind_vectors`; None where nothing tells how views of an image differ
    """

    config: DescriptorConfig
    mean: Tensor
    projection: Tensor
    token_mean: Tensor
    token_projection: Tensor
    num_images: int
    kind_projection: Tensor | None = None

    @property
    def global_dim(self) -> int:
        return self.projection.shape[1]

    @property
    def token_dim(self) -> int:
        return self.token_projection.shape[1]

    @cached_property
    def id(self) -> str:
        """32 hex digits that tell this whitening from every other; each record names the one that made its vectors."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in _tensors(self).items():
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().astype("<f4").tobytes())
        return digest.hexdigest()


def apply_whitening(pooled: PooledFeatures, whitening: Whitening) -> tuple[np.ndarray, np.ndarray]:
    """The vectors to store: global (B, G) and patch tokens (B, K, T), float32, every row L2-normalised."""
    tokens = (pooled.tokens.float() - whitening.token_mean) @ whitening.token_projection  # (B, K, T)
    return vectors_of(pooled.parts, whitening), _unit_rows(tokens).numpy()


def vectors_of(parts: Tensor, whitening: Whitening) -> np.ndarray:
    """The global vectors (B, G) of parts (B, L, D), float32, L2-normalised."""
    return _unit_rows((parts.flatten(1) - whitening.mean) @ whitening.projection).numpy()


def kind_vectors(parts: Tensor, whitening: Whitening) -> np.ndarray | None:
    """By what images of one kind are alike: their first part whitened by how views of one image differ, and no more.

    parts    (B, 1 or more, D)  float32, L2-normalised; the first is the CLS token of the last block
    returns  (B, D)             float32, L2-normalised; None where the whitening has no `kind_projection`

    What tells the images of a corpus apart stays as large as it is. A corpus of three buildings differs most by
    building, which whitening on the corpus takes away and this does not. It has every number of the part, since what
    is left out by the main directions of the stored vector cannot be had back from it. Earlier blocks know less of
    kinds: with all four parts in place of the first, like kind loses .02 of mAP on covers, landmarks and iconic, and
    .01 on paris and grocery (retrieval_quality.py's sets, every second query).
    """
    if whitening.kind_projection is None:
        return None
    first = parts[:, 0]  # (B, D)
    return _unit_rows((first - whitening.mean[: first.shape[1]]) @ whitening.kind_projection[0]).numpy()


def save_whitening(whitening: Whitening) -> bytes:
    """A whitening as the bytes of a safetensors file."""
    metadata = {"format": "seenit-fit-1", "recipe": whitening.config.version, "num_images": str(whitening.num_images)}
    return safetensors.torch.save(_tensors(whitening), metadata)


def load_whitening(data: bytes) -> Whitening:
    """The whitening that `save_whitening` wrote; anything else raises SeenitError."""
    try:
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size])["__metadata__"]
        if metadata["format"] != "seenit-fit-1":
            raise ValueError("it has another format")
        config = _config_from(metadata["recipe"])
        num_images = int(metadata["num_images"])
        tensors = safetensors.torch.load(data)
        if set(tensors) - {"kind_projection"} != set(_NAMES):
            raise ValueError("it holds other tensors")
        loaded = Whitening(config=config, num_images=num_images, **tensors)
        _check(loaded)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SeenitError(
            f"the index's descriptor statistics are damaged: {reason}; index the folder into a new index"
        ) from error
    return loaded


def _unit_rows(rows: Tensor) -> Tensor:
    """Rows of length 1; one without a direction becomes the first axis, so that it stays a valid vector."""
    length = rows.norm(dim=-1, keepdim=True)
    axis = torch.zeros(rows.shape[-1])
    axis[0] = 1
    return torch.where(length > _TINY, rows / length.clamp(min=_TINY), axis)


def _tensors(whitening: Whitening) -> dict[str, Tensor]:
    tensors = {name: getattr(whitening, name) for name in _NAMES}
    return tensors if whitening.kind_projection is None else tensors | {"kind_projection": whitening.kind_projection}


def _config_from(text: str) -> DescriptorConfig:
    settings = json.loads(text)
    if not isinstance(settings, dict):
        raise ValueError("its settings are no table of values")
    return DescriptorConfig.from_settings(settings)


def _check(whitening: Whitening) -> None:
    wide, dim = whitening.mean.numel(), whitening.token_mean.numel()
    parts = len(whitening.config.cls_depths) + len(whitening.config.mean_depths)
    shapes = (whitening.projection.shape[0] == wide, whitening.token_projection.shape[0] == dim, wide == parts * dim)
    if not all(shapes) or [getattr(whitening, name).ndim for name in _NAMES] != [1, 2, 1, 2]:
        raise ValueError("its tensors do not fit together")
    if whitening.kind_projection is not None and whitening.kind_projection.shape != (parts, dim, dim):
        raise ValueError("its tensors do not fit together")
    for name, tensor in _tensors(whitening).items():
        if tensor.dtype != torch.float32 or not math.isfinite(tensor.abs().sum().item()):
            raise ValueError(f"{name} is not finite float32")
