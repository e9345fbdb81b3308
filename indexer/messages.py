"""Where a library function's lines for its user go: to a function of the caller's."""

import sys
from collections.abc import Callable

Say = Callable[[str], object]  # given one line without its end


def say_to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def say_nothing(line: str) -> None:
    pass
