"""Python's collector of reference cycles, kept out of where it finds nothing: a command's start and its end.

What imports make stays until the process ends, and is looked through again and again while it grows; at the end all of
it is taken apart, object by object, before the memory is given back anyway. With torch the first is a twelfth of a
search's processor time, the second a fifth.
"""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """Collect no cycles within, until `wake_collector` is called, and none when the process ends; also a decorator."""
    _leave_out_the_last()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def wake_collector() -> None:
    """For whatever runs long, or works through many things: cycles may hold images."""
    gc.enable()


@cache
def _leave_out_the_last() -> None:
    atexit.register(gc.freeze)  # what is frozen is no longer looked at
