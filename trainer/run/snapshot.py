"""The whole state of a run on disk: written whole or not at all, the last few and the best kept, nothing pickled.

A snapshot is a safetensors file: the weights of student, teacher and heads, the optimiser's moments and the watch's
memory as tensors, and the rest (step, configuration, loss scale) as JSON in its header. Random numbers and the place
in the data need no state of their own: both are functions of the seed and the step. A snapshot made by one process can
be resumed by several, and the other way round.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from indexer.atomic_file import atomic_path
from indexer.backbone.tensor_file import read_tensors
from indexer.errors import CheckpointError, SeenitError

from ..config import Config, ConfigError, config_from

FORMAT_VERSION = 2  # 2: with what the run started from and its images
# Keys that say how and where a run computes, not what: they may change between a snapshot and its resumption.
FREE_KEYS = {
    "workers",
    "device",
    "parallel",
    "packed",
    "compile",
    "checkpoint_blocks",
    "snapshot_every",
    "keep_snapshots",
    "show_every",
    "log_every",
    "alarms",
}


@dataclass(frozen=True)
class Snapshot:
    """What a file of `save_snapshot` holds."""

    path: Path
    step: int  # updates done
    config: dict[str, Any]
    state: dict[str, Any]  # JSON: whatever else the run wants back
    tensors: dict[str, Tensor]


def snapshot_path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:09d}.safetensors"


def save_snapshot(
    folder: Path, step: int, config: Config, state: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Path:
    """Write the snapshot after `step` updates; a reader sees all of it or none."""
    header = {"version": FORMAT_VERSION, "step": step, "config": config_as_json(config), "state": dict(state)}
    path = snapshot_path(folder, step)
    write_tensors(path, tensors, {"seenit_snapshot": json.dumps(header)})
    return path


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file, through a temporary one beside it; a SeenitError where that fails, for instance for space."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with atomic_path(path) as temporary:
            save_file(ready, temporary, dict(metadata))
    except (OSError, SafetensorError) as error:
        raise SeenitError(f"cannot write {path}: {error}; make room there, then go on by --resume") from error


def load_snapshot(path: Path) -> Snapshot:
    """Read a snapshot; SeenitError in one line where it is damaged."""
    try:
        _, tensors, metadata = read_tensors(path)
        header = json.loads(metadata["seenit_snapshot"])
        version = header["version"]
        if version != FORMAT_VERSION:
            raise SeenitError(f"{path} is a snapshot of format {version}; resume it with the seenit that wrote it")
        return Snapshot(path, int(header["step"]), dict(header["config"]), dict(header["state"]), tensors)
    except (CheckpointError, KeyError, TypeError, ValueError) as error:
        raise SeenitError(
            f"{path} is damaged or no snapshot; delete it, and --resume goes on from the one before"
        ) from error


def latest_snapshot(folder: Path) -> Path | None:
    return max(list_snapshots(folder).items(), default=(0, None))[1]


def list_snapshots(folder: Path) -> dict[int, Path]:
    """The finished snapshots in a folder by their steps."""
    names = os.listdir(folder) if folder.is_dir() else []
    found = (re.fullmatch(r"step_(\d{9,})\.safetensors", name) for name in names)
    return {int(match[1]): folder / match[0] for match in found if match}


def prune_snapshots(folder: Path, keep: int, also: Iterable[int] = ()) -> None:
    """Delete all but the last `keep` snapshots and those after the steps named in `also`."""
    snapshots = list_snapshots(folder)
    for step in sorted(snapshots)[:-keep]:
        if step not in also:
            snapshots[step].unlink(missing_ok=True)


def check_same_run(snapshot: Snapshot, config: Config) -> None:
    """Refuse to resume with a configuration that would have led elsewhere."""
    made_with = config_from(snapshot.config)  # a key that came later has its default, which means "as before"
    before = config_as_json(made_with)
    for key, value in config_as_json(config).items():
        if key == "steps":
            if value < before[key]:
                raise ConfigError(
                    f"{snapshot.path} is of a run of {before[key]} steps, not {value}; steps can be raised only"
                )
            if snapshot.step > (start := made_with.high_res_start) and value > before[key]:
                raise ConfigError(
                    f"{snapshot.path} is in the stage of high resolution, which began after step {start}: steps cannot"
                    f" be raised any more; leave them at {before[key]}, or start again in another folder"
                )
        elif key not in FREE_KEYS and before[key] != value:
            raise ConfigError(
                f"{snapshot.path} was made with {key} = {before[key]}, not {value};"
                f" resume with the same value, or start again in another folder"
            )


def config_as_json(config: Config) -> dict[str, Any]:
    """Tuples become lists, as in a file."""
    return json.loads(json.dumps(asdict(config)))
