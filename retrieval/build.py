"""Everything that makes an index ready to be searched, with one backbone loaded once."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from indexer.backbone.load_once import LoadOnce, load_once
from indexer.errors import StoreError
from indexer.index.calibration import Calibration
from indexer.index.place import located
from indexer.messages import Say, say_nothing
from indexer.sync.options import SyncOptions
from indexer.sync.progress import Progress
from indexer.sync.summary import Summary
from indexer.sync.sync import default_index, sync_folder

from .calibrate import FEWEST, calibrate

if TYPE_CHECKING:
    from indexer.backbone.backbone import Backbone


STOPPED = "all images are indexed; the probability of a match remains to be learnt: run the same command again"


@dataclass(frozen=True)
class Built:
    """What `build_index` did.

    calibration  None where the index is too small to learn from, or where that was not reached
    interrupted  whether `stop` cut it short, in whichever of its steps
    """

    summary: Summary
    calibration: Calibration | None
    notes: tuple[str, ...] = ()  # what else the user should know, a line each
    interrupted: bool = False
    calibration_s: float = 0.0  # that learning took


def build_index(
    folders: str | Path | Sequence[str | Path] = (),
    index: str | Path | None = None,
    *,
    options: SyncOptions = SyncOptions(),
    backbone: "Backbone | LoadOnce | str | Path | None" = None,
    progress: Progress = False,
    stop: Callable[[], bool] = lambda: False,
    say: Say = say_nothing,
) -> Built:
    """Bring an index in line with folders, and learn the probability of a match where that is due.

    For the arguments see `indexer.sync.sync.sync_folder`; `backbone` may be a LoadOnce, which keeps it for later
    rounds.

    >>> from retrieval import build_index
    >>> built = build_index("photos")
    >>> built.summary.images, built.summary.changes.unchanged
    (10, 11)
    """
    folders = [folders] if isinstance(folders, (str, Path)) else list(folders)
    location = located(index if index is not None else default_index(folders))
    once = load_once(backbone, say)
    summary = sync_folder(
        folders,
        location,
        options=options,
        backbone=once,
        progress=progress,
        stop=stop,
        say=say,
    )
    if options.dry_run or summary.interrupted or not summary.images:
        return Built(summary, None, interrupted=summary.interrupted)
    if callable(progress):
        progress("learning probabilities", 0, 0)
    began = time.monotonic()
    try:
        calibration = calibrate(location, wait_s=options.wait_s, stop=stop, say=say)
    except StoreError as error:  # all images are written; the next run learns
        return Built(summary, None, (f"the probability of a match was not learnt: {error}",))
    if calibration is None and summary.images >= FEWEST and stop():
        return Built(summary, None, (STOPPED,), interrupted=True)
    return Built(summary, calibration, calibration_s=time.monotonic() - began)
