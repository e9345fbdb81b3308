"""The layouts of weights that are read: official, Hugging Face, our own."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import on_one_line
from .vit import Architecture, VisionTransformer

FORMAT_VERSION = 1


EXTRA_PREFIX = "descriptor."  # tensors that travel with a backbone and are no part of the network


_SCALE_SUFFIX = ".int8_scale"


_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Preprocessing:
    """Subtracted from and divided out of RGB values in [0, 1]; ImageNet's unless a checkpoint says otherwise."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        values = (*self.mean, *self.std)
        if len(self.mean) != 3 or len(self.std) != 3 or not all(map(math.isfinite, values)) or min(self.std) <= 0:
            raise ValueError(f"impossible preprocessing: mean {self.mean}, std {self.std}")


@dataclass(frozen=True)
class Checkpoint:
    """A backbone as read from a file: complete, checked against its architecture, every value finite."""

    name: str
    hash: str  # 32 hex digits, the first 128 bits of BLAKE2b of the file's bytes
    architecture: Architecture
    preprocessing: Preprocessing
    state: Mapping[str, Tensor]  # official names; floating point, as precise as the file; see `EightBit`
    extra: dict[str, Tensor] = field(default_factory=dict)  # names begin with EXTRA_PREFIX
    provenance: dict[str, str] = field(default_factory=dict)


class EightBit(Mapping[str, Tensor]):
    """Named tensors of which some are kept as 8-bit rows with a scale each; reading one of those makes it float32 anew.

    tensors  official names; (out, in) int8 where `scales` has the name
    scales   (out, 1) float32
    """

    def __init__(self, tensors: Mapping[str, Tensor], scales: Mapping[str, Tensor]) -> None:
        self.tensors, self.scales = tensors, scales

    def __getitem__(self, name: str) -> Tensor:
        value = self.tensors[name]
        return value * self.scales[name] if name in self.scales else value

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def infer_architecture(tensors: Mapping[str, Tensor]) -> Architecture:
    """The architecture that official names and shapes imply.

    Two things cannot be seen in shapes and follow the official models: 64 channels in each head, and the way that
    position embeddings are stretched, which changed when registers came.
    """
    blocks = [int(found[1]) for name in tensors if (found := re.match(r"blocks\.(\d{1,4})\.", name))]
    patch, position, cls = (_shape(tensors, n) for n in ("patch_embed.proj.weight", "pos_embed", "cls_token"))
    if not blocks or len(patch) != 4 or len(position) != 3 or len(cls) != 3:
        raise _Mismatch("it has no blocks.0..., patch_embed, pos_embed and cls_token of a vision transformer")
    dim, patch_size = cls[-1], patch[-1]
    side = math.isqrt(position[1] - 1) if position[1] > 1 else 0
    if side == 0 or side * side != position[1] - 1:
        raise _Mismatch(f"pos_embed has {position[1]} positions, which is not one more than a square")
    if dim % 64:
        raise _Mismatch(f"{dim} channels do not divide into heads of 64, as in every official network")
    swiglu = "blocks.0.mlp.w12.weight" in tensors
    hidden = (_shape(tensors, "blocks.0.mlp.w3.weight" if swiglu else "blocks.0.mlp.fc2.weight") or (0,))[-1]
    registers = _shape(tensors, "register_tokens")
    try:
        return Architecture(
            patch_size=patch_size,
            embed_dim=dim,
            depth=max(blocks) + 1,
            num_heads=dim // 64,
            mlp_ratio=_mlp_ratio(dim, hidden, swiglu),
            ffn="swiglu" if swiglu else "mlp",
            num_registers=registers[1] if len(registers) == 3 else 0,
            image_size=side * patch_size,
            interpolate_offset=0.0 if registers else 0.1,
            interpolate_antialias=bool(registers),
            layerscale=1.0 if "blocks.0.ls1.gamma" in tensors else None,
        )
    except ValueError as error:
        raise _Mismatch(str(error)) from error


class _Mismatch(Exception):
    """Why tensors are not the network that was expected; becomes a CheckpointError with the path before it."""


