"""Weights on disk: one reader for every layout of a DINOv2 backbone, one writer for our own.

Read are torch's zip files and safetensors, under the official names, under Hugging Face's names, or in our own layout:
official names in safetensors with architecture, preprocessing and provenance inside. What a file is follows from its
content, never from its name. Loading is strict: every tensor of the network is there, has its shape and finite
values, and there is no other.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..atomic_file import atomic_path
from ..errors import CheckpointError, on_one_line
from .byte_ranges import ByteRanges
from .cpu_fusion import fuse_for_cpu
from .cpu_int8 import quantise_for_cpu
from .layouts import (
    _SCALE_SUFFIX,
    EXTRA_PREFIX,
    FORMAT_VERSION,
    Checkpoint,
    Preprocessing,
    _check_finite,
    _check_state,
    _hugging_face_layout,
    _Mismatch,
    _name_of,
    _own_layout,
    infer_architecture,
)
from .tensor_file import SHARD, read_tensors
from .vit import Architecture, VisionTransformer

_MATMUL = re.compile(r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2|w12|w3))\.weight")


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a backbone from an official `.pth`, a Hugging Face `model.safetensors` or `.bin`, or a file of our own.

    Raises CheckpointError in one line where the file is missing, broken, hostile or of another network. Tensors may be
    views of the file on disk; `build_model` copies them.
    """
    path = Path(path)
    digest, tensors, metadata = read_tensors(path)
    try:
        if "seenit" in metadata:
            return _own_layout(digest, tensors, metadata["seenit"])
        if any("encoder.layer." in name for name in tensors):
            return _hugging_face_layout(path, digest, tensors)
        tensors, layout = _out_of_training(tensors)
        architecture = infer_architecture(tensors)
        _check_state(tensors, architecture)
        provenance = {key: str(value) for key, value in metadata.items()} | layout
        return Checkpoint(_name_of(path), digest, architecture, Preprocessing(), tensors, {}, provenance)
    except _Mismatch as error:
        raise CheckpointError(f"{path} is not a DINOv2 backbone that can be used: {on_one_line(error)}") from error


def save_checkpoint(
    path: str | Path,
    state: Mapping[str, Tensor],
    architecture: Architecture,
    *,
    name: str,
    preprocessing: Preprocessing = Preprocessing(),
    provenance: Mapping[str, str] | None = None,
    extra: Mapping[str, Tensor] | None = None,
    dtype: Literal["float32", "float16", "int8"] = "float32",
) -> None:
    """Write our own layout, whole or not at all; the same arguments make the same bytes.

    state   the network's tensors under the official names, `VisionTransformer.state_dict()`
    extra   further tensors, stored as they are; names begin with EXTRA_PREFIX
    dtype   int8: matrix multiplications' weights in 8 bits with a scale per output channel, the rest in float16
    """
    path = Path(path)
    extra = dict(extra or {})
    assert all(key.startswith(EXTRA_PREFIX) for key in extra), list(extra)
    tensors: dict[str, Tensor] = {}
    try:
        _check_state(state, architecture)
        for key, value in state.items():
            value = value.detach().cpu()
            if dtype == "int8" and _MATMUL.fullmatch(key):
                tensors[key], tensors[key + _SCALE_SUFFIX] = quantise(value)
            else:
                tensors[key] = value.to(torch.float32 if dtype == "float32" else torch.float16)
        _check_finite(tensors)  # float16 ends at 65504
    except _Mismatch as error:
        raise CheckpointError(f"cannot save {name} as {dtype} in {path}: {error}") from error
    header = {
        "version": FORMAT_VERSION,
        "name": name,
        "architecture": asdict(architecture),
        "preprocessing": asdict(preprocessing),
        "provenance": dict(provenance or {}),
    }
    tensors |= {key: value.detach().cpu() for key, value in extra.items()}
    # clones, since safetensors refuses tensors that share memory; one key, since it writes several in random order
    tensors = {key: value.clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}
    try:
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"seenit": json.dumps(header, sort_keys=True)})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error


def build_model(
    checkpoint: Checkpoint,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    *,
    fused: bool = False,
    eight_bit: bool = False,
    ranges: ByteRanges | None = None,
) -> VisionTransformer:
    """The network with the checkpoint's weights in memory of its own; in eval mode, gradients off.

    fused      rearrange it for faster inference on a CPU, where that can be done (see cpu_fusion); it cannot be trained
               or saved then
    eight_bit  of a fused one in bfloat16: multiply in 8 bits, where that can be done well (see cpu_int8)
    ranges     for that: an index's own
    """
    with torch.device("meta"):
        model = VisionTransformer(checkpoint.architecture)
    state = {key: value.to(device=device, dtype=dtype, copy=True) for key, value in checkpoint.state.items()}
    model.load_state_dict(state, assign=True)
    model.eval().requires_grad_(False)
    if fused and not (eight_bit and quantise_for_cpu(model, ranges)):
        fuse_for_cpu(model)
    return model


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to 8 bits: weight ~ values * scale.

    weight   (out, in)
    returns  values (out, in) int8 in [-127, 127], scale (out, 1) float32
    """
    weight = weight.float()
    scale = (weight.abs().amax(1, keepdim=True) / 127).clamp_min(1e-12)  # (out, 1); a row of zeros stays zero
    return (weight / scale).round().clamp(-127, 127).to(torch.int8), scale


# Layouts: from named tensors to a checkpoint


def _out_of_training(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The teacher's backbone out of a training run's checkpoint, under official names, and what the file was.

    Such files name a tensor `teacher.backbone.blocks.0.3.norm1.weight`: wrappers' words in front, heads and perhaps the
    student beside it, and blocks in chunks, as FSDP wraps them.
    """
    if any("rope_embed." in name or "storage_tokens" in name for name in tensors):
        raise _Mismatch("it is a DINOv3 backbone, with rotary positions in place of pos_embed; give one of DINOv2")
    words = re.compile(r"^((?:(?:module|teacher|student|model|model_ema|_fsdp_wrapped_module)\.)*)(backbone\.)?")
    named = {name: name.replace("_fsdp_wrapped_module.", "").replace("_orig_mod.", "") for name in tensors}
    fronts = {name: words.match(short)[0] for name, short in named.items()}  # type: ignore[index]
    if not any(fronts.values()) and not any(re.match(r"blocks\.\d+\.\d+\.", name) for name in tensors):
        return tensors, {}
    if any("flat_param" in name for name in tensors):
        raise _Mismatch(SHARD)
    holding = {fronts[name] for name in tensors if named[name].removeprefix(fronts[name]) == "cls_token"}
    if not holding:
        raise _Mismatch("it is a checkpoint of a training run and holds no backbone of a vision transformer")
    front = min(holding, key=lambda one: ("student" in one, len(one)))  # the teacher is what training is for
    state = {
        re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", named[name].removeprefix(front)): value
        for name, value in tensors.items()
        if fronts[name] == front and not re.match(r"(dino|ibot)_(head|loss)\.", named[name].removeprefix(front))
    }
    return state, {"layout": "checkpoint of a training run", "part": front.rstrip(".") or "backbone"}
