"""What a synchronisation did."""

from collections import Counter
from dataclasses import dataclass

from .ledger import Changes, Ledger


@dataclass(frozen=True)
class Summary:
    """What a run did. `skipped` counts the files that look like images and cannot be read, by reason."""

    index: str
    changes: Changes
    skipped: dict[str, int]
    unreadable: tuple[str, ...]  # folders that could not be listed; what was known below them is kept
    images: int  # records in the index now
    embedded: int  # images that went through the backbone in this run
    refitted: bool  # the descriptor's statistics were fitted (again)
    seconds: float
    images_per_s: float  # embedded images over the time of embedding; 0 if none
    interrupted: bool
    dry_run: bool
    backbone: str
    notes: tuple[str, ...] = ()  # what else the user should know, a line each


def _skip_reasons(ledger: Ledger) -> dict[str, int]:
    return dict(Counter(file.reason or "" for file in ledger.skipped(only_broken=True)).most_common())
