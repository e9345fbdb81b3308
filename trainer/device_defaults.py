"""What a run takes where its configuration says `auto`: by the device that it computes on."""

import importlib.util
import os
from dataclasses import replace
from typing import Any

import torch

from indexer.backbone.dtype import best_dtype

from .config import Config


def with_device_defaults(config: Config, device: torch.device) -> Config:
    """The configuration without any `auto` but the device's name.

    On CUDA: half precision, blocks compiled where Triton is there to do it, crops made on the device. Elsewhere
    float32, plain blocks, crops made by Pillow. Everywhere as many decoders as this process's part of the cores, less
    the one that it needs itself.
    """
    on_cuda = device.type == "cuda"
    chosen: dict[str, Any] = {}
    if config.precision == "auto":
        chosen["precision"] = str(best_dtype(device)).removeprefix("torch.") if on_cuda else "float32"
    if config.compile is None:
        chosen["compile"] = on_cuda and importlib.util.find_spec("triton") is not None
    if config.engine == "auto":
        chosen["engine"] = "torch" if on_cuda else "pillow"
    if config.workers is None:
        chosen["workers"] = _spare_cores()
    return replace(config, **chosen)


def _spare_cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's processes on this machine
    return max(1, cores // beside - 1)
