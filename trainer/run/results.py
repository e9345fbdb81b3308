"""What a run leaves in its folder, while it goes on and at its end; and the way back from a snapshot."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from indexer.backbone.backbone import Backbone
from indexer.backbone.checkpoint import build_model, save_checkpoint
from indexer.backbone.layouts import Checkpoint
from indexer.backbone.vit import VisionTransformer
from indexer.errors import SeenitError
from indexer.messages import Say

from ..config import Config
from ..data.sources import ImageSource
from ..evaluate.labelled import LabelledFeatures, as_backbone, embed_labelled, read_labelled
from ..evaluate.probes import knn
from ..model.distributed import distribute_like, full_tensor, wait_for_all
from .report import write_report
from .show import Watched
from .snapshot import (
    Snapshot,
    check_same_run,
    config_as_json,
    load_snapshot,
    prune_snapshots,
    save_snapshot,
    write_tensors,
)
from .state import Run, enter_high_resolution, make_vit
from .trial import NEIGHBOURS, HeldOutTrial, TrialScores, got_worse, prepare_trial, retrieval_change

_HEAD_PARTS = ("dino_head.", "ibot_head.")


def keep_snapshot(run: Run, out: Path, alarm: str = "") -> None:
    """Write a snapshot and prune the old ones; every process gathers, the first one writes.

    alarm  why the run stops here, if it does for that; `--resume` then asks for a word before it goes on
    """
    tensors = _gather_state(run)
    if run.rank > run.best[0]:
        run.best = (run.rank, run.step)
    if run.world.is_main:
        folder = out / "snapshots"
        state = {
            "watch": run.watch.state(),
            "best": list(run.best),
            "scaler": run.scaler.state_dict(),
            "loss": run.loss if math.isfinite(run.loss) else None,
            "from": run.provenance.get("from", ""),
            "images": run.images,
            "alarm": alarm,
        }
        write_metrics(run, out)
        save_snapshot(folder, run.step, run.config, state, tensors)
        prune_snapshots(folder, run.config.keep_snapshots, also=[run.best[1]])
    wait_for_all()


def restore_run(run: Run, path: Path) -> None:
    snapshot = load_snapshot(path)
    check_same_run(snapshot, run.config)
    _check_same_material(snapshot, run)
    _check_sound(snapshot, run.config)
    if snapshot.step > run.config.high_res_start:
        enter_high_resolution(run)
    tensors = snapshot.tensors
    try:
        for prefix, network in _learnt_networks(run):
            for name, value in network.state_dict().items():
                value.copy_(distribute_like(tensors[f"{prefix}.{name}"], value))
        for name, parameter in run.student.named_parameters():
            found = {key: tensors.get(f"optimiser.{name}.{key}") for key in ("step", "exp_avg", "exp_avg_sq")}
            if found["step"] is not None:
                run.optimiser.state[parameter] = {
                    # the fused optimiser counts its steps on the device
                    key: value.to(parameter.device, copy=True)
                    if key == "step"
                    else distribute_like(value.clone(), parameter)
                    for key, value in found.items()
                    if value is not None
                }
        run.centers.load_state_dict({name: tensors[f"centers.{name}"] for name in run.centers.state_dict()})
        run.watch.restore(snapshot.state["watch"], tensors)
        run.scaler.load_state_dict(snapshot.state["scaler"])
        rank, step = snapshot.state["best"]
        run.best = (float(rank), int(step))
        run.loss = float("nan") if snapshot.state["loss"] is None else float(snapshot.state["loss"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise SeenitError(
            f"{path} does not fit this run ({' '.join(str(error).split())[:120]}); start again in another folder"
        ) from error
    run.step = snapshot.step


def _check_same_material(snapshot: Snapshot, run: Run) -> None:
    """Refuse to go on from other weights or on other photos, where what was held out would be trained on."""
    started, now = snapshot.state.get("from", ""), run.provenance.get("from", "")
    if started != now:
        was, given = (f"the backbone {one[:12]}" if one else "random weights" for one in (started, now))
        raise SeenitError(
            f"{snapshot.path} is of a run that started from {was}, not from {given};"
            " resume with the same --from, or start again in another folder"
        )
    if snapshot.state.get("images") != run.images:
        raise SeenitError(
            f"{snapshot.path} is of a run on other photos than those given;"
            " resume with the same ones, or start again in another folder"
        )


def _check_sound(snapshot: Snapshot, config: Config) -> None:
    """Refuse to go on from a state that an alarm stopped, unless alarms are off: that is the user's word for it."""
    alarm = snapshot.state.get("alarm")
    if alarm and config.alarms:
        raise SeenitError(
            f"{snapshot.path} is what an alarm left: {alarm}; start again in another folder with that changed, or go on"
            " all the same by --resume --set alarms=false"
        )


