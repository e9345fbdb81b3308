"""How far a long step is: a bar on a terminal, and elsewhere a line on stderr every half minute."""

import sys
import time
from typing import Self

from tqdm import tqdm

LINE_EVERY_S = 30.0


class LineBar:
    """The part of tqdm that is used here, in whole lines; a short step says nothing."""

    def __init__(self, total: int | None, what: str, unit: str, initial: int = 0) -> None:
        self.total, self.n = total, initial
        self._what, self._unit, self._initial = what, unit, initial
        self._started = self._said = time.monotonic()

    def update(self, count: int = 1) -> None:
        self.n += count
        self.refresh()

    def refresh(self) -> None:
        now = time.monotonic()
        if now - self._said < LINE_EVERY_S:
            return
        self._said = now
        of = f" of {self.total:,}" if self.total else ""
        rate = (self.n - self._initial) / (now - self._started)
        print(f"seenit: {self._what}: {self.n:,}{of} {self._unit}, {rate:,.1f}/s", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing is left to tell."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def progress_bar(
    total: int | None, what: str, unit: str, shown: bool, *, initial: int = 0, bytes_: bool = False
) -> "tqdm | LineBar":
    """What is told of each part that is done.

    total   None where it is not known
    shown   False: silence
    bytes_  whether the unit is bytes, shown as kB and MB on a terminal
    """
    if shown and not sys.stderr.isatty():
        return LineBar(total, what, unit, initial)
    return tqdm(
        total=total,
        desc=what,
        unit=unit if bytes_ else f" {unit}",
        unit_scale=bytes_,
        initial=initial,
        disable=not shown,
        leave=False,
        smoothing=0.1,
        dynamic_ncols=True,
    )