def _own_layout(digest: str, tensors: dict[str, Tensor], description: str) -> Checkpoint:
    try:
        header = json.loads(description, parse_constant=_no_constant)
        version = header["version"]
        if version != FORMAT_VERSION:
            raise _Mismatch(f"it is of format {version}, this seenit reads format {FORMAT_VERSION}; upgrade seenit")
        architecture = _architecture_from(header["architecture"])
        preprocessing = _preprocessing_from(header["preprocessing"]["mean"], header["preprocessing"]["std"])
        name = header["name"]
        if not (isinstance(name, str) and name.isprintable() and 0 < len(name) <= 100):
            raise ValueError("its name is not one line of text")
        provenance = {str(key): str(value) for key, value in header["provenance"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise _Mismatch(f"its description cannot be read ({on_one_line(error)})") from error
    extra = {key: value for key, value in tensors.items() if key.startswith(EXTRA_PREFIX)}
    state = {key: value for key, value in tensors.items() if key not in extra}
    scales: dict[str, Tensor] = {}
    for key in [key for key in state if key + _SCALE_SUFFIX in state]:
        scale = state.pop(key + _SCALE_SUFFIX)  # (out, 1)
        fits = state[key].dtype == torch.int8 and state[key].ndim == 2 and scale.shape == (len(state[key]), 1)
        if not fits or scale.dtype not in _DTYPES:
            raise _Mismatch(f"{key} and its scale do not fit each other")
        scales[key] = scale.float()
    _check_state(state, architecture, eight_bit=scales)
    _check_finite(extra)
    whole = EightBit(state, scales) if scales else state
    return Checkpoint(name, digest, architecture, preprocessing, whole, extra, provenance)


def _architecture_from(values: Any) -> Architecture:
    """An Architecture from JSON, each value of its field's own type."""
    defaults = asdict(Architecture())
    if set(values) != {item.name for item in fields(Architecture)}:
        raise ValueError(f"architecture with the fields {sorted(values)}")
    for name, value in values.items():
        wanted = (int, float) if isinstance(defaults[name], float) else (type(defaults[name]),)
        if type(value) not in wanted and not (name == "layerscale" and value is None):
            raise TypeError(f"{name} is {value!r}")
    return Architecture(**values)


def _preprocessing_from(mean: Any, std: Any) -> Preprocessing:
    red, green, blue = map(float, mean)
    red_std, green_std, blue_std = map(float, std)
    return Preprocessing((red, green, blue), (red_std, green_std, blue_std))


_HUGGING_FACE_NAMES = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.attention\.attention\.", ".attn."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
)


def _hugging_face_layout(path: Path, digest: str, tensors: dict[str, Tensor]) -> Checkpoint:
    """The layout of transformers' Dinov2Model and Dinov2WithRegistersModel; a classifier on top is left out."""
    state: dict[str, Tensor] = {}
    for name, value in tensors.items():
        name = re.sub(r"^dinov2(_with_registers)?\.", "", name)
        if name.startswith("classifier."):
            continue
        for pattern, replacement in _HUGGING_FACE_NAMES:
            name = re.sub(pattern, replacement, name)
        state[name] = value
    for name in [name for name in state if ".attn.query." in name]:
        parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if not state[name].ndim or any(part not in state or state[part].shape != state[name].shape for part in parts):
            raise _Mismatch(f"{name} has no key and value of the same shape beside it")
        state[name.replace(".query.", ".qkv.")] = torch.cat([state.pop(part) for part in parts])
    architecture = infer_architecture(state)
    _check_state(state, architecture)
    preprocessing = _check_config(path.parent, architecture)
    provenance = {"layout": "Hugging Face transformers"}
    return Checkpoint(_name_of(path), digest, architecture, preprocessing, state, {}, provenance)


def _check_config(folder: Path, architecture: Architecture) -> Preprocessing:
    """Hold config.json, where it lies beside the weights, against what they implied; read the mean and deviation."""
    config = _read_json(folder / "config.json")
    expected = {
        "num_attention_heads": architecture.num_heads,
        "patch_size": architecture.patch_size,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
    }
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise _Mismatch(f"config.json beside it says {key} {config[key]!r}, where {value!r} is supported")
    processor = _read_json(folder / "preprocessor_config.json")
    default = Preprocessing()
    try:
        return _preprocessing_from(processor.get("image_mean", default.mean), processor.get("image_std", default.std))
    except (TypeError, ValueError) as error:
        raise _Mismatch(f"preprocessor_config.json beside it: {on_one_line(error)}") from error


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a small JSON file, empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read(1_000_000))
    except (OSError, ValueError, RecursionError) as error:
        raise _Mismatch(f"{path.name} beside it cannot be read") from error
    if not isinstance(value, dict):
        raise _Mismatch(f"{path.name} beside it is not a JSON object")
    return value


def _check_state(
    state: Mapping[str, Tensor], architecture: Architecture, eight_bit: Mapping[str, Tensor] | None = None
) -> None:
    """Names, shapes and values must be those of the architecture, nothing missing, nothing over.

    eight_bit  scales (out, 1) of those that are int8
    """
    scales = eight_bit or {}
    if architecture.depth > len(state):  # before a network of a million claimed blocks is built
        raise _Mismatch(f"it claims {architecture.depth} blocks and has {len(state)} tensors")
    try:
        with torch.device("meta"):
            expected = {name: value.shape for name, value in VisionTransformer(architecture).state_dict().items()}
    except (RuntimeError, OverflowError) as error:  # sizes beyond 64 bits
        raise _Mismatch(f"it claims an impossible architecture ({on_one_line(error)})") from error
    missing = sorted(expected.keys() - state.keys())
    unknown = sorted(state.keys() - expected.keys())
    if missing:
        raise _Mismatch(f"{len(missing)} tensors are missing, {missing[0]} first")
    if unknown:
        raise _Mismatch(f"{len(unknown)} tensors are unknown, {unknown[0][:80]!r} first")
    for name, shape in expected.items():
        if state[name].shape != shape:
            raise _Mismatch(f"{name} has the shape {tuple(state[name].shape)} instead of {tuple(shape)}")
        if state[name].dtype not in _DTYPES and name not in scales:
            raise _Mismatch(f"{name} holds {state[name].dtype} instead of floating-point numbers")
    _check_finite(state)
    _check_finite({name: scale * 128 for name, scale in scales.items()})  # the largest values that they make


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, value in tensors.items():
        if value.is_floating_point() and value.numel() and not torch.stack(value.aminmax()).isfinite().all():
            raise _Mismatch(f"{name} holds values that are infinite or not a number")


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    return tuple(tensors[name].shape) if name in tensors else ()


def _mlp_ratio(dim: int, hidden: int, swiglu: bool) -> float:
    ratio = hidden / dim
    if not swiglu:
        return ratio
    # SwiGLU's width was rounded up from 2/3 of the ratio's, so the ratio is known only to a few digits
    return next((n / 8 for n in range(1, 129) if (int(dim * n / 8 * 2 / 3) + 7) // 8 * 8 == hidden), ratio * 1.5)


def _name_of(path: Path) -> str:
    stem = path.parent.name if path.stem in ("model", "pytorch_model") else path.stem
    return stem.removesuffix("_pretrain") or path.stem


def _no_constant(value: str) -> float:
    raise ValueError(f"{value} is no number")
