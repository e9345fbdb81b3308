"""How far a stage of a run is: a bar on a terminal, or a function that is told."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from ..progress_bar import progress_bar

# False: silence; True: a bar on stderr, lines off a terminal; a function: gets what is being done, how much of it is
# done, and of how much
Progress: TypeAlias = bool | Callable[[str, int, int], None]


@contextmanager
def stage(what: str, total: int, unit: str, progress: Progress) -> Iterator[Callable[[int, int], None]]:
    """One stage, until the block ends; yields what takes how much is done, and of how much."""
    if callable(progress):
        progress(what, 0, total)
        yield lambda done, of: progress(what, done, of)
        return
    with progress_bar(total, what, unit.strip(), progress) as bar:

        def update(done: int, of: int) -> None:
            bar.total = of
            bar.update(done - bar.n)

        yield update


@contextmanager
def counted_stage(what: str, total: int, unit: str, progress: Progress) -> Iterator[Callable[[int], None]]:
    """A stage that is told how many more are done."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report(done, total)

    with stage(what, total, unit, progress) as report:
        yield advance
