"""What a run on a GPU needs and a CPU can show: few waits, sizes that repeat, batches ahead, defaults, fake kernels."""

import copy
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from test_trainer_resume import tiny
from test_trainer_step import assert_same_gradients, batch_of, config_with, gradients, network
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from indexer.backbone import attention as attention_module
from indexer.backbone.vit import Architecture, VisionTransformer
from trainer.config import Config, ConfigError, make_config
from trainer.data.ahead import OneAhead, tensors_of
from trainer.data.masking import draw_masks, pick_masked
from trainer.data.sources import open_source
from trainer.device_defaults import with_device_defaults
from trainer.model import losses
from trainer.model.distributed import World, join_world
from trainer.model.losses import centred_softmax, cross_entropy, moved_center, sinkhorn
from trainer.model.optim import make_optimiser, update_if_finite
from trainer.model.student_teacher import Centers, FeatureTeacher, MaskedCrops, compute_losses, make_predictor
from trainer.run.results import FeaturePreviews
from trainer.run.snapshot import load_snapshot
from trainer.run.state import float32_as_tf32, settle_learning, start_run
from trainer.train import _masked_batches, _open_stream, _step, train

# Operations after which torch must know a number that the device has computed
WAITING = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "repeat_interleave"}


class Waits(TorchDispatchMode):
    """Counts what would wait for a device, by name, while it is entered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.found: list[str] = []
        for name in ("tolist", "cpu", "numpy"):  # these copy without an operation of their own on the CPU
            monkeypatch.setattr(Tensor, name, self._counting(name, getattr(Tensor, name)))

    def _counting(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(tensor: Tensor, *given: Any, **named: Any) -> Any:
            self.found.append(name)
            return real(tensor, *given, **named)

        return counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        by_flags = name in ("index", "index_put_") and any(
            isinstance(one, Tensor) and one.dtype == torch.bool for one in args[1]
        )
        if name in WAITING or by_flags:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.long
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"targets": "centering", "accumulate": 2},
        {"precision": "float16"},
        {"precision": "bfloat16", "half_residual": True, "separate_heads": False},
    ],
    ids=["sinkhorn", "centering", "loss scaling", "half"],
)
def test_a_step_waits_for_the_device_once(
    images: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, source = tiny(**changes), open_source(images)
    run = start_run(config, None, torch.device("cpu"), World())
    with _open_stream(run, source, run.config, print) as stream:
        made = _masked_batches(run, stream, run.config)
        batches = OneAhead(iter([next(made) for _ in range(2 * config.accumulate)]), run.device)
    settle_learning(run)
    _step(run, batches)  # the first one makes the optimiser's memory
    run.step += 1
    with Waits(monkeypatch) as waits:
        assert _step(run, batches) is None
    assert waits.found == ["tolist"]
    assert torch.isfinite(torch.tensor(run.loss))


def test_features_are_distilled_without_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    config, student, teacher, batch = distilling()
    centers = Centers(40, 40)
    with Waits(monkeypatch) as waits:
        for _ in range(2):
            found = compute_losses(student, teacher, centers, batch, config, temperature=0.05, autocast=nullcontext)
            found.total.backward()
    assert not waits.found and centers.dino.any()


def distilling() -> tuple[Config, Any, FeatureTeacher, MaskedCrops]:
    config = config_with(distill_from="somewhere", num_local=0)
    torch.manual_seed(0)
    wide = VisionTransformer(Architecture(embed_dim=40, depth=1, num_heads=2, image_size=56))
    small = VisionTransformer(Architecture(embed_dim=24, depth=1, num_heads=2, image_size=56))
    batch = replace(batch_of(config), local_crops=torch.empty(0, 3, 28, 28))
    return config, make_predictor(small, 40, config), FeatureTeacher(wide), batch


def padded(batch: MaskedCrops) -> MaskedCrops:
    picked = pick_masked(batch.masks.hidden, padded=True)
    if picked.counted is None or picked.counted.all():  # nothing to pad by chance
        more = torch.zeros(3, dtype=torch.bool)
        real = batch.masks.picked
        picked = replace(
            batch.masks,
            picked=torch.cat([real, real[:1].expand(3)]),
            weights=torch.cat([batch.masks.weights, torch.zeros(3)]),
            counted=torch.cat([torch.ones(len(real), dtype=torch.bool), more]),
        )
    return replace(batch, masks=picked)


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["sinkhorn", "centering", "features"])
def test_padding_changes_nothing(targets: str) -> None:
    if targets == "features":
        config, student, teacher, batch = distilling()
        sizes = (40, 40)
    else:
        config = config_with(targets=targets)
        student, batch = network(config, 1), batch_of(config)
        teacher, sizes = network(config, 2), (config.prototypes, config.ibot_prototypes)  # type: ignore[assignment]
    found = []
    for one in (batch, padded(batch)):
        centers = Centers(*sizes)
        student.zero_grad()
        for _ in range(2):
            result = compute_losses(student, teacher, centers, one, config, temperature=0.05, autocast=nullcontext)
        result.total.backward()
        found.append((result.total.detach(), gradients(student), centers))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][2].ibot, found[1][2].ibot)
    assert_same_gradients(found[0][1], found[1][1], rtol=1e-4)


def test_padded_numbers_of_masked_patches_repeat() -> None:
    config = make_config("tiny", changes={"batch_size": 16})
    plain, repeated = set(), set()
    for number in range(40):
        masks = draw_masks(config, (16, 16), number)
        one, two = pick_masked(masks), pick_masked(masks, padded=True)
        assert two.counted is not None and torch.equal(two.picked[two.counted], one.picked)
        assert not two.weights[~two.counted].any() and len(two.picked) < 1.2 * len(one.picked)
        plain.add(len(one.picked))
        repeated.add(len(two.picked))
    assert len(plain) > 10 and len(repeated) <= 3
    nothing = pick_masked(torch.zeros(4, 9, dtype=torch.bool), padded=True)
    assert nothing.counted is None and not len(nothing.picked)


def test_rows_that_do_not_count_touch_no_target() -> None:
    torch.manual_seed(0)
    scores, counted = torch.randn(9, 20) * 3, torch.tensor([True] * 6 + [False] * 3)
    targets = sinkhorn(scores * counted[:, None] + 50 * (~counted)[:, None], 0.04, counted=counted)
    torch.testing.assert_close(targets[:6], sinkhorn(scores[:6], 0.04))
    assert not targets[6:].any()
    center = moved_center(torch.ones(1, 20), scores, counted=counted)
    torch.testing.assert_close(center, moved_center(torch.ones(1, 20), scores[:6]))
    assert centred_softmax(scores, center, 0.04).isfinite().all()


def slow_cross_entropy(scores: Tensor, targets: Tensor, temperature: float) -> Tensor:
    return -(targets * torch.log_softmax(scores.float() / temperature, -1)).sum(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_in_parts_is_the_plain_one(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    targets, weights = torch.randn(7, 11).softmax(1), torch.rand(7)
    found = []
    for part in (1, 25, 10**6):
        monkeypatch.setattr(losses, "CHUNK_NUMBERS", part)
        for loss in (cross_entropy, slow_cross_entropy):
            scores = torch.linspace(-3, 3, 77).view(7, 11).to(dtype).requires_grad_()
            value = loss(scores, targets, 0.1)
            (value * weights).sum().backward()
            assert scores.grad is not None and scores.grad.dtype == dtype
            found.append((value.detach(), scores.grad))
    for value, gradient in found[1:]:
        torch.testing.assert_close(value, found[0][0])
        torch.testing.assert_close(gradient, found[0][1])


def test_cross_entropy_keeps_no_copy_of_the_scores() -> None:
    scores, targets = torch.randn(4, 50).bfloat16().requires_grad_(), torch.randn(4, 50).softmax(1)
    kept: dict[int, int] = {}

    def weigh(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(weigh, lambda tensor: tensor):
        cross_entropy(scores, targets, 0.1)
    # the scores as they are, the targets, and one float32 a row
    assert sum(kept.values()) == 4 * 50 * 2 + 4 * 50 * 4 + 4 * 4


def test_an_update_of_infinite_gradients_is_skipped_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_with()
    student = network(config, 1)
    optimiser = make_optimiser(student, 2, config)
    optimiser.param_groups[0]["lr"] = 0.1
    for parameter in student.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(student.state_dict())
    with Waits(monkeypatch) as waits:
        for norm in (torch.inf, torch.nan):
            update_if_finite(optimiser, torch.tensor(norm))
    assert not waits.found
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert all(state["step"] == 0 and not state["exp_avg"].any() for state in optimiser.state.values())
    update_if_finite(optimiser, torch.tensor(1.0))
    assert not all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert all(state["step"] == 1 for state in optimiser.state.values())


# Batches ahead


@dataclass(frozen=True)
class Inner:
    numbers: Tensor
    nothing: Tensor | None = None


@dataclass(frozen=True)
class Outer:
    crops: Tensor
    masks: Inner


def test_all_tensors_of_a_batch_are_found() -> None:
    one, two = torch.zeros(1), torch.zeros(2)
    assert [id(t) for t in tensors_of(Outer(one, Inner(two)))] == [id(one), id(two)]


def test_on_a_cpu_nothing_is_made_ahead() -> None:
    made: list[int] = []

    def make() -> Iterator[int]:
        for n in range(9):
            made.append(n)
            yield n

    batches = OneAhead(make(), torch.device("cpu"))
    for n in range(3):
        batches.prepare()
        assert made == list(range(n))
        assert batches.take() == n


def test_on_a_gpu_the_next_batch_is_made_on_a_stream_beside_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class FakeStream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: "FakeStream") -> None:
            told.append(f"{self.name} waits for {other.name}")

    side, main = FakeStream("side"), FakeStream("main")
    current = [main]

    @contextmanager
    def on(stream: FakeStream) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    fake = SimpleNamespace(Stream=lambda device: side, current_stream=lambda device: main, stream=on)
    monkeypatch.setattr(torch, "cuda", fake)
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: told.append(f"kept for {stream.name}"))

    def make() -> Iterator[Outer]:
        for n in range(9):
            told.append(f"batch {n} on {current[-1].name}")
            yield Outer(torch.zeros(1), Inner(torch.zeros(1)))

    batches = OneAhead(make(), torch.device("cuda"))
    batches.take()
    told.append("step 0 queued")
    batches.prepare()
    batches.prepare()  # once is enough
    told.append("waited for step 0")
    batches.take()
    take = ["main waits for side", "kept for main", "kept for main"]
    assert told == [
        "side waits for main",
        "batch 0 on side",
        *take,
        "step 0 queued",
        "batch 1 on side",
        "waited for step 0",
        *take,
    ]


@pytest.mark.slow
def test_a_step_prepares_the_next_batch_before_it_waits(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    real = OneAhead.prepare

    def prepare(batches: OneAhead[MaskedCrops]) -> None:
        told.append("prepare")
        real(batches)

    monkeypatch.setattr(OneAhead, "prepare", prepare)
    monkeypatch.setattr("trainer.train._record", lambda *given: told.append("wait"))
    run = start_run(tiny(accumulate=2), None, torch.device("cpu"), World())
    with _open_stream(run, open_source(images), run.config, print) as stream:
        batches = OneAhead(_masked_batches(run, stream, run.config), run.device)
        settle_learning(run)
        _step(run, batches)
        run.step = run.config.steps - 1  # nothing comes after the last
        _step(run, batches)
    assert told == ["prepare", "prepare", "wait", "prepare", "wait"]


# Defaults by device


def test_auto_is_settled_by_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.device_defaults.best_dtype", lambda device: torch.bfloat16)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(17)), raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace() if name == "triton" else None)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    config = make_config("vits14")
    on = {name: with_device_defaults(config, torch.device(name)) for name in ("cuda", "cpu")}
    found = {name: (one.precision, one.compile, one.engine, one.workers) for name, one in on.items()}
    assert found == {"cuda": ("bfloat16", True, "torch", 16), "cpu": ("float32", False, "pillow", 16)}
    assert with_device_defaults(on["cpu"], torch.device("cuda")) == on["cpu"]  # what is said, stays
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert with_device_defaults(config, torch.device("cuda")).workers == 1
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert with_device_defaults(config, torch.device("cuda")).compile is False


@pytest.mark.slow
def test_auto_can_be_said_and_is_kept_as_what_it_stood_for(images: Path, tmp_path: Path) -> None:
    config = make_config("tiny", changes=["workers=auto", "compile=auto", "precision=auto"])
    assert (config.workers, config.compile, config.precision) == (None, None, "auto")
    assert make_config("tiny", changes=["workers=3", "compile=true"]).compile is True
    with pytest.raises(ConfigError, match="workers is 'many'; it must be a whole number"):
        make_config("tiny", changes=["workers=many"])
    train(images, tmp_path, tiny(steps=1), progress=False, say=lambda line: None)
    kept = make_config(file=tmp_path / "config.json")
    assert (kept.precision, kept.compile, kept.engine) == ("float32", False, "pillow")
    snapshot = load_snapshot(tmp_path / "snapshots" / "step_000000001.safetensors")
    assert snapshot.config["precision"] == "float32"


def test_tf32_is_for_cuda_and_for_the_run_only() -> None:
    before = torch.get_float32_matmul_precision()
    for name, wanted in (("cpu", before), ("cuda", "high")):
        with pytest.raises(KeyError), float32_as_tf32(torch.device(name)):
            assert torch.get_float32_matmul_precision() == wanted
            raise KeyError
        assert torch.get_float32_matmul_precision() == before


def test_processes_wait_longer_than_nccls_ten_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[str, timedelta]] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    monkeypatch.setattr(dist, "init_process_group", lambda kind, timeout: given.append((kind, timeout)))
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    assert join_world("cuda") == World(1, 2)
    assert given[0][0] == "nccl" and given[0][1] > timedelta(hours=1)


# Networks


def test_a_half_residual_stream_is_near_the_float32_one() -> None:
    config = config_with()
    student, batch = network(config, 1), batch_of(config)
    seen: list[torch.dtype] = []
    student.backbone.blocks[1].register_forward_pre_hook(lambda module, given: seen.append(given[0].dtype))
    found = []
    for half in (False, True):
        student.backbone.half_residual = half
        for autocast in (nullcontext, partial(torch.autocast, "cpu", torch.bfloat16)):
            student.zero_grad()
            with autocast():
                (features,) = student.backbone.forward_packed([batch.global_crops], [batch.masks.hidden])
            features.cls.float().square().sum().backward()
            found.append((features.cls.detach().float(), gradients(student.backbone)["blocks.0.attn.qkv.weight"]))
    assert seen == [torch.float32, torch.float32, torch.float32, torch.bfloat16]
    assert torch.equal(found[0][0], found[2][0])  # without autocast nothing is rounded
    for rounded, exact in zip(found[3], found[0], strict=True):
        assert 0 < (rounded - exact).norm() < 0.05 * exact.norm()


class FakeXformers:
    """Records what it is given, and computes it plainly."""

    def __init__(self) -> None:
        self.masks: list[tuple[tuple[int, ...], object]] = []
        self.calls = 0
        self.fmha = SimpleNamespace(BlockDiagonalMask=SimpleNamespace(from_seqlens=self._mask))

    def _mask(self, lengths: list[int], device: torch.device) -> tuple[int, ...]:
        self.masks.append((tuple(lengths), device))
        return tuple(lengths)

    def memory_efficient_attention(self, q: Tensor, k: Tensor, v: Tensor, attn_bias: tuple[int, ...]) -> Tensor:
        self.calls += 1
        layout = tuple((1, length) for length in attn_bias)
        return attention_module._torch_attention(q[0], k[0], v[0], layout)[None]


class OnCuda(Tensor):
    """A tensor of the CPU that says it is on a GPU."""

    is_cuda = True


def test_xformers_gets_one_mask_on_the_right_device_and_only_what_it_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeXformers()
    monkeypatch.setattr(attention_module, "xformers_ops", fake)
    attention_module._block_mask.cache_clear()
    mixed, alike = ((2, 5), (3, 4)), ((2, 11),)
    for dtype, layout, calls in (
        (torch.bfloat16, mixed, 3),  # three blocks
        (torch.bfloat16, alike, 3),  # one size: torch's own
        (torch.float32, mixed, 3),  # k-NN and trial on a GPU too new for it
    ):
        qkv = torch.randn(22, 3, 2, 8).to(dtype)
        for _ in range(3):
            query, key, value = (part.as_subclass(OnCuda) for part in qkv.unbind(1))
            monkeypatch.setattr(attention_module, "_has_varlen", lambda query: False)
            found = attention_module.attention(query, key, value, layout)
            plain_query, plain_key, plain_value = qkv.unbind(1)
            expected = attention_module._torch_attention(plain_query, plain_key, plain_value, layout)
            torch.testing.assert_close(found.as_subclass(Tensor), expected)
        assert fake.calls == calls
    assert fake.masks == [((5, 5, 4, 4, 4), torch.device("cpu"))]
    attention_module._block_mask.cache_clear()


def test_borders_are_made_once_and_serve_training_after_inference() -> None:
    attention_module._made_borders.cache_clear()
    with torch.inference_mode():
        first = attention_module._borders(((2, 3), (1, 4)), torch.device("cpu"))
    again = attention_module._borders(((2, 3), (1, 4)), torch.device("cpu"))
    assert again is first and not first.is_inference() and first.tolist() == [0, 3, 6, 10]


def compile_counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every compilation of a block adds to the list; what is compiled runs plainly."""
    torch._dynamo.reset()
    compilations: list[int] = []
    real = torch.nn.Module.compile

    def backend(graph: Any, example: Any) -> Any:
        compilations.append(1)
        return graph.forward

    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **given: real(module, backend=backend, **given))
    return compilations