def _gather_state(run: Run) -> dict[str, Tensor]:
    """All of the run's tensors, whole, on the CPU, in the process that writes; the others only lend their shards."""
    tensors: dict[str, Tensor] = {}

    def gather(name: str, value: Tensor) -> None:
        value = full_tensor(value)  # every process must ask
        if run.world.is_main:
            tensors[name] = value.cpu()

    for prefix, network in _learnt_networks(run):
        for name, value in network.state_dict().items():
            gather(f"{prefix}.{name}", value)
    for name, parameter in run.student.named_parameters():
        for key, value in run.optimiser.state.get(parameter, {}).items():
            gather(f"optimiser.{name}.{key}", value)
    for name, value in (run.watch.tensors() | _named("centers", run.centers)).items():
        gather(name, value)
    return tensors


def _named(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in module.state_dict().items()}


def _learnt_networks(run: Run) -> list[tuple[str, nn.Module]]:
    """Student and average, by their names in a snapshot; a frozen teacher is read from its own file again."""
    return [("student", run.student), ("teacher", run.average)]


def prepare_folder(out: Path, step: int, config: Config) -> None:
    """Make the folder, note the settings, and take away what a killed run left after its last snapshot."""
    path = out / "metrics.jsonl"
    try:
        out.mkdir(parents=True, exist_ok=True)
        for unfinished in (out / "snapshots").glob(".*.part"):
            unfinished.unlink()
        lines = path.read_text("utf-8").splitlines() if step and path.is_file() else []
        kept = [line for line in lines if _step_of(line) <= step]
        path.write_text("".join(line + "\n" for line in kept), "utf-8")
        (out / "config.json").write_text(json.dumps(config_as_json(config), indent=1), "utf-8")
    except OSError as error:
        raise SeenitError(f"cannot write in {out}: {error.strerror or error}; choose another --out") from error


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line that was cut short


def write_metrics(run: Run, out: Path) -> None:
    if run.world.is_main and run.metrics:
        try:
            with open(out / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.writelines(_as_json_line(line) for line in run.metrics)
        except OSError as error:
            raise SeenitError(f"cannot write {out / 'metrics.jsonl'}: {error.strerror}; make room there") from error
        for line in run.metrics if run.board is not None else []:
            for name, value in _finite(line).items():
                if value is None:
                    continue
                run.board.add_scalar(name, value, line["step"])
    run.metrics = []


def _finite(line: dict[str, Any]) -> dict[str, Any]:
    """The line with null where a number is infinite or none, for which JSON has no word."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}


def _as_json_line(line: dict[str, Any]) -> str:
    return json.dumps(_finite(line), allow_nan=False) + "\n"


def open_board(folder: Path) -> Any:
    """A writer for TensorBoard; None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))


def close_board(board: Any) -> None:
    if board is not None:
        board.close()


def write_results(run: Run, state: dict[str, Tensor], out: Path, comparison: BeforeAndAfter | None, say: Say) -> None:
    """The average's backbone and heads, and the report; the original backbone where training made it worse.

    state  the average's tensors, whole
    """
    heads = {name: value for name, value in state.items() if name.startswith(_HEAD_PARTS)}
    write_tensors(out / "heads.safetensors", heads, {"seenit_heads": json.dumps(config_as_json(run.config))})
    weights = {name.removeprefix("backbone."): v for name, v in state.items() if name.startswith("backbone.")}
    provenance = run.provenance | {"steps": str(run.step), "seed": str(run.config.seed)}
    trained = Checkpoint(run.name, "", run.architecture, run.preprocessing, weights, provenance=provenance)
    notes = []
    if comparison is not None:
        comparison.after = comparison.trial.score(_backbone_of(make_vit(run.architecture, weights), run))
        notes.append(comparison.verdict())
        say(notes[0])
    write_better(out, trained, comparison)
    write_report(out, title=run.name, notes=notes)


