"""One check of the trainer and of the indexer's network on a GPU: right numbers, speed, memory, a real run.

    python tests/benchmarks/gpu_check.py [--minutes 8] [--tar photos.tar] [--only abcde] [--dry-run-cpu]

From the project's root; PYTHONPATH=. where it is not installed. Each part has its share of the time and stops when that
is over; a failure is a row of the table, and the next part goes on. Rows go to $OUT/gpu_check.jsonl as well, where OUT
is set. Exit 1 where a row failed. --dry-run-cpu rehearses all of it with tiny networks on the CPU, in some two minutes.

a  attention, forward, a whole step, the torch engine: the device against the CPU, in every way of computing
b  images/s and peak memory of a step (vits14, vitl14; 2 x 224 + 8 x 98 px), ways on and off; where its time goes; how
   often it waits for the device; what single choices bring
c  the same beside a plain step as the reference does it (see reference_step.py)
d  the indexer's way from pixels to descriptors, by batch size
e  a minute of training on a tar (or on images made here) with each engine, stopped and resumed

Not run on a GPU yet.
"""

import argparse
import copy
import gc
import io
import json
import math
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from reference_step import ReferenceStep
from torch import Tensor, nn
from training_speed import TrainingStep

from indexer.backbone import attention as attention_module
from indexer.backbone.attention import Layout
from indexer.backbone.vit import ARCHITECTURES, Architecture, VisionTransformer
from indexer.descriptor.config import DescriptorConfig
from indexer.descriptor.pooling import pool
from trainer.config import NETWORKS, Config, make_config
from trainer.data.augment import draw_views
from trainer.data.augment_torch import cut_with_torch
from trainer.data.masking import draw_masks, pick_masked
from trainer.data.stream import augmentation_of
from trainer.device_defaults import with_device_defaults
from trainer.evaluate.labelled import as_backbone
from trainer.model.losses import cross_entropy, sinkhorn
from trainer.model.student_teacher import Centers, MaskedCrops, compute_losses, make_network, prepare_blocks
from trainer.run.state import DTYPES, float32_as_tf32

WANTED = 1.5  # times the reference's speed
SHARES = {"a": 0.16, "e": 0.44, "b": 0.78, "c": 0.91, "d": 0.99}  # by which share of the time each part is over
HAS_XFORMERS, HAS_VARLEN = vars(attention_module)["xformers_ops"] is not None, attention_module.HAS_VARLEN


@dataclass
class Check:
    """What all parts share: the device, the clock and the table."""

    device: torch.device
    tiny: bool  # a rehearsal
    limit_s: float
    rows: list[dict[str, Any]] = field(default_factory=list)
    started: float = field(default_factory=time.time)

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    def row(self, part: str, what: str, **values: Any) -> None:
        shown = {name: _short(value) for name, value in values.items()}
        self.rows.append({"part": part, "what": what, **shown})
        told = ", ".join(f"{name}={value}" for name, value in shown.items())
        print(f"[{time.time() - self.started:6.1f}s] {part} | {what:62s} | {told}", flush=True)

    @contextmanager
    def guarded(self, part: str, what: str) -> Iterator[None]:
        """A failure becomes a row; memory is given back."""
        try:
            yield
        except Exception as error:
            self.row(part, what, FAILED=_described(error))
        finally:
            self.give_back()

    def give_back(self) -> None:
        gc.collect()
        if self.on_cuda:
            torch.cuda.empty_cache()

    def left(self, part: str) -> float:
        """Seconds until the part should be over."""
        return self.started + SHARES[part] * self.limit_s - time.time()

    def sync(self) -> None:
        if self.on_cuda:
            torch.cuda.synchronize()

    def timed(self, call: Callable[[], object], seconds: float, warmup: int = 2, most: int = 30) -> float:
        """Median seconds of a call."""
        for _ in range(warmup):
            call()
        self.sync()
        times: list[float] = []
        start = time.perf_counter()
        while len(times) < 2 or (time.perf_counter() - start < seconds and len(times) < most):
            before = time.perf_counter()
            call()
            self.sync()
            times.append(time.perf_counter() - before)
        return float(np.median(times))

    def reset_peak(self) -> None:
        if self.on_cuda:
            torch.cuda.reset_peak_memory_stats()

    def peak_gb(self) -> float:
        return torch.cuda.max_memory_allocated() / 1e9 if self.on_cuda else math.nan


