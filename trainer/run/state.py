"""A run in memory: its networks with their first weights, its optimiser, and who is taught by whom."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from indexer.backbone.cache import backbone_path
from indexer.backbone.checkpoint import build_model, load_checkpoint
from indexer.backbone.layouts import Checkpoint, Preprocessing
from indexer.backbone.tensor_file import read_tensors
from indexer.backbone.vit import Architecture, VisionTransformer
from indexer.errors import SeenitError

from ..config import NETWORKS, ORIGIN, Config, ConfigError, config_from
from ..device_defaults import with_device_defaults
from ..model.distributed import World, full_tensor, parallelize
from ..model.optim import frozen_steps, make_optimiser
from ..model.student_teacher import (
    Centers,
    FeatureTeacher,
    Network,
    make_network,
    make_predictor,
    prepare_blocks,
    set_learning,
)
from .collapse import CollapseMonitor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HEAD_KEYS = ("prototypes", "ibot_prototypes", "head_hidden", "head_bottleneck", "head_layers", "separate_heads")


@dataclass
class Run:
    """Everything that a run changes, and what it needs to do so."""

    config: Config
    device: torch.device
    world: World
    name: str  # of the backbone that will be written
    architecture: Architecture
    preprocessing: Preprocessing
    provenance: dict[str, str]
    images: str  # digest of what it is trained on, see sources.fingerprint
    student: Network
    teacher: Network | FeatureTeacher  # whose word counts
    average: Network  # of the student's weights: the teacher itself, unless a larger one teaches
    centers: Centers
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    watch: CollapseMonitor
    parallel: nn.Module | None = None  # the student, or DDP around it
    step: int = 0  # updates done
    loss: float = float("nan")
    rank: float = 0.0  # effective rank of the embeddings at the last check
    best: tuple[float, int] = (0.0, 0)  # such a rank, and the step of the snapshot that has the highest
    unreadable: int = 0
    metrics: list[dict[str, Any]] = field(default_factory=list)  # not yet written
    board: Any = None  # TensorBoard's writer, where it is installed

    @property
    def autocast(self) -> Callable[[], AbstractContextManager[Any]]:
        dtype = DTYPES[self.config.precision]
        if dtype == torch.float32:
            return nullcontext
        return partial(torch.autocast, self.device.type, dtype)


def start_run(config: Config, origin: Checkpoint | None, device: torch.device, world: World, images: str = "") -> Run:
    """Networks with their first weights, spread over the processes; the same in each of them.

    The run's configuration says what `auto` stands for on this device.
    """
    config = with_device_defaults(config, device)
    torch.manual_seed(config.seed)
    preprocessing, name, provenance = Preprocessing(), config.arch, {"trained_by": "seenit", "arch": config.arch}
    if origin is None:
        architecture = config.architecture()
        check_sizes(config, architecture)
        vit = VisionTransformer(architecture)
        state = vit.state_dict()
    else:
        architecture = replace(origin.architecture, drop_path=config.drop_path)
        preprocessing, name = origin.preprocessing, f"{origin.name}_trained"
        provenance |= {"arch": origin.name, "from": origin.hash}
        state = build_model(origin).state_dict()
        check_sizes(config, architecture)
    taught = _load_teacher(config.distill_from) if config.distill_from else None
    if isinstance(taught, tuple):
        network, their_config = taught
        config = replace(config, **{key: getattr(their_config, key) for key in _HEAD_KEYS})
        _check_same_patches(config, architecture, network.backbone.architecture)
        student, average = (_with_heads(architecture, state, config) for _ in range(2))
        teacher: Network | FeatureTeacher = network
    elif taught is not None:
        width = taught.architecture.embed_dim
        _check_same_patches(config, architecture, taught.architecture)
        config = replace(config, num_local=0)  # features are compared where both see the same crop
        student, average = (make_predictor(make_vit(architecture, state), width, config) for _ in range(2))
        teacher = FeatureTeacher(taught)
    else:
        student, average = (_with_heads(architecture, state, config) for _ in range(2))
        teacher = average
    average.load_state_dict(student.state_dict())
    for network_ in {id(n): n for n in (student, teacher, average)}.values():
        network_.to(device)
    widths = _score_widths(teacher, config)
    average.requires_grad_(False).eval()
    teacher.requires_grad_(False).eval()
    student.train()
    set_learning(student, config, backbone=True)
    _prepare(student, config, recompute=config.checkpoint_blocks)
    _prepare(teacher, config)
    if world.size > 1 and config.parallel == "fsdp":
        for network_ in {id(n): n for n in (student, teacher, average)}.values():
            _shard(network_, device, config)
    return Run(
        config=config,
        device=device,
        world=world,
        name=name,
        architecture=replace(architecture, drop_path=0.0),
        preprocessing=preprocessing,
        provenance=provenance,
        images=images,
        student=student,
        teacher=teacher,
        average=average,
        centers=Centers(*widths).to(device),
        optimiser=make_optimiser(student, architecture.depth, config),
        scaler=torch.amp.GradScaler(device.type, enabled=config.precision == "float16"),
        watch=CollapseMonitor(config.steps, float16=config.precision == "float16"),
    )


def enter_high_resolution(run: Run) -> None:
    """Begin the last stage: position embeddings of its size, and an optimiser without memory, as in a run of its own.

    Every process must call it: shards are gathered, one network after the other, and distributed again.
    """
    config = run.config
    side = config.high_res_global_size // run.architecture.patch_size
    averages = run.teacher is run.average
    run.parallel = None  # hooks of the old wrapper are on parameters that go
    if run.world.size > 1 and config.parallel == "fsdp":
        run.student = _distribute_again(run, run.student, side)
        _prepare(run.student, config, recompute=config.checkpoint_blocks)
        _shard(run.student, run.device, config)
        run.average = _distribute_again(run, run.average, side).requires_grad_(False).eval()
        if averages:
            _prepare(run.average, config)
            run.teacher = run.average
        _shard(run.average, run.device, config)
    else:
        for network in (run.student, run.average):
            _resize_positions(network.backbone, side)
    run.architecture = replace(run.architecture, image_size=side * run.architecture.patch_size)
    run.optimiser = make_optimiser(run.student, run.architecture.depth, config)


def _distribute_again(run: Run, old: Network, side: int) -> Network:
    """A whole copy of a sharded network with position embeddings for a grid of `side`, not yet sharded."""
    state = {name: full_tensor(value).cpu() for name, value in old.state_dict().items()}
    vit = VisionTransformer(old.backbone.architecture)
    if isinstance(run.teacher, FeatureTeacher):
        network = make_predictor(vit, run.teacher.backbone.architecture.embed_dim, run.config)
    else:
        network = make_network(vit, run.config)
    network.load_state_dict(state)
    _resize_positions(network.backbone, side)
    network.to(run.device).train()
    set_learning(network, run.config, backbone=True)
    return network


def _prepare(network: Network | FeatureTeacher, config: Config, recompute: bool = False) -> None:
    prepare_blocks(network.backbone, recompute=recompute, compiled=config.compile, half_residual=config.half_residual)


def _shard(network: Network | FeatureTeacher, device: torch.device, config: Config) -> None:
    parallelize(network, "fsdp", device, list(network.backbone.blocks), DTYPES[config.precision])


def _resize_positions(vit: VisionTransformer, side: int) -> None:
    with torch.no_grad():
        positions = vit.positions(side, side)  # (1, 1 + side * side, D)
    learns = vit.pos_embed.requires_grad
    vit.pos_embed = nn.Parameter(positions.to(vit.pos_embed.dtype).clone(), requires_grad=learns)
    vit.architecture = replace(vit.architecture, image_size=side * vit.architecture.patch_size)


def described(config: Config, origin: Checkpoint) -> Config:
    """The configuration with the network that it starts from in place of the one it names, to be kept with the run."""
    found = origin.architecture
    shape = (found.patch_size, found.embed_dim, found.depth, found.num_heads, found.ffn)
    known = {(a.patch_size, a.embed_dim, a.depth, a.num_heads, a.ffn): name for name, a in NETWORKS.items()}
    return replace(config, arch=known.get(shape, ORIGIN), registers=found.num_registers)


def read_backbone(spec: str | Path) -> Checkpoint:
    """The weights of a backbone given by path or by name; an official one is fetched unless it is here."""
    path = Path(spec).expanduser()
    return load_checkpoint(path if path.is_file() else backbone_path(str(spec)))


def settle_learning(run: Run) -> None:
    """At the first step of this process, and where the heads' head start ends, settle what learns and who syncs it."""
    changes = run.step == frozen_steps(run.config)
    if run.parallel is not None and not changes:
        return
    run.parallel = None
    gc.collect()  # the old wrapper's hooks on the gradients go with it
    if run.config.parallel == "fsdp" and run.world.size > 1:
        run.parallel = run.student  # shards cannot change their mind; the frozen backbone's rate is 0 instead
        return
    set_learning(run.student, run.config, backbone=run.step >= frozen_steps(run.config))
    run.parallel = parallelize(run.student, "ddp", run.device, [], torch.float32)