def write_better(out: Path, trained: Checkpoint, comparison: BeforeAndAfter | None) -> None:
    """OUT/backbone.safetensors: the trained backbone; where that is worse the original, the trained one beside it."""
    if comparison is None or not comparison.got_worse:
        _write_backbone(out / "backbone.safetensors", trained)
        return
    _write_backbone(out / "backbone_trained.safetensors", trained)
    _write_backbone(out / "backbone.safetensors", comparison.origin)


def _write_backbone(path: Path, backbone: Checkpoint) -> None:
    save_checkpoint(
        path,
        backbone.state,
        backbone.architecture,
        name=backbone.name,
        preprocessing=backbone.preprocessing,
        provenance=backbone.provenance,
        extra=backbone.extra,
    )


@dataclass
class BeforeAndAfter:
    """The backbone that a run started from against what became of it, on images that it was not trained on."""

    origin: Checkpoint
    trial: HeldOutTrial
    before: TrialScores
    after: TrialScores | None = None  # until the run is at its end

    @property
    def got_worse(self) -> bool:
        return self.after is not None and got_worse(self.before, self.after)

    def verdict(self) -> str:
        assert self.after is not None
        scores = f"before: {self.before.line()}; after: {self.after.line()}"
        if self.got_worse:
            return (
                "training made the backbone worse on photos that it had not seen, so backbone.safetensors is the"
                f" original; {scores}; try fewer steps, a lower rate or more photos"
            )
        low, high = retrieval_change(self.before, self.after)
        noise = ", which is no more than chance" if low <= 0 <= high else ""
        return (
            f"the trained backbone is kept; {scores}; retrieval changed by {low:+.3f} to {high:+.3f}"
            f" (95 % interval{noise})"
        )


def compare_before(
    run: Run, origin: Checkpoint, source: ImageSource, held: ImageSource, say: Say
) -> BeforeAndAfter | None:
    """Score the original; None where no images can be read for that."""
    trial = prepare_trial(
        source,
        held,
        size_px=run.config.global_size,
        patch_size=run.architecture.patch_size,
        workers=run.config.workers or 0,
        seed=run.config.seed,
    )
    if trial is None:
        say("before and after cannot be compared: the images held out for that cannot be read")
        return None
    comparison = BeforeAndAfter(origin, trial, trial.score(_backbone_of(build_model(origin), run)))
    say(f"before: {comparison.before.line()}")
    return comparison


class FeaturePreviews:
    """Images for the eye and k-NN accuracy in the middle of a run, by the process that writes files."""

    def __init__(self, run: Run, source: ImageSource, labelled: str | Path | None, out: Path) -> None:
        self.run, self.source, self.out = run, source, out
        self.labelled = None if labelled is None else read_labelled(labelled)
        self.watched: Watched | None = None

    def show(self) -> dict[str, float]:
        """Write the images; returns further metrics.

        Compiled blocks run plainly meanwhile: every new size would be compiled, and torch gives up on a block that has
        been compiled for a handful of them, in training as well.
        """
        with torch.compiler.set_stance("force_eager"):
            return self._show()

    def _show(self) -> dict[str, float]:
        run = self.run
        if run.world.size > 1 and run.config.parallel == "fsdp":
            return {}  # no process has the whole network
        backbone = _backbone_of(run.average.backbone, run)
        if backbone.depth > 1 and len(self.source) > 1:
            if self.watched is None:
                self.watched = Watched(self.source, size_px=run.config.global_size, patch=backbone.patch_size)
            self.watched.save(backbone, self.out / "images", run.step)
        if self.labelled is None:
            return {}
        features = embed_labelled(
            backbone, self.labelled, resolution=run.config.global_size, num_blocks=1, say=lambda line: None
        )
        return {"knn": round(knn(*_halves(features), neighbours=[NEIGHBOURS]).best, 4)}


def _halves(features: LabelledFeatures) -> tuple[LabelledFeatures, LabelledFeatures]:
    """Every second image to vote, the others to be told."""
    return tuple(  # type: ignore[return-value]
        replace(features, cls=features.cls[n::2], mean=features.mean[n::2], labels=features.labels[n::2])
        for n in (0, 1)
    )


def _backbone_of(vit: VisionTransformer, run: Run) -> Backbone:
    return replace(as_backbone(vit.to(run.device)), preprocessing=run.preprocessing)
