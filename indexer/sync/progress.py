"""How far a stage of a run is: a bar on a terminal, and whoever else asks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

Report = Callable[[str, int, int], None]  # what is being done, how much of it is done, and of how much


def no_report(what: str, done: int, total: int) -> None:
    """For whoever does not ask."""


@contextmanager
def stage(
    what: str, total: int, unit: str, *, shown: bool, report: Report = no_report
) -> Iterator[Callable[[int, int], None]]:
    """One stage, from its first report to the end of the block; yields what takes how much is done, and of how much.

    shown  whether there is a bar on stderr
    """
    report(what, 0, total)
    with tqdm(total=total, unit=unit, desc=what, disable=not shown, leave=False) as bar:

        def update(done: int, of: int) -> None:
            bar.total = of
            bar.update(done - bar.n)
            report(what, done, of)

        yield update
