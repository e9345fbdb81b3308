"""What a training run is: one flat frozen dataclass, presets with the published values, and changes by name.

Everything that happens over time is a share of the run, so that a shorter run keeps its shape: the published 80 epochs
of warm-up among 500 are `warmup = 0.16`, whatever `steps` is.
"""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from indexer.backbone.vit import Architecture
from indexer.errors import SeenitError


class ConfigError(SeenitError):
    """A key that nobody reads, or a value that cannot be."""


@dataclass(frozen=True)
class Config:
    """Every choice of a run. Values are the reference's ViT-S/14 unless a preset says otherwise."""

    method: Literal["dinov2", "views"] = "dinov2"  # what is learnt; views: see view_distillation, which reads VIEW_KEYS

    # The network
    arch: str = "vits14"  # a name in NETWORKS, or ORIGIN: that of the backbone that training starts from
    needs_backbone: bool = False  # refuse to start from random weights
    registers: int = 0  # extra tokens (Darcet et al. 2024); 4 in the official models that have them
    layerscale: float = 1e-5  # initial value of every LayerScale
    drop_path: float = 0.0  # share of images that skip a block's branch

    # The run
    steps: int = 625_000  # updates of the weights
    batch_size: int = 64  # images in a batch, over all processes together; each process has an equal part
    accumulate: int = 1  # batches whose gradients are summed before an update
    seed: int = 0
    workers: int | None = None  # processes that decode and crop; 0: this one does; None (auto): one a core, less one
    engine: Literal["auto", "pillow", "torch"] = "auto"  # Pillow in workers, or torch on the device (auto: on CUDA)
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: half of CUDA's choice, else float32
    half_residual: bool = False  # keep tokens between blocks in half precision as well, as the reference does
    parallel: Literal["ddp", "fsdp"] = "ddp"  # under torchrun: copies of the network, or its shards
    packed: bool = True  # global and local crops through the network in one sequence
    compile: bool | None = None  # torch.compile of the blocks; None (auto): on CUDA
    checkpoint_blocks: bool = False  # recompute each block in backward: a third more work, far less memory
    snapshot_every: int = 1000  # steps
    keep_snapshots: int = 3  # the last ones
    show_every: int = 1000  # steps between images for the eye; 0: none
    log_every: int = 10  # steps between lines of metrics.jsonl
    alarms: bool = True  # stop when the run collapses

    # Crops (multi-crop, Caron et al. 2020)
    global_size: int = 224  # pixels, side of the 2 global crops
    local_size: int = 98  # pixels, side of the local crops
    num_local: int = 8
    global_scale: tuple[float, float] = (0.32, 1.0)  # share of the image's area
    local_scale: tuple[float, float] = (0.05, 0.32)
    flip_probability: float = 0.5
    jitter_probability: float = 0.8  # brightness .4, contrast .4, saturation .2, hue .1
    grey_probability: float = 0.2
    # Blur as the released weights saw it. Published are 1, 0.1 and 0.5 (Grill et al. 2020, and the call in the
    # reference), but its code applies blur with one minus these, as its authors have confirmed.
    blur_first: float = 0.0  # probability of blur in the first global crop
    blur_second: float = 0.9  # in the second
    blur_local: float = 0.5  # in a local one
    solarise_probability: float = 0.2  # in the second global crop

    # A short stage of high resolution at the end, with all schedules once more, compressed (DINOv2, appendix B.2)
    high_res_share: float = 0.0  # of the steps; the paper's: 10,000 of 625,000
    high_res_rate: float = 0.1  # factor on the peak rate; the paper reduces it and does not say by how much
    high_res_global_size: int = 518
    high_res_local_size: int = 224

    # Masks (iBOT)
    mask_probability: float = 0.5  # share of global crops that are masked
    mask_ratio: tuple[float, float] = (0.1, 0.5)  # share of a masked crop's patches

    # Heads
    prototypes: int = 131_072
    head_hidden: int = 2048
    head_bottleneck: int = 384
    head_layers: int = 3
    separate_heads: bool = True  # one for CLS and one for patches, or one for both
    ibot_prototypes: int = 131_072  # of the patches' own head

    # Losses
    dino_weight: float = 1.0
    ibot_weight: float = 1.0
    koleo_weight: float = 0.1
    student_temperature: float = 0.1
    teacher_temperature: float = 0.07
    teacher_temperature_start: float = 0.04
    teacher_temperature_warmup: float = 0.06  # share of the steps
    targets: Literal["sinkhorn", "centering"] = "sinkhorn"

    # The teacher
    momentum: float = 0.994  # of the moving average at the first step
    momentum_end: float = 1.0  # at the last

    # Optimisation
    rate: float = 7.07e-4  # for 1024 images an update; the rate in use is this by sqrt(images / 1024)
    rate_end: float = 1e-6
    head_rate: float = 1.0  # factor on the rate of the heads
    warmup: float = 0.16  # share of the steps
    weight_decay: float = 0.04
    weight_decay_end: float = 0.2
    beta1: float = 0.9
    beta2: float = 0.999
    clip: float = 3.0  # largest norm of the gradients of backbone and heads, each by itself; 0: any
    layer_decay: float = 1.0  # rate of a block over that of the block after it
    patch_embed_rate: float = 0.2  # factor on the rate of the patch embedding
    freeze_last_layer: float = 0.002  # share of the steps in which the prototypes stay
    freeze_backbone: float = 0.0  # share of the steps in which only the heads learn
    train_blocks: int = 0  # only the last so many blocks learn; 0: all of the network

    # Views of a photo as its own features
    view_share: float = 0.5  # of the views that are taken from elsewhere as well; the others differ in light alone

    # Distillation (DINOv2, section 5): a frozen larger backbone is the teacher
    distill_from: str = ""  # the folder of a run, or a backbone's name or path; empty: the student's own average

    def __post_init__(self) -> None:
        for name, choices in _choices().items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; choose {' or '.join(choices)}")
        if self.arch not in NETWORKS and self.arch != ORIGIN:
            raise ConfigError(_unknown("network", self.arch, list(NETWORKS)))
        for name in ("steps", "batch_size", "accumulate", "snapshot_every", "keep_snapshots", "log_every"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("prototypes", "ibot_prototypes", "head_hidden", "head_bottleneck", "head_layers"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("workers", self.workers is None or self.workers >= 0, "0 or more, or auto")
        for name in ("registers", "num_local", "train_blocks", "show_every", "clip", "weight_decay"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        for name in _SHARES:
            self._require(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        for name in ("global_scale", "local_scale", "mask_ratio"):
            low, high = getattr(self, name)
            self._require(name, 0 < low <= high <= 1, "two rising shares in (0, 1]")
        for name in ("student_temperature", "teacher_temperature", "teacher_temperature_start", "rate", "layerscale"):
            self._require(name, getattr(self, name) > 0, "above 0")
        for name in ("dino_weight", "ibot_weight", "koleo_weight", "weight_decay_end"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        for name in ("rate_end", "head_rate", "layer_decay", "patch_embed_rate", "high_res_rate"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        for value in asdict(self).values():
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{value} is no value for a run; give a finite number")
        self._require("drop_path", self.drop_path < 1, "below 1")
        self._require("dino_weight", self.dino_weight + self.ibot_weight > 0, "above 0 where ibot_weight is 0")
        patch = 1 if self.arch == ORIGIN else NETWORKS[self.arch].patch_size  # of an origin the run itself checks it
        for name in ("global_size", "local_size", "high_res_global_size", "high_res_local_size"):
            size = getattr(self, name)
            self._require(name, size > 0, "above 0")
            if (self.high_res_share or not name.startswith("high_res")) and not self.distill_from:
                self._require(name, size % patch == 0, f"a multiple of the patch size {patch}")

    def _require(self, name: str, holds: bool, what: str) -> None:
        if not holds:
            raise ConfigError(f"{name} is {getattr(self, name)}; it must be {what}")

    @property
    def images_per_update(self) -> int:
        return self.batch_size * self.accumulate

    @property
    def high_res_start(self) -> int:
        """The first step of the stage of high resolution; `steps` where there is none."""
        return self.steps - round(self.high_res_share * self.steps)

    @property
    def scaled_rate(self) -> float:
        """The peak rate for this batch size; the reference's square-root rule."""
        return self.rate * math.sqrt(self.images_per_update / 1024)

    def architecture(self) -> Architecture:
        """The network that this run builds when it starts from random weights.

        With registers the position embeddings are stretched as in the official networks that have them.
        """
        if self.arch == ORIGIN:
            raise ConfigError(f"arch is {ORIGIN}, but no backbone is given to start from; give one by --from")
        base = NETWORKS[self.arch]
        return replace(
            base,
            num_registers=self.registers,
            interpolate_offset=0.0 if self.registers else base.interpolate_offset,
            interpolate_antialias=bool(self.registers),
            layerscale=self.layerscale,
            drop_path=self.drop_path,
            image_size=self.global_size,
        )


_SHARES = (
    "view_share",
    "drop_path",
    "high_res_share",
    "mask_probability",
    "flip_probability",
    "jitter_probability",
    "grey_probability",
    "blur_first",
    "blur_second",
    "blur_local",
    "solarise_probability",
    "teacher_temperature_warmup",
    "momentum",
    "momentum_end",
    "warmup",
    "freeze_last_layer",
    "freeze_backbone",
    "beta1",
    "beta2",
)

ORIGIN = "origin"
NETWORKS = {
    "tiny": Architecture(patch_size=14, embed_dim=64, depth=3, num_heads=2),
    "vitti14": Architecture(embed_dim=192, depth=12, num_heads=3),
    "vits14": Architecture(embed_dim=384, depth=12, num_heads=6),
    "vitb14": Architecture(embed_dim=768, depth=12, num_heads=12),
    "vitl14": Architecture(embed_dim=1024, depth=24, num_heads=16, ffn="swiglu"),
    "vitl16": Architecture(patch_size=16, embed_dim=1024, depth=24, num_heads=16),
    "vitg14": Architecture(embed_dim=1536, depth=40, num_heads=24, ffn="swiglu"),
}

# Published: the configuration files of the reference (vitl16_short, vitl14, vitg14) and the paper's table of
# hyperparameters (S and B, which it distils). `batch_size` there is that of one GPU; here it is that of all processes,
# for one machine of 8 GPUs with the published number on each. The published runs have 2048 or 3072 images over all
# of their GPUs; `rate` follows the batch.
_FROM_SCRATCH: dict[str, Any] = {"drop_path": 0.4, "rate": 2e-4}
PRESETS: dict[str, dict[str, Any]] = {
    "vits14": {},
    "vitb14": {"arch": "vitb14"},
    "vitl14": {"arch": "vitl14", "batch_size": 8 * 32, **_FROM_SCRATCH},
    "vitg14": {"arch": "vitg14", "batch_size": 8 * 12, **_FROM_SCRATCH},
    "vitl16_short": {
        "arch": "vitl16",
        "batch_size": 8 * 64,
        "steps": 125_000,
        "drop_path": 0.3,
        "local_size": 96,
        "prototypes": 65_536,
        "head_bottleneck": 256,
        "separate_heads": False,
        "targets": "centering",
        "teacher_temperature_warmup": 0.3,
        "momentum": 0.992,
        "rate": 4e-3,
        "warmup": 0.1,
        "weight_decay_end": 0.4,
        "layer_decay": 0.9,
        "freeze_last_layer": 0.01,
    },
    "tiny": {
        "arch": "tiny",
        "steps": 20,
        "batch_size": 8,
        "workers": 0,
        "global_size": 56,
        "local_size": 28,
        "num_local": 2,
        "prototypes": 256,
        "ibot_prototypes": 256,
        "head_hidden": 64,
        "head_bottleneck": 32,
        "layerscale": 1.0,
        "rate": 5e-3,
        "momentum": 0.95,
        "freeze_last_layer": 0.05,
        "snapshot_every": 10,
        "show_every": 0,
        "log_every": 1,
    },
    # A few hundred photos, a trained backbone, one machine: heads first, then a small rate that fades towards the
    # first blocks, and a teacher that follows within hundreds of steps.
    "adapt": {
        "needs_backbone": True,
        "steps": 1000,
        "batch_size": 8,
        "global_size": 224,
        "local_size": 98,
        "num_local": 4,
        "prototypes": 4096,
        "ibot_prototypes": 4096,
        "head_hidden": 1024,
        "head_bottleneck": 256,
        "rate": 5e-4,
        "rate_end": 1e-7,
        "head_rate": 10.0,
        "warmup": 0.1,
        "layer_decay": 0.75,
        "weight_decay_end": 0.04,
        "teacher_temperature_warmup": 0.1,
        "momentum": 0.994,
        "momentum_end": 0.999,
        "freeze_last_layer": 0.01,
        "freeze_backbone": 0.2,
        "snapshot_every": 100,
        "show_every": 250,
    },
    # A frozen teacher sees a crop, the student the same crop in other light: minutes, and few weights move far. The
    # rate is 2e-5 for 12 images; at 1e-4 it diverges.
    "views": {
        "method": "views",
        "arch": ORIGIN,
        "steps": 200,
        "batch_size": 12,
        "global_size": 154,
        "rate": 1.85e-4,
        "rate_end": 1e-7,
        "warmup": 0.3,
        "weight_decay": 0.02,
        "clip": 1.0,
    },
}
# What a run by views reads; any other key is refused
VIEW_KEYS = (
    *("steps", "batch_size", "seed", "workers", "device", "global_size", "view_share", "train_blocks"),
    *("rate", "rate_end", "warmup", "weight_decay", "clip"),
)


def make_config(
    preset: str = "vits14", *, file: str | Path | None = None, changes: Mapping[str, Any] | Sequence[str] = ()
) -> Config:
    """A preset, then a TOML file's keys, then single changes; later ones win.

    preset   a name in PRESETS; the file may name another one under `preset`
    file     a flat TOML file of Config's keys, or a run's config.json
    changes  {"steps": 100} or ["steps=100", "global_scale=0.4,1.0"], as `--set` gives them

    Raises ConfigError, for an unknown key with the nearest known one, and for one that the preset does not read.
    """
    from_file = _read_file(Path(file)) if file is not None else {}
    preset = from_file.pop("preset", preset)
    if preset not in PRESETS:
        raise ConfigError(_unknown("preset", str(preset), list(PRESETS)))
    pairs = changes.items() if isinstance(changes, Mapping) else map(_split, changes)
    given = from_file | dict(pairs)
    config = config_from({**PRESETS[preset], **given})
    for key in given:
        if PRESETS[preset].get("method") == "views":
            if key not in VIEW_KEYS:
                raise ConfigError(f"the preset views does not read {key}; it reads {', '.join(VIEW_KEYS)}")
        elif key in ("method", "view_share") and getattr(config, key) != getattr(Config, key):
            raise ConfigError(f"{key} is for the preset views, and this is {preset}; leave it out")
    return config


def config_from(values: Mapping[str, Any]) -> Config:
    """A Config of named values, each as its own type or as text; what is not named has its default."""
    types = get_type_hints(Config)
    for key in values:
        if key not in types:
            raise ConfigError(_unknown("key", key, list(types)))
    return Config(**{key: _convert(key, value, types[key]) for key, value in values.items()})


def _split(change: str) -> tuple[str, str]:
    key, sign, value = change.partition("=")
    if not sign:
        raise ConfigError(f"{change!r} changes nothing; write KEY=VALUE, for instance steps=1000")
    return key.strip().replace("-", "_"), value.strip()


def _convert(key: str, value: Any, wanted: Any) -> Any:
    if get_origin(wanted) is Literal:
        return value  # Config itself checks the choices
    if get_origin(wanted) is UnionType:  # of something and None
        if value is None or value == "auto":
            return None
        wanted = get_args(wanted)[0]
    try:
        if get_origin(wanted) is tuple:
            parts = value.strip("()[] ").split(",") if isinstance(value, str) else value
            low, high = (float(part) for part in parts)
            return low, high
        if wanted is bool:
            words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
            return words[str(value).lower()]
        if wanted is int:
            number = float(value)  # 1e5 is a number of steps, too
            if number != int(number) or isinstance(value, bool):
                raise ValueError(value)
            return int(value) if isinstance(value, str) and value.lstrip("+-").isdigit() else int(number)
        if wanted is float and isinstance(value, bool):
            raise ValueError(value)
        return wanted(value)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        raise ConfigError(f"{key} is {value!r}; it must be {kinds.get(wanted, 'two numbers')}") from error


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}; give a TOML file of keys") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}; write lines such as: steps = 1000") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}; give a run's config.json or a TOML file") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is no JSON object; give a run's config.json or a TOML file")
    tables = [key for key, value in values.items() if isinstance(value, dict)]
    if tables:
        raise ConfigError(f"{path} has the table [{tables[0]}]; keys stand without tables")
    return values


def _choices() -> dict[str, tuple[str, ...]]:
    hints = get_type_hints(Config)
    return {item.name: get_args(hints[item.name]) for item in fields(Config) if get_origin(hints[item.name]) is Literal}


def _unknown(what: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"no {what} is called {name!r}; the nearest is {near[0]}"
