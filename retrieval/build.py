"""Everything that makes an index ready to be searched, with one backbone loaded once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from indexer.backbone.load_once import LoadOnce, load_once
from indexer.errors import StoreError
from indexer.index.calibration import Calibration
from indexer.index.index import WAIT_S
from indexer.sync.progress import Report, no_report
from indexer.sync.summary import Summary
from indexer.sync.sync import default_index, sync_folder

from .calibrate import calibrate

if TYPE_CHECKING:
    from indexer.backbone.backbone import Backbone


@dataclass(frozen=True)
class Built:
    """What `build_index` did. `calibration` is None where the index is too small to learn from, or was not reached."""

    summary: Summary
    calibration: Calibration | None
    notes: tuple[str, ...] = ()  # what else the user should know, a line each


def build_index(
    folders: str | Path | Sequence[str | Path] = (),
    index: str | Path | None = None,
    *,
    backbone: "Backbone | LoadOnce | str | Path | None" = None,
    resolution: int | None = None,
    tokens: str | None = None,
    workers: int | None = None,
    dry_run: bool = False,
    allow_empty: bool = False,
    follow_links: bool = False,
    wait_s: float = WAIT_S,
    progress: bool = False,
    report: Report = no_report,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda line: None,
) -> Built:
    """Bring an index in line with folders, and learn the probability of a match where that is due.

    For the arguments see `indexer.sync.sync.sync_folder`; `backbone` may be a LoadOnce, which keeps it for later
    rounds.

    >>> from retrieval import build_index
    >>> built = build_index("photos")  # doctest: +SKIP
    >>> built.summary.images  # doctest: +SKIP
    150
    """
    folders = [folders] if isinstance(folders, (str, Path)) else list(folders)
    location = index if index is not None else default_index(folders)
    once = load_once(backbone, say)
    summary = sync_folder(
        folders,
        location,
        backbone=once,
        resolution=resolution,
        tokens=tokens,
        workers=workers,
        dry_run=dry_run,
        allow_empty=allow_empty,
        follow_links=follow_links,
        wait_s=wait_s,
        progress=progress,
        report=report,
        stop=stop,
        say=say,
    )
    if dry_run or summary.interrupted or not summary.images:
        return Built(summary, None)
    report("learning probabilities", 0, 0)
    try:
        return Built(summary, calibrate(location, backbone=once, wait_s=wait_s, stop=stop, say=say))
    except StoreError as error:  # all images are written; the next run learns
        return Built(summary, None, (f"the probability of a match was not learnt: {error}",))
