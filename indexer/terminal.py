"""What all commands share: messages, options, words into values."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Annotated, Literal

import typer

from .printable import printable

# Of a place that may be asked for, here and over HTTP
MOST_LATITUDE, MOST_LONGITUDE = 90.0, 180.0  # degrees, north and south, east and west
MOST_RADIUS_KM = 50_000.0  # more than the way around the earth

IndexOption = Annotated[
    str | None,
    typer.Option("--index", metavar="PATH|URL", help="The index: a folder, or http(s)://host:port/collection."),
]


WaitOption = Annotated[
    float, typer.Option("--wait", min=0, metavar="SECONDS", help="How long to wait for another process that writes.")
]


JsonOption = Annotated[bool, typer.Option("--json", help="JSON on stdout, for programs.")]


BackboneOption = Annotated[str, typer.Option(metavar="NAME|PATH", help="See: seenit backbone list.")]


PrecisionOption = Annotated[
    Literal["auto", "int8", "bfloat16", "float32"],
    typer.Option(help="What the network computes in. int8: about 1.4 times as fast on a CPU, a little less exact."),
]


# What `seenit index` and `seenit embed` share, and some of it other commands
ResolutionOption = Annotated[
    int | None,
    typer.Option("--resolution", metavar="PX", help="Images are seen at about PX x PX pixels. [224]"),
]


TokensOption = Annotated[
    Literal["compact", "balanced", "full"] | None,
    typer.Option("--tokens", help="Patches kept of each image, for reranking: 1, 3 or 49 kB. [balanced]"),
]


WorkersOption = Annotated[int | None, typer.Option("--workers", min=1, help="Decoding processes. [one per core]")]


PathColumnOption = Annotated[
    str,
    typer.Option(
        "--path-column", metavar="NAME", help="Of a table: the column of paths or addresses. [path, url, ...]"
    ),
]


KeyColumnOption = Annotated[
    str,
    typer.Option(
        "--key-column", metavar="NAME", help="Of a table: the column of each image's own key. [key, or the path]"
    ),
]


RayOption = Annotated[
    str | None,
    typer.Option("--ray", metavar="ADDRESS", help="Decode and embed on a Ray cluster: its address, auto, or local."),
]


ActorsOption = Annotated[
    int | None, typer.Option("--actors", min=1, help="On a cluster: processes that embed. [by its GPUs or cores]")
]


GpusPerActorOption = Annotated[
    float,
    typer.Option(
        "--gpus-per-actor", min=0, metavar="N", help="On a cluster: GPUs of each of them, or the share of one."
    ),
]


AllowPrivateOption = Annotated[
    bool, typer.Option("--allow-private", help="Fetch also from addresses of this machine and its network.")
]


_verbosity = 0  # -1: results and errors only; 0: also notes; 1: also details


def set_verbosity(level: int) -> None:
    global _verbosity
    _verbosity = level


def complain(line: str) -> None:
    """One line on stderr whatever was asked for; what a terminal would not show as it is, is escaped."""
    print(f"seenit: {printable(line)}", file=sys.stderr, flush=True)


def say(line: str) -> None:
    """A note on stderr, unless --quiet was given."""
    if _verbosity >= 0:
        complain(line)


def say_details(line: str) -> None:
    """A detail on stderr, where --verbose was given."""
    if _verbosity >= 1:
        complain(line)


def shows_progress(as_json: bool = False) -> bool:
    """Whether a command tells how far it is."""
    return not as_json and _verbosity >= 0


@contextmanager
def stop_on_interrupt(*also: signal.Signals) -> Iterator[threading.Event]:
    """The first Ctrl-C, or signal of those named, asks to stop after the batch in hand, the second stops at once."""
    stop = threading.Event()

    def ask(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        if os.environ.get("RANK", "0") == "0":  # under torchrun the first process speaks
            say("stopping after the batch in hand; Ctrl-C again stops at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, *also)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def parse_numbers(text: str, count: int, option: str, form: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count or any(value != value for value in values):
        raise typer.BadParameter(f"{text!r} is not {form}", param_hint=option)
    return values


def parse_place(text: str, option: str) -> tuple[float, float, float]:
    """Latitude, longitude in degrees and a radius in km, as `Filter.near` has them."""
    latitude, longitude, radius_km = parse_numbers(text, 3, option, "LAT,LON,KM")
    if abs(latitude) > MOST_LATITUDE or abs(longitude) > MOST_LONGITUDE or not 0 <= radius_km <= MOST_RADIUS_KM:
        raise typer.BadParameter(
            f"{text!r} is no place: a latitude is from -{MOST_LATITUDE:g} to {MOST_LATITUDE:g}, a longitude from"
            f" -{MOST_LONGITUDE:g} to {MOST_LONGITUDE:g}, a radius from 0 to {MOST_RADIUS_KM:,.0f} km",
            param_hint=option,
        )
    return latitude, longitude, radius_km


def parse_moment(text: str | None, option: str) -> datetime | None:
    """`moment_of` for an option of a command."""
    if text is None:
        return None
    try:
        return moment_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def attribute_of(text: str) -> tuple[str, str]:
    """A name and a value out of NAME=VALUE; ValueError where it is none. The value may hold further `=`."""
    name, sign, value = text.partition("=")
    if not name or not sign:
        raise ValueError(f"{text!r} is not NAME=VALUE")
    return name, value


def parse_attributes(texts: list[str], option: str) -> tuple[tuple[str, str], ...]:
    """`attribute_of` for an option of a command that may be given several times."""
    try:
        return tuple(map(attribute_of, texts))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def moment_of(text: str) -> datetime:
    """The start of a year, month or day, or a full ISO moment; UTC unless it says otherwise. ValueError for no date."""
    for form in ("%Y", "%Y-%m", "%Y-%m-%d"):
        with suppress(ValueError):
            return datetime.strptime(text, form).replace(tzinfo=UTC)
    with suppress(ValueError):
        moment = datetime.fromisoformat(text)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    raise ValueError(f"{text!r} is not a date; write 2023, 2023-05 or 2023-05-01")
