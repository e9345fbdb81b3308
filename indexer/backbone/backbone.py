"""A backbone: a loaded network, ready for images.

What is surprising: its results are float32 whatever it computes in, and loading it may lower torch's number of threads,
which in a container would otherwise be the whole machine's.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import SeenitError, first_line
from ..messages import Say, say_to_stderr
from .byte_ranges import ByteRanges
from .cache import offline_by_environment
from .checkpoint import build_model, load_checkpoint
from .cpu_int8 import is_eight_bit, measure_photos, quantise_for_cpu
from .dtype import best_dtype
from .layouts import EXTRA_PREFIX, Preprocessing
from .resolve import choose_backbone
from .vit import Architecture, TokenFeatures, VisionTransformer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class Backbone:
    """A loaded network with what it needs to know of pixels."""

    name: str
    spec: str  # loads the same backbone again: its name, or an absolute path
    hash: str  # 32 hex digits, of the weights file's bytes
    architecture: Architecture
    preprocessing: Preprocessing
    provenance: dict[str, str]
    prior: dict[str, Tensor] | None  # the descriptor's statistics that came with the weights, if any did
    model: VisionTransformer  # for inference only, see cpu_fusion and cpu_int8
    device: torch.device
    dtype: torch.dtype
    ranges: ByteRanges | None = None  # an index's own, which it computes in 8 bits by

    @classmethod
    def load(
        cls,
        spec: str | Path = "auto",
        *,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
        ranges: ByteRanges | None = None,
        say: Say = say_to_stderr,
    ) -> "Backbone":
        """Load a backbone, fetching an official one that is not in the cache.

        spec     `auto`, a name of `list_backbones`, or the path of a weights file (or of a folder with one)
        device   `auto` (cuda, else mps, else cpu) or a name that torch knows
        dtype    `auto` (the device's fastest number format), float32, bfloat16, float16, or int8: matrix products in 8
                 bits, see cpu_int8; where that cannot be done, `auto`. Results are float32 in any case
        offline  fetch nothing; SEENIT_OFFLINE=1 in the environment says the same
        ranges   for int8: those of an index, see `with_own_ranges`; None: those of drawn images
        say      gets one line before anything is fetched, and one on which backbone was taken and why
        """
        where = _choose_device(device)
        if dtype != "auto" and dtype not in DTYPES:
            raise SeenitError(f"unknown dtype {dtype!r}; choose auto, {', '.join(DTYPES)}")
        chosen = choose_backbone(spec, offline or offline_by_environment(), say)
        checkpoint = load_checkpoint(chosen.path)
        number_format = best_dtype(where) if dtype == "auto" else DTYPES[dtype]
        if where.type == "cpu":
            _bound_threads()
        name = chosen.name or checkpoint.name
        of = checkpoint.architecture
        if ranges is not None and not ranges.fit(of.depth, of.embed_dim, of.hidden_dim):
            raise SeenitError(f"the 8-bit ranges are not of {name}; compute in another precision: --precision bfloat16")
        model = build_model(checkpoint, number_format, where, fused=True, eight_bit=dtype == "int8", ranges=ranges)
        if dtype == "int8" and not is_eight_bit(model):
            say(f"8 bits are not for {name} on this machine; it computes in another precision")
            if number_format != best_dtype(where):
                number_format = best_dtype(where)
                model = build_model(checkpoint, number_format, where, fused=True)
        backbone = cls(
            name=name,
            spec=chosen.name or str(chosen.path),
            hash=checkpoint.hash,
            architecture=checkpoint.architecture,
            preprocessing=checkpoint.preprocessing,
            provenance=checkpoint.provenance,
            prior={key.removeprefix(EXTRA_PREFIX): value.clone() for key, value in checkpoint.extra.items()} or None,
            model=model,
            device=where,
            dtype=number_format,
            ranges=ranges if is_eight_bit(model) else None,
        )
        say(f"backbone {name} on {where} in {backbone.precision}: {chosen.why}")
        return backbone

    @property
    def precision(self) -> str:
        """What matrix products are computed in, by the names that `load` knows."""
        return "int8" if is_eight_bit(self.model) else str(self.dtype).removeprefix("torch.")

    def with_own_ranges(self, images: Sequence[np.ndarray]) -> "Backbone":
        """This backbone in 8 bits, with ranges measured on images (H, W, 3) uint8, sides multiples of the patch size.

        It is loaded again, for weights in 8 bits by other ranges are no weights to begin with. Where ranges of these
        images do not serve it stays as it is.
        """
        assert images and self.precision == "int8"
        checkpoint = load_checkpoint(choose_backbone(self.spec, offline=True).path)
        if checkpoint.hash != self.hash:
            raise SeenitError(f"the weights of {self.name} changed while they were in use; run the command again")
        plain = build_model(checkpoint, torch.bfloat16, self.device)
        ranges = measure_photos(plain, [self._normalised(torch.tensor(image)[None]) for image in images])
        if ranges is None or not quantise_for_cpu(plain, ranges):
            return self
        return replace(self, model=plain, ranges=ranges)

    @property
    def depth(self) -> int:
        return self.architecture.depth

    @property
    def embed_dim(self) -> int:
        return self.architecture.embed_dim

    @property
    def patch_size(self) -> int:
        return self.architecture.patch_size

    def intermediate(
        self,
        pixels: np.ndarray | Tensor,
        layers: Sequence[int],
        *,
        norm: bool = True,
        patches_of: Sequence[int] | None = None,
    ) -> list[TokenFeatures]:
        """The tokens after chosen blocks.

        pixels      (B, H, W, 3) uint8 RGB; H and W multiples of the patch size
        layers      indices of blocks, the first is 0, the last depth - 1; blocks after the last one asked do not run
        norm        apply the network's final norm to each
        patches_of  the blocks of which more than CLS is read; None: all. If the last block is none of them, its
                    registers and patches are not computed and there are none
        returns     one TokenFeatures for each layer in the order asked, float32, on the backbone's device
        """
        if isinstance(pixels, np.ndarray):
            pixels = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise ValueError(f"pixels are {pixels.dtype} {tuple(pixels.shape)}; uint8 (B, H, W, 3) is needed")
        with torch.inference_mode():
            outputs = self.model.intermediate(self._normalised(pixels), layers, norm, patches_of)
            return [
                replace(o, cls=o.cls.float(), registers=o.registers.float(), patches=o.patches.float()) for o in outputs
            ]

    def __call__(self, images: np.ndarray | Tensor) -> Tensor:
        """The CLS after the final norm, as a plain feature extractor.

        images   (B, H, W, 3) uint8 RGB, or (B, 3, H, W) floating point with mean and deviation taken out, as the
                 reference takes them; H and W multiples of the patch size
        returns  (B, D) float32, on the backbone's device

        >>> from indexer import Backbone
        >>> import numpy as np
        >>> backbone = Backbone.load("auto")
        >>> features = backbone(np.zeros((2, 224, 224, 3), np.uint8))
        >>> tuple(features.shape) == (2, backbone.embed_dim)
        True
        """
        return self.forward_features(images)["x_norm_clstoken"]

    def forward_features(self, images: np.ndarray | Tensor) -> dict[str, Tensor]:
        """All tokens of the last block, by the keys of the reference implementation.

        images   as in a call of the backbone
        returns  x_norm_clstoken (B, D), x_norm_regtokens (B, R, D), x_norm_patchtokens (B, N, D) after the final norm;
                 x_prenorm (B, 1 + R + N, D) before it; all float32, on the backbone's device
        Raises ValueError for images of another shape or type.
        """
        with torch.inference_mode():
            (last,) = self.model.intermediate(self._as_input(images), [self.depth - 1], False)
            raw = torch.cat([last.cls[:, None], last.registers, last.patches], dim=1)  # (B, 1 + R + N, D)
            normed = self.model.norm(raw).float()
            first = 1 + self.architecture.num_registers
            return {
                "x_norm_clstoken": normed[:, 0],
                "x_norm_regtokens": normed[:, 1:first],
                "x_norm_patchtokens": normed[:, first:],
                "x_prenorm": raw.float(),
            }

    def _as_input(self, images: np.ndarray | Tensor) -> Tensor:
        """(B, 3, H, W), with mean and deviation taken out, in the type that the network computes in."""
        if isinstance(images, np.ndarray):
            images = torch.from_numpy(np.require(images, requirements=["C", "W"]))
        if images.ndim == 4 and images.dtype == torch.uint8 and images.shape[-1] == 3:
            return self._normalised(images)
        if images.ndim == 4 and images.is_floating_point() and images.shape[1] == 3:
            return images.to(self.device, self.dtype)
        raise ValueError(
            f"images are {images.dtype} {tuple(images.shape)}; uint8 (B, H, W, 3) or normalised (B, 3, H, W) is needed"
        )

    def __repr__(self) -> str:
        network = f"{self.architecture.depth} blocks of {self.embed_dim}, patches of {self.patch_size} px"
        return f"Backbone({self.name!r}, {network}, {self.device}, {self.precision})"

    def _normalised(self, pixels: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 -> (B, 3, H, W) with mean and deviation taken out."""
        mean, std = (torch.tensor(v, device=self.device) for v in (self.preprocessing.mean, self.preprocessing.std))
        values = pixels.to(self.device).float() * (1 / (255 * std)) - mean / std  # (B, H, W, 3)
        return values.to(self.dtype).permute(0, 3, 1, 2)


def _choose_device(device: str) -> torch.device:
    if device == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
        return chosen
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SeenitError(f"device {device!r} cannot be used: {first_line(error)}; choose auto or cpu") from error


def _bound_threads() -> None:
    """No more threads than this process may use processors: a container's torch counts the whole machine's."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # Linux's limit on a container, "QUOTA PERIOD" or "max PERIOD"
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        allowed = min(allowed, max(1, round(int(quota) / int(period))))
    if torch.get_num_threads() > allowed:
        torch.set_num_threads(allowed)
