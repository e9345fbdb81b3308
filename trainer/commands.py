"""Commands that train backbones and score their features."""

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from indexer.errors import SeenitError
from indexer.printable import printable
from indexer.terminal import BackboneOption, JsonOption, say, shows_progress, stop_on_interrupt

if TYPE_CHECKING:
    from .config import Config
    from .evaluate.dense import DenseFeatures, DepthScores, SegmentationScores
    from .evaluate.labelled import LabelledFeatures
    from .evaluate.probes import FewShotScores, KnnScores, LinearScores
    from .train import TrainSummary

    Scores = KnnScores | LinearScores | FewShotScores | SegmentationScores | DepthScores


TrainPhotos = Annotated[
    Path, typer.Argument(metavar="TRAIN", help="A folder with a folder of photos per class, or a CSV of path, label.")
]


ValPhotos = Annotated[Path, typer.Argument(metavar="VAL", help="The same for the photos to score.")]


def train(
    photos: Annotated[
        list[str], typer.Argument(metavar="PHOTOS...", help="Folders, lists, tables, tar shards, or addresses.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where all results go.")],
    preset: Annotated[
        str, typer.Option("--preset", "--arch", help="vits14, vitb14, vitl14, vitg14, ..., adapt, views, head, tiny.")
    ] = "vits14",
    start: Annotated[
        str | None, typer.Option("--from", metavar="NAME|PATH", help="The backbone to start from.")
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="TOML", help="Keys of the configuration, in a file.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One key; repeat for several.")
    ] = None,
    labelled: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Photos in a folder per class, for k-NN on the way.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last snapshot in DIR.")] = False,
) -> None:
    """Train or adapt a backbone, or fit a retrieval head.

    By DINOv2 on photos, from random weights or from a backbone that is adapted to them; or, by the preset views, a
    backbone towards views of one photo in other light.
    """
    if preset == "head":
        _refuse(preset, {"--set": changes, "--config": config, "--labelled": labelled, "--resume": resume})
        from .retrieval_head import train_head

        progress = shows_progress()
        head = train_head(_as_images(photos), out, from_backbone=start or "auto", progress=progress, say=say)
        print(head.table())
        print(
            printable(f"wrote {head.backbone}") if head.backbone else "unseen photos do not gain; nothing was written"
        )
        return
    from .config import make_config
    from .train import train as train_backbone

    made = make_config(preset, file=config, changes=changes or ())
    if made.method == "views":
        _refuse("views", {"--labelled": labelled, "--resume": resume})
        _train_views(photos, out, made, start)
        return
    with stop_on_interrupt(signal.SIGTERM) as stop:  # Slurm and docker stop send that
        summary = train_backbone(
            _as_images(photos),
            out,
            made,
            from_backbone=start,
            labelled=labelled,
            resume=resume,
            progress=shows_progress() and sys.stderr.isatty(),  # elsewhere it tells its losses in lines of its own
            stop=stop.is_set,
            say=say,
        )
    if os.environ.get("RANK", "0") != "0":  # under torchrun the first process speaks
        sys.exit(130 if summary.stopped else 0)
    written = printable(f"wrote {summary.backbone}")
    _end_with(summary, "stopped early; go on with --resume" if summary.stopped else written)


def _train_views(photos: Sequence[str], out: Path, config: "Config", start: str | None) -> None:
    from .view_distillation import train_views

    if start is None:
        raise SeenitError(
            "--preset views starts from a trained backbone; name one by --from, for instance seenit_vits14"
        )
    with stop_on_interrupt(signal.SIGTERM) as stop:
        summary = train_views(
            _as_images(photos),
            out,
            config,
            from_backbone=start,
            progress=shows_progress() and sys.stderr.isatty(),
            stop=stop.is_set,
            say=say,
        )
    _end_with(summary, printable(f"wrote {summary.backbone}"))


def _end_with(summary: "TrainSummary", outcome: str) -> None:
    """Print what came of a run; one that was stopped ends the command with 130."""
    if summary.before and summary.after:
        print(f"before {summary.before.line()}\nafter  {summary.after.line()}")
    print(f"{summary.steps:,} steps, loss {summary.loss:.3f}, {summary.images_per_s:.1f} images/s")
    print(outcome)
    if summary.kept_original:
        print("training made it worse: that file is the backbone it started from")
    if summary.stopped:
        sys.exit(130)


def _refuse(preset: str, given: Mapping[str, object]) -> None:
    """SeenitError for the first of the options that is given, where the preset reads none of them."""
    for option, value in given.items():
        if value:
            raise SeenitError(f"--preset {preset} does not read {option}; leave it out")