def _short(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return round(value, 6 if abs(value) < 1 else 2) if math.isfinite(value) else None  # JSON has no word for others


def _described(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error)[:300]} ({Path(last.filename).name}:{last.lineno})"


def gap(one: Tensor, two: Tensor) -> float:
    """Largest difference over the largest value of the second; infinite where there is a NaN."""
    one, two = one.detach().cpu().double(), two.detach().cpu().double()
    share = float((one - two).abs().max() / two.abs().max().clamp_min(1e-30))
    return math.inf if math.isnan(share) else share


# ---- a: the same numbers ----


def part_a(check: Check) -> None:
    check.row(
        "a",
        "machine",
        torch=torch.__version__,
        cuda=str(torch.version.cuda),
        device=torch.cuda.get_device_name() if check.on_cuda else "cpu",
        cores=os.cpu_count(),
        xformers=HAS_XFORMERS,
        varlen=HAS_VARLEN,
    )
    attention_kernels(check)
    forwards(check)
    steps(check)
    engines(check)


def kernels_of(check: Check) -> dict[str, Callable[..., Tensor]]:
    kernels: dict[str, Callable[..., Tensor]] = {
        "attention()": attention_module.attention,
        "_torch_attention": attention_module._torch_attention,
    }
    if check.on_cuda and HAS_VARLEN:
        kernels["_varlen_attention"] = attention_module._varlen_attention
    if check.on_cuda and HAS_XFORMERS:
        kernels["_xformers_attention"] = attention_module._xformers_attention
    return kernels


def attention_kernels(check: Check) -> None:
    """Each kernel against float64 on the CPU, there and back, on views as the network makes them."""
    layouts = [((4, 257),), ((3, 257), (7, 50)), ((2, 261), (3, 54)), ((1, 1370), (1, 257))]
    if check.tiny:
        layouts = [((2, 17),), ((2, 17), (3, 5))]
    heads, dim = (2, 16) if check.tiny else (6, 64)
    limits = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 5e-3}
    for name, kernel in kernels_of(check).items():
        for dtype, limit in limits.items():
            half_only = name in ("_varlen_attention", "_xformers_attention")
            if (dtype == "float32" and half_only) or (dtype == "float16" and not check.on_cuda):
                continue
            what = f"attention {name} {dtype}"
            with check.guarded("a", what):
                gaps = [kernel_gaps(check, kernel, layout, DTYPES[dtype], heads, dim) for layout in layouts]
                forward, backward = (max(values) for values in zip(*gaps, strict=True))
                check.row("a", what, forward=forward, backward=backward, ok=max(forward, backward) < limit)


def kernel_gaps(
    check: Check,
    kernel: Callable[..., Tensor],
    layout: Layout,
    dtype: torch.dtype,
    heads: int,
    dim: int,
) -> tuple[float, float]:
    torch.manual_seed(0)
    tokens = sum(count * length for count, length in layout)
    qkv = torch.randn(tokens, 3 * heads * dim).to(dtype)
    weight = torch.randn(tokens, heads, dim)
    ways: list[tuple[Callable[..., Tensor], torch.device, torch.dtype]] = [
        (attention_module._torch_attention, torch.device("cpu"), torch.float64),
        (kernel, check.device, dtype),
    ]
    found = []
    for run, device, number_format in ways:
        x = qkv.to(device=device, dtype=number_format).requires_grad_()
        out = run(*x.unflatten(1, (3, heads, -1)).unbind(1), layout)  # strided views, as in vit.Attention
        (out * weight.to(out)).sum().backward()
        assert x.grad is not None
        found.append((out, x.grad))
    return gap(found[1][0], found[0][0]), gap(found[1][1], found[0][1])