@pytest.mark.slow
def test_previews_compile_nothing(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compilations = compile_counting(monkeypatch)
    source = open_source(images)
    run = start_run(tiny(compile=True, show_every=1, drop_path=0), None, torch.device("cpu"), World())
    with _open_stream(run, source, run.config, print) as stream:
        batches = OneAhead(_masked_batches(run, stream, run.config), run.device)
        settle_learning(run)
        previews = FeaturePreviews(run, source, None, tmp_path)
        _step(run, batches)
        after_one = len(compilations)
        assert after_one > 0
        previews.show()
        for _ in range(2):
            _step(run, batches)
            previews.show()
    assert len(compilations) == after_one
    assert len(list((tmp_path / "images").iterdir())) > 0
    torch._dynamo.reset()


@pytest.mark.slow
def test_borders_are_constants_of_compiled_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    attention_module._made_borders.cache_clear()
    torch._dynamo.reset()
    graphs: list[str] = []

    def kernel(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, ends: Tensor, *sizes: int) -> Tensor:
        return query + key * value + starts.sum() * 0.0

    def backend(graph: Any, example: Any) -> Any:
        graphs.append(graph.code)
        return graph.forward

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    attention_module.prepare_to_compile()
    monkeypatch.setattr(attention_module, "_has_varlen", lambda query: True)
    model = VisionTransformer(Architecture(embed_dim=16, depth=2, num_heads=2, image_size=56))
    given = [torch.randn(2, 3, 56, 56), torch.randn(3, 3, 28, 28)]
    plain = model.forward_packed(given)
    for block in model.blocks:
        block.compile(backend=backend, dynamic=False)
    for ours, expected in zip(model.forward_packed(given), plain, strict=True):
        torch.testing.assert_close(ours.patches, expected.patches)
    assert graphs and not any("arange" in code or "cumsum" in code for code in graphs)
    torch._dynamo.reset()