def _as_images(photos: Sequence[str]) -> str | list[str | Path]:
    return photos[0] if len(photos) == 1 else list(photos)


def evaluate_knn(
    train_photos: TrainPhotos, val_photos: ValPhotos, backbone: BackboneOption = "auto", as_json: JsonOption = False
) -> None:
    """Weighted k-NN on the last CLS."""
    from .evaluate.probes import knn

    _print_scores(knn(*_labelled_features(backbone, train_photos, val_photos, as_json)), as_json)


def evaluate_linear(
    train_photos: TrainPhotos, val_photos: ValPhotos, backbone: BackboneOption = "auto", as_json: JsonOption = False
) -> None:
    """Linear classifiers on frozen features.

    The reference's grid of rates, blocks and pooling in one pass.
    """
    from .evaluate.probes import linear

    _print_scores(linear(*_labelled_features(backbone, train_photos, val_photos, as_json)), as_json)


def evaluate_fewshot(
    train_photos: TrainPhotos, val_photos: ValPhotos, backbone: BackboneOption = "auto", as_json: JsonOption = False
) -> None:
    """The nearest class mean of a few photos each."""
    from .evaluate.probes import few_shot

    _print_scores(few_shot(*_labelled_features(backbone, train_photos, val_photos, as_json)), as_json)


ImagesOption = Annotated[
    int | None, typer.Option("--images", min=2, metavar="N", help="Of each division only so many, evenly spread.")
]


def evaluate_segmentation(
    folder: Annotated[Path, typer.Argument(help="images/ and masks/ (PNG of class numbers), Pascal VOC, or ADE20K.")],
    backbone: BackboneOption = "auto",
    resolution: Annotated[int, typer.Option(metavar="PX")] = 448,
    images: ImagesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Linear segmentation on patch features.

    Pascal VOC and ADE20K are fitted and scored on their own divisions, any other set in folds.
    """
    from .evaluate.dense import segmentation

    train, val, _ = _dense_features(backbone, folder, "masks", resolution, images, as_json)
    _print_scores(segmentation(train, val), as_json)


def evaluate_depth(
    folder: Annotated[Path, typer.Argument(help="images/ and depth/ (16-bit PNG of mm, or NPY), or NYU's splits.")],
    backbone: BackboneOption = "auto",
    resolution: Annotated[int, typer.Option(metavar="PX")] = 448,
    head: Annotated[
        Literal["log", "bins"], typer.Option(help="Ridge regression to the logarithm, or the paper's 256 bins.")
    ] = "log",
    max_depth: Annotated[
        float, typer.Option(min=0.01, metavar="M", help="What is further away does not count.")
    ] = 10.0,
    images: ImagesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Linear depth on patch features.

    NYU Depth V2 is fitted and scored on its own divisions, any other set in folds.
    """
    from .evaluate.dense import depth

    train, val, own_limit = _dense_features(backbone, folder, "depth", resolution, images, as_json)
    _print_scores(depth(train, val, head=head, max_depth=max_depth or own_limit), as_json)


def _labelled_features(
    backbone: str, train_photos: Path, val_photos: Path, as_json: bool
) -> "tuple[LabelledFeatures, ...]":
    from indexer.backbone.backbone import Backbone

    from .evaluate.labelled import embed_labelled, read_labelled

    known = read_labelled(train_photos)
    asked = read_labelled(val_photos, known.classes)
    loaded, progress = Backbone.load(backbone, say=say), shows_progress(as_json)
    return tuple(embed_labelled(loaded, images, progress=progress, say=say) for images in (known, asked))


def _dense_features(
    backbone: str, folder: Path, kind: Literal["masks", "depth"], resolution: int, most: int | None, as_json: bool
) -> "tuple[DenseFeatures, DenseFeatures | None, float]":
    """What to fit on; what to score, None: the same in folds; beyond how many metres nothing counts."""
    from indexer.backbone.backbone import Backbone

    from .evaluate.dense import embed_pairs
    from .evaluate.dense_sets import read_dense_set

    found = read_dense_set(folder, kind, most)
    loaded, progress = Backbone.load(backbone, say=say), shows_progress(as_json)
    train, val = (
        None if pairs is None else embed_pairs(loaded, pairs, resolution=resolution, progress=progress, say=say)
        for pairs in (found.train, found.val)
    )
    assert train is not None
    return train, val, found.max_depth


def _print_scores(scores: "Scores", as_json: bool) -> None:
    print(json.dumps(asdict(scores)) if as_json else scores.table())
