"""How a command ends that is interrupted, or whose output nobody reads any more: typer would end it without a word."""

import select
from typing import Any, TextIO

from typer.core import TyperGroup


class PipeBroke(Exception):
    """A BrokenPipeError that typer does not see: it would end the process with status 1 and without a word."""


class Interrupted(Exception):
    """A KeyboardInterrupt, likewise."""


class PipedCommands(TyperGroup):
    def make_context(self, *values: Any, **named: Any) -> Any:  # prints the help
        try:
            return super().make_context(*values, **named)
        except BrokenPipeError as error:
            raise PipeBroke from error

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise PipeBroke from error
        except KeyboardInterrupt:
            raise Interrupted from None


def is_read(stream: TextIO) -> bool:
    """Whether somebody still reads what is written to a stream; False where the system does not tell."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    try:
        poll.register(stream.fileno(), 0)
    except (OSError, ValueError):  # no file at all
        return True
    return not poll.poll(0)  # asked for nothing: only errors are told