def small_architecture(check: Check) -> Architecture:
    if check.tiny:
        return Architecture(embed_dim=32, depth=2, num_heads=2, image_size=56, num_registers=2)
    return Architecture(embed_dim=384, depth=4, num_heads=6, image_size=224, num_registers=4)


def forwards(check: Check) -> None:
    torch.manual_seed(0)
    large, small = (56, 28) if check.tiny else (224, 98)
    net = VisionTransformer(small_architecture(check)).eval()
    images = [torch.randn(2, 3, large, large), torch.randn(5, 3, small, small)]
    masks = [torch.rand(2, (large // 14) ** 2) < 0.3, None]
    with torch.no_grad():
        wanted = [net(image, mask) for image, mask in zip(images, masks, strict=True)]
        away = copy.deepcopy(net).to(check.device)
        there = [image.to(check.device) for image in images]
        hidden = [None if mask is None else mask.to(check.device) for mask in masks]
        for name, limit in (("float32", 1e-3), ("bfloat16", 0.1)):
            context = nullcontext() if name == "float32" else torch.autocast(check.device.type, DTYPES[name])
            what = f"forward {name}, device against CPU float32"
            with check.guarded("a", what), context:
                packed = away.forward_packed(there, hidden)
                alone = [away(image, mask) for image, mask in zip(there, hidden, strict=True)]
                gaps = {
                    "packed": max(gap(p.patches, w.patches) for p, w in zip(packed, wanted, strict=True)),
                    "unpacked": max(gap(a.patches, w.patches) for a, w in zip(alone, wanted, strict=True)),
                }
                check.row("a", what, **gaps, ok=max(gaps.values()) < limit)


WAYS: dict[str, dict[str, Any]] = {
    "float32 packed": {},
    "float32 unpacked": {"packed": False},
    "float32 packed recomputed": {"checkpoint_blocks": True},
    "bfloat16 packed": {"precision": "bfloat16"},
    "bfloat16 unpacked": {"precision": "bfloat16", "packed": False},
    "bfloat16 packed, half residual": {"precision": "bfloat16", "half_residual": True},
    "float16 packed": {"precision": "float16"},
    "float32 packed compiled": {"compile": True},
    "bfloat16 packed compiled": {"precision": "bfloat16", "compile": True},
}


def steps(check: Check) -> None:
    """Losses and all gradients of one step, each way against plain float32 on the CPU; masks padded as on a GPU."""
    sizes = {"global_size": 56, "local_size": 28} if check.tiny else {"global_size": 224, "local_size": 98}
    heads = {"prototypes": 64, "ibot_prototypes": 48, "head_hidden": 64, "head_bottleneck": 32}
    config = make_config("tiny", changes={"batch_size": 3, "num_local": 2, "precision": "float32", **sizes, **heads})
    torch.manual_seed(0)
    networks = [make_network(VisionTransformer(small_architecture(check)), config) for _ in range(2)]
    for network in networks:
        for parameter in network.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.1)
    side = config.global_size // 14
    masks = draw_masks(config, (side, side), 0)
    crops = torch.randn(6, 3, config.global_size, config.global_size), torch.randn(6, 3, *[config.local_size] * 2)

    def outcome(device: torch.device, way: dict[str, Any], padded: bool) -> tuple[Tensor, dict[str, Tensor]]:
        own = with_device_defaults(replace(config, **way), torch.device("cpu"))
        student, teacher = (copy.deepcopy(network).to(device) for network in networks)
        teacher.requires_grad_(False).eval()
        prepare_blocks(
            student.backbone, recompute=own.checkpoint_blocks, compiled=own.compile, half_residual=own.half_residual
        )
        dtype = DTYPES[own.precision]
        autocast = nullcontext if dtype == torch.float32 else partial(torch.autocast, device.type, dtype)
        picked = pick_masked(masks, padded=padded).to(device)
        batch = MaskedCrops(crops[0].to(device), crops[1].to(device), picked)
        centers = Centers(64, 48).to(device)
        losses = compute_losses(student, teacher, centers, batch, own, temperature=0.05, autocast=autocast)
        losses.total.backward()
        return losses.total, {name: p.grad for name, p in student.named_parameters() if p.grad is not None}

    total, gradients = outcome(torch.device("cpu"), {"packed": False}, False)
    for label, way in WAYS.items():
        slow_here = check.tiny and ("compile" in way or way.get("precision") == "float16")
        if slow_here or check.left("a") < 20:
            check.row("a", f"step {label}", skipped="on a CPU" if slow_here else "no time left")
            continue
        with check.guarded("a", f"step {label}"):
            value, found = outcome(check.device, way, True)
            missing = [name for name in gradients if name not in found or not found[name].isfinite().all()]
            worst = max((gap(found[n], g), n) for n, g in gradients.items() if n not in missing)
            right = worst[0] < (1e-3 if "float32" in label else 0.15) and not missing
            lost = len(missing)
            check.row("a", f"step {label}", loss=gap(value, total), worst=worst[0], of=worst[1], missing=lost, ok=right)


def engines(check: Check) -> None:
    what = "torch engine of augmentations, device against CPU"
    with check.guarded("a", what):
        config = make_config("tiny" if check.tiny else "vits14")
        images = made_images(check, 4)
        table = view_table(images, config)[:, :2]
        here = cut_with_torch(images, table, config.global_size, "cpu")
        off = (here - cut_with_torch(images, table, config.global_size, check.device).cpu()).abs()
        share = float((off > 2).float().mean())
        check.row("a", what, mean_levels=float(off.mean()), share_over_2=share, ok=share < 0.01)


def made_images(check: Check, count: int) -> list[np.ndarray]:
    """Smooth colours with some structure, so that JPEG and augmentation have usual work."""
    height, width = (90, 120) if check.tiny else (375, 500)
    rng = np.random.default_rng(0)
    images = []
    for _ in range(count):
        blocks = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(blocks.resize((width, height), Image.Resampling.BICUBIC))
        images.append((smooth + rng.normal(0, 12, (height, width, 1))).clip(0, 255).astype(np.uint8))
    return images


def view_table(images: list[np.ndarray], config: Config) -> np.ndarray:
    rng, augmentation = np.random.default_rng(0), augmentation_of(config)
    return np.stack([draw_views(rng, image.shape[0], image.shape[1], augmentation) for image in images])


# ---- b: the trainer's step ----


def config_for(check: Check, arch: str, batch: int, **changes: Any) -> Config:
    """A preset, or something tiny with as many choices; what is not named is as on a CPU, so nothing is compiled."""
    if check.tiny:
        drop = 0.4 if "l14" in arch else 0.0
        made = make_config("tiny", changes={"batch_size": min(batch, 4), "drop_path": drop, **changes})
    else:
        made = make_config(arch, changes={"batch_size": batch, **changes})
    return with_device_defaults(made, torch.device("cpu"))


def measure(
    check: Check, part: str, label: str, make: Callable[[int], Callable[[], None]], batch: int, seconds: float
) -> float:
    """Images a second of a step; the batch is halved until it fits. 0 where it fails."""
    while batch >= (1 if check.tiny else 2):
        try:
            check.reset_peak()
            per_step = check.timed(make(batch), seconds)
            speed = batch / per_step
            check.row(part, label, batch=batch, images_per_s=speed, ms=per_step * 1e3, peak_gb=check.peak_gb())
            return speed
        except torch.OutOfMemoryError:
            batch //= 2
        except Exception as error:
            check.row(part, label, FAILED=_described(error))
            return 0.0
        finally:
            check.give_back()
    check.row(part, label, FAILED="no batch fits")
    return 0.0


HALF: dict[str, Any] = {"precision": "bfloat16"}
MEASURED: dict[str, tuple[int, dict[str, dict[str, Any]]]] = {
    "vits14": (
        64,
        {
            "bf16 packed": HALF,
            "bf16 unpacked": HALF | {"packed": False},
            "bf16 packed, half residual": HALF | {"half_residual": True},
            "bf16 packed compiled (the default)": HALF | {"compile": True},
            "bf16 packed compiled, half residual": HALF | {"compile": True, "half_residual": True},
            "float32 packed": {},
        },
    ),
    "vitl14": (
        32,
        {
            "bf16 packed": HALF,
            "bf16 unpacked": HALF | {"packed": False},
            "bf16 packed compiled (the default)": HALF | {"compile": True},
            "bf16 packed compiled, half residual": HALF | {"compile": True, "half_residual": True},
            "bf16 packed recomputed": HALF | {"checkpoint_blocks": True},
        },
    ),
}


def part_b(check: Check) -> dict[str, float]:
    """The best speed of each network."""
    best: dict[str, float] = {}
    seconds = 0.3 if check.tiny else 3.0
    for arch, (batch, ways) in MEASURED.items():
        for label, changes in ways.items():
            compiled = changes.get("compile", False)
            if (check.tiny and compiled) or check.left("b") < (70 if compiled else 15):
                check.row("b", f"{arch} {label}", skipped="on a CPU" if check.tiny else "no time left")
                continue
            own = batch // 4 if label.startswith("float32") else batch
            if check.tiny:
                own = min(own, 4)

            def make(size: int, arch: str = arch, changes: dict[str, Any] = changes) -> TrainingStep:
                return TrainingStep(config_for(check, arch, size, **changes), check.device)

            best[arch] = max(best.get(arch, 0.0), measure(check, "b", f"{arch} {label}", make, own, seconds))
        torch._dynamo.reset()
    for arch, (batch, _) in MEASURED.items():
        if check.left("b") > 15:
            with check.guarded("b", f"{arch} where a step's time goes"):
                anatomy(check, arch, batch)
    for micro in (micro_losses, micro_attention, micro_optimiser, micro_copies, micro_data):
        if check.left("b") > 12:
            with check.guarded("b", micro.__name__):
                micro(check, 0.1 if check.tiny else 0.7)
    return best


def anatomy(check: Check, arch: str, batch: int) -> None:
    """Milliseconds of a step's parts, and where it waits for the device."""
    step = TrainingStep(config_for(check, arch, batch, **HALF), check.device)
    parts: dict[str, list[float]] = {}
    for _ in range(3):
        last = time.perf_counter()

        def mark(name: str) -> None:
            nonlocal last
            check.sync()
            now = time.perf_counter()
            parts.setdefault(name, []).append(1e3 * (now - last))
            last = now

        step(mark)
    shown = {name: float(np.median(values)) for name, values in parts.items()}
    check.row("b", f"{arch} where a step's time goes (ms)", **shown)
    if check.on_cuda:
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            step()
        torch.cuda.set_sync_debug_mode("default")
        waits = [one for one in told if "synchroniz" in str(one.message)]
        places = Counter(f"{Path(one.filename).name}:{one.lineno}" for one in waits)
        what = f"{arch} waits for the device in one step"
        check.row("b", what, count=len(waits), places=json.dumps(places), ok=len(waits) <= 1)


def there_and_back(function: Callable[..., Tensor], *inputs: Tensor) -> None:
    given = [one.detach().requires_grad_() for one in inputs]
    function(*given).float().sum().backward()


def micro_losses(check: Check, seconds: float) -> None:
    masked, prototypes = (64, 256) if check.tiny else (4915, 131_072)  # of vits14's 64 images
    narrow = F.normalize(torch.randn(masked, 64, device=check.device), dim=-1)
    scores = (narrow @ F.normalize(torch.randn(64, prototypes, device=check.device), dim=0)).bfloat16()
    check.reset_peak()
    spent = check.timed(lambda: sinkhorn(scores, 0.05), seconds)
    check.row("b", "Sinkhorn of the masked patches", rows=masked, ms=1e3 * spent, peak_gb=check.peak_gb())
    targets = torch.full((masked, prototypes), 1 / prototypes, device=check.device)

    def plain(x: Tensor) -> Tensor:
        x = x.float() / 0.1
        return torch.logsumexp(x, -1) - (targets * x).sum(-1)

    ways: dict[str, Callable[[Tensor], Tensor]] = {"in parts": lambda x: cross_entropy(x, targets, 0.1), "plain": plain}
    if not check.tiny:
        ways["compiled"] = torch.compile(plain)
    for name, way in ways.items():
        check.reset_peak()
        spent = check.timed(partial(there_and_back, way, scores), seconds)
        what = f"cross-entropy of the masked patches, there and back, {name}"
        check.row("b", what, ms=1e3 * spent, peak_gb=check.peak_gb())


def micro_attention(check: Check, seconds: float) -> None:
    layout = ((4, 17), (8, 5)) if check.tiny else ((128, 257), (512, 50))
    heads, dim = (2, 16) if check.tiny else (6, 64)
    tokens = sum(count * length for count, length in layout)
    qkv = torch.randn(tokens, 3 * heads * dim, device=check.device, dtype=torch.bfloat16)
    spent = {}
    for name, kernel in kernels_of(check).items():

        def run(x: Tensor, kernel: Callable[..., Tensor] = kernel) -> Tensor:
            return kernel(*x.unflatten(1, (3, heads, -1)).unbind(1), layout)

        spent[name] = 1e3 * check.timed(partial(there_and_back, run, qkv), seconds)
    check.row("b", "attention of crops of two sizes, there and back (ms)", **spent)


def micro_optimiser(check: Check, seconds: float) -> None:
    sizes = [64] * 20 if check.tiny else [1024 * 4096] * 72 + [131_072 * 384] * 2  # vitl14 with its heads
    spent = {}
    for name in ("foreach", "fused"):
        parameters = [nn.Parameter(torch.zeros(size, device=check.device)) for size in sizes]
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimiser = torch.optim.AdamW(parameters, lr=1e-4, foreach=name == "foreach", fused=name == "fused")
        spent[name] = 1e3 * check.timed(optimiser.step, seconds)
    check.row("b", "AdamW (ms)", parameters=sum(sizes), **spent)


def micro_copies(check: Check, seconds: float) -> None:
    shape = (4 if check.tiny else 64, 2 * 3 * 224**2 + 8 * 3 * 98**2)
    crops = torch.zeros(shape, dtype=torch.uint8)
    spent = {"pageable": 1e3 * check.timed(lambda: crops.to(check.device), seconds)}
    if check.on_cuda:
        pinned = crops.pin_memory()
        spent["pinned"] = 1e3 * check.timed(lambda: pinned.to(check.device, non_blocking=True), seconds)
    check.row("b", "a batch of crops to the device (ms)", mb=crops.nbytes / 1e6, **spent)


def micro_data(check: Check, seconds: float) -> None:
    config = config_for(check, "vits14", 64)
    side = config.global_size // 14
    spent = check.timed(lambda: pick_masked(draw_masks(config, (side, side), 1), padded=True), seconds)
    check.row("b", "masks of one batch, on the CPU", ms=1e3 * spent)
    images = (made_images(check, 8) * 8)[: config.batch_size]
    table = view_table(images, config)

    def cut() -> None:
        cut_with_torch(images, table[:, :2], config.global_size, check.device)
        cut_with_torch(images, table[:, 2:], config.local_size, check.device)

    check.reset_peak()
    spent = check.timed(cut, seconds)
    what = "torch engine, all crops of one batch"
    check.row("b", what, ms=1e3 * spent, images_per_s=len(images) / spent, peak_gb=check.peak_gb())


# ---- c: a plain step as the reference does it ----


def part_c(check: Check, best: dict[str, float]) -> None:
    half = torch.bfloat16 if check.tiny else torch.float16
    ways = {"sizes apart, torch's attention": False}
    if check.on_cuda and HAS_XFORMERS:
        ways["nested, xformers"] = True
    for arch, (batch, _) in MEASURED.items():
        for label, nested in ways.items():
            what = f"{arch} as the reference, {label}"
            if check.left("c") < 15:
                check.row("c", what, skipped="no time left")
                continue

            def make(size: int, arch: str = arch, nested: bool = nested) -> ReferenceStep:
                return ReferenceStep(config_for(check, arch, size), check.device, half, nested=nested)

            own = min(batch, 4) if check.tiny else batch
            speed = measure(check, "c", what, make, own, 0.3 if check.tiny else 3.0)
            if speed and best.get(arch):
                check.row("c", f"{arch} best of ours over that", times=best[arch] / speed, wanted=WANTED)


# ---- d: inference ----


def part_d(check: Check) -> None:
    for name in ("dinov2_vits14", "dinov2_vitb14", "dinov2_vitl14"):
        architecture = NETWORKS["tiny"] if check.tiny else ARCHITECTURES[name]
        with check.guarded("d", name):
            model = VisionTransformer(architecture).eval().requires_grad_(False).to(check.device, torch.bfloat16)
            sizes = ((56, (1, 8)),) if check.tiny else ((224, (1, 8, 32, 128, 256)), (518, (1, 32)))
            for size, batches in sizes:
                for batch in batches:
                    if check.left("d") < 8:
                        check.row("d", f"{name} {size} px batch {batch}", skipped="no time left")
                        continue
                    with check.guarded("d", f"{name} {size} px batch {batch}"):
                        inference(
                            check, model, f"{name} {size} px", size // 4 // 14 * 14 if check.tiny else size, batch
                        )


def inference(check: Check, model: VisionTransformer, label: str, size: int, batch: int) -> None:
    """Images a second from uint8 pixels of the CPU to what the descriptor keeps, and of the network alone."""
    backbone, wanted = as_backbone(model), DescriptorConfig()
    layers = wanted.layers_of(backbone.depth)
    pixels = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    seconds = 0.2 if check.tiny else 1.0
    check.reset_peak()
    whole = check.timed(lambda: pool(backbone.intermediate(pixels, layers), wanted, backbone.depth), seconds)
    ready = torch.from_numpy(pixels).to(check.device)
    network = check.timed(lambda: backbone.intermediate(ready, layers), seconds)
    speeds = {"images_per_s": batch / whole, "network_only": batch / network}
    check.row("d", f"{label} bf16 batch {batch}", **speeds, peak_gb=check.peak_gb())


# ---- e: a real run ----

RUN = """
import json, sys, time
from trainer.config import make_config
from trainer.train import train
if __name__ == "__main__":
    end = time.time() + {seconds}
    done = train({tar!r}, {out!r}, make_config({preset!r}, changes={changes!r}), resume={resume}, progress=False,
                 stop=lambda: time.time() > end)
    print(json.dumps(dict(steps=done.steps, loss=done.loss, images_per_s=done.images_per_s, stopped=done.stopped)))
"""


def part_e(check: Check, tar: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tar = tar or made_tar(check, Path(folder) / "made.tar", 12 if check.tiny else 400)
        changes: dict[str, Any] = {"device": check.device.type, "show_every": 0, "log_every": 1, "steps": 100_000}
        changes |= {"workers": 1} if check.tiny else {"snapshot_every": 1_000_000}
        for engine, seconds, resume in (("torch", 60, False), ("torch", 15, True), ("pillow", 40, False)):
            label = f"train, engine {engine}{', resumed' if resume else ''}"
            allowed = 6.0 if check.tiny else min(seconds, check.left("e") - 25)
            if allowed < 5:
                check.row("e", label, skipped="no time left")
                continue
            preset, out = "tiny" if check.tiny else "vits14", str(Path(folder) / engine)
            given = changes | {"engine": engine}
            code = RUN.format(seconds=allowed, tar=tar, out=out, preset=preset, changes=given, resume=resume)
            with check.guarded("e", label):
                a_run(check, label, code, Path(out), allowed + 90)


def made_tar(check: Check, path: Path, count: int) -> str:
    with tarfile.open(path, "w") as shard:
        for number, pixels in enumerate(made_images(check, count)):
            data = io.BytesIO()
            Image.fromarray(pixels).save(data, "JPEG", quality=90)
            member = tarfile.TarInfo(f"{number:05d}.jpg")
            member.size = data.tell()
            data.seek(0)
            shard.addfile(member, data)
    return str(path)


def a_run(check: Check, label: str, code: str, out: Path, most_s: float) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        busy = watch_gpu(check, child, most_s)
        said, complained = child.communicate(timeout=30)
    if child.returncode:
        told = " / ".join(complained.strip().splitlines()[-3:])
        check.row("e", label, FAILED=f"exit {child.returncode}: {told[-400:]}")
        return
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads(said.strip().splitlines()[-1])
    check.row("e", label, **summary, first_loss=lines[0]["loss"], gpu_busy_percent=busy)


def watch_gpu(check: Check, child: subprocess.Popen[str], most_s: float) -> float:
    """Mean utilisation while the child runs, its first 10 seconds left out; NaN where nobody tells."""
    ask = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    seen, start = [], time.time()
    while child.poll() is None and time.time() - start < most_s:
        time.sleep(0.5 if check.tiny else 1.0)
        if check.on_cuda and time.time() - start > 10:
            with_answer = subprocess.run(ask, capture_output=True, text=True, timeout=5)
            words = with_answer.stdout.split()
            seen += [float(words[0])] if words and words[0].isdigit() else []
    if child.poll() is None:
        child.kill()
    return float(np.mean(seen)) if seen else math.nan


# ---- all of it ----


def run_parts(check: Check, only: str, tar: str | None) -> None:
    best: dict[str, float] = {}
    for part in SHARES:  # the real run comes early, since it is what users do
        if part not in only:
            continue
        with (
            check.guarded(part, "the part itself"),
            float32_as_tf32(check.device if part in "bc" else torch.device("cpu")),
        ):
            if part == "a":
                part_a(check)
            elif part == "b":
                best = part_b(check)
            elif part == "c":
                part_c(check, best)
            elif part == "d":
                part_d(check)
            else:
                part_e(check, tar)


def report(check: Check) -> list[str]:
    """Print the table; the rows that failed."""
    print(f"\n{'part':5s}{'what':66s}result")
    for line in check.rows:
        values = "  ".join(f"{name}={value}" for name, value in line.items() if name not in ("part", "what"))
        print(f"{line['part']:5s}{line['what'][:64]:66s}{values}")
    if os.environ.get("OUT"):
        folder = Path(os.environ["OUT"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "gpu_check.jsonl").write_text("".join(json.dumps(line) + "\n" for line in check.rows))
    failed = [line["what"] for line in check.rows if "FAILED" in line or line.get("ok") is False]
    print(f"\n{len(failed)} failed: {failed}" if failed else "\nnothing failed")
    print(f"{time.time() - check.started:.0f} s")
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--tar", help="photos for the real run")
    parser.add_argument("--only", default="abcde", help="parts")
    parser.add_argument("--dry-run-cpu", action="store_true")
    given = parser.parse_args()
    if not given.dry_run_cpu and not torch.cuda.is_available():
        sys.exit("no CUDA device; --dry-run-cpu tries the script")
    device = torch.device("cpu" if given.dry_run_cpu else "cuda")
    check = Check(device, given.dry_run_cpu, 60 * given.minutes)
    run_parts(check, given.only, given.tar)
    sys.exit(bool(report(check)))


if __name__ == "__main__":
    main()