def choose_device(config: Config) -> torch.device:
    """Where this process computes; under torchrun each has a GPU of its own."""
    local = os.environ.get("LOCAL_RANK", "0")
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(f"cuda:{local}" if name == "cuda" else name)
        torch.empty(1, device=device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise SeenitError(f"device {config.device!r} cannot be used: {reason[0]}; choose auto or cpu") from error
    return device


@contextmanager
def float32_as_tf32(device: torch.device) -> Iterator[None]:
    """On CUDA, products of what stays float32 in TF32, as in the reference; the setting is the process's."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def telling_of_memory(config: Config, device: torch.device) -> Iterator[None]:
    """One line on what to lower where memory is short; on the CPU torch has no error of its own for that."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and "allocate memory" not in str(error) and "not enough memory" not in str(error):
            raise
        if config.method == "views":
            raise SeenitError(
                f"no memory for a batch of {config.batch_size} crops of {config.global_size} pixels on {device}:"
                " lower batch_size or global_size"
            ) from error
        raise SeenitError(
            f"no memory for {config.prototypes:,} prototypes and a batch of {config.batch_size} images on {device}:"
            " lower batch_size (accumulate makes up for it) or prototypes, or set checkpoint_blocks=true"
        ) from error


def make_vit(architecture: Architecture, state: dict[str, Tensor]) -> VisionTransformer:
    vit = VisionTransformer(architecture)
    vit.load_state_dict(state)
    return vit


def _with_heads(architecture: Architecture, state: dict[str, Tensor], config: Config) -> Network:
    return make_network(make_vit(architecture, state), config)


def _load_teacher(where: str) -> tuple[Network, Config] | VisionTransformer:
    """Who teaches in a distillation: a run's backbone with its heads, or a backbone alone."""
    folder = Path(where).expanduser()
    if not folder.is_dir():
        return build_model(read_backbone(where))
    vit = build_model(read_backbone(folder / "backbone.safetensors"))
    _, heads, metadata = read_tensors(folder / "heads.safetensors")
    try:
        config = config_from(json.loads(metadata["seenit_heads"]))
        network = make_network(vit, config)
        state = {f"backbone.{name}": value for name, value in vit.state_dict().items()} | heads
        network.load_state_dict(state)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise SeenitError(f"{folder} holds no heads that fit its backbone; give the folder of another run") from error
    return network, config


def _score_widths(teacher: Network | FeatureTeacher, config: Config) -> tuple[int, int]:
    """K and K'."""
    if isinstance(teacher, FeatureTeacher):
        return (teacher.backbone.architecture.embed_dim,) * 2
    return config.prototypes, config.prototypes if teacher.ibot_head is None else config.ibot_prototypes


def check_sizes(config: Config, architecture: Architecture) -> None:
    """ConfigError where crops do not divide into patches, or more blocks are to learn than there are."""
    sizes = [config.global_size]
    if config.method == "dinov2":
        sizes.append(config.local_size)
    if config.high_res_share:
        sizes += [config.high_res_global_size, config.high_res_local_size]
    wrong = [size for size in sizes if size % architecture.patch_size]
    if wrong:
        raise ConfigError(
            f"crops of {wrong[0]} pixels do not divide into patches of {architecture.patch_size};"
            f" set sizes to multiples of {architecture.patch_size}"
        )
    if config.train_blocks > architecture.depth:
        raise ConfigError(f"train_blocks is {config.train_blocks}, the network has {architecture.depth} blocks")


def _check_same_patches(config: Config, student: Architecture, teacher: Architecture) -> None:
    if student.patch_size != teacher.patch_size:
        raise SeenitError(
            f"{config.distill_from} has patches of {teacher.patch_size} pixels and the student of"
            f" {student.patch_size}; distil between networks with the same"
        )
