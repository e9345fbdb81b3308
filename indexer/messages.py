"""Where a library function's lines for its user go: to a function of the caller's."""

import sys
from collections.abc import Callable

from .printable import printable

Say = Callable[[str], object]  # given one line without its end


def say_to_stderr(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)


def say_nothing(line: str) -> None:
    pass
