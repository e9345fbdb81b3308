"""The options that every command has: how much it says, and whether it may use a network."""

import os
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from .collector import wake_collector
from .terminal import set_verbosity

BRIEF = ("explain", "info", "search")  # commands that end before cycles could fill memory


class SeenitCommand(TyperCommand):
    """A command with the common options beside its own."""

    def get_params(self, ctx: Any) -> list[Any]:
        own = super().get_params(ctx)
        return [*own[:-1], *common_options(), own[-1]]  # the last one is --help

    def invoke(self, ctx: Any) -> Any:
        if self.name not in BRIEF:
            wake_collector()
        return super().invoke(ctx)


def _be_quiet(wanted: bool) -> None:
    if wanted:
        set_verbosity(-1)


def _be_verbose(wanted: bool) -> None:
    if wanted:
        set_verbosity(1)


def _stay_offline(wanted: bool) -> None:
    if wanted:
        os.environ["SEENIT_OFFLINE"] = "1"  # for this process and those that it starts


def _declaration(
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", callback=_be_quiet, expose_value=False, help="Only results and errors.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", callback=_be_verbose, expose_value=False, help="Say more, on stderr.")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", callback=_stay_offline, expose_value=False, help="Use no network for weights.")
    ] = False,
) -> None:
    """Typer reads options from a signature; this one is never called."""


@cache
def common_options() -> Sequence[Any]:
    app = typer.Typer(add_completion=False)
    app.command()(_declaration)
    return tuple(typer.main.get_command(app).params)
