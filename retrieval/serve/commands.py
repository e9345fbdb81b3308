"""`seenit serve`: parse, open, serve. Heavy packages are imported inside, so that `seenit --help` stays quick."""

import faulthandler
import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from indexer.terminal import PrecisionOption, say

PORT = 8765


def serve(
    where: Annotated[
        str | None, typer.Argument(metavar="[INDEX|FOLDER|URL]", help="An index, or a folder that was indexed.")
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen at; all but the loopback need a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free.")] = PORT,
    token: Annotated[
        str | None,
        typer.Option(envvar="SEENIT_TOKEN", help="What every request must carry; better in SEENIT_TOKEN than here."),
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A further name that browsers may reach this server by.")
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Change neither tags, index nor files.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Bring the index in line when files change.")] = False,
    move_to: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where spare duplicates go. [.seenit-moved in the first indexed folder]"),
    ] = None,
    precision: PrecisionOption = "auto",
    open_page: Annotated[bool, typer.Option("--open", help="Show the page in the browser.")] = False,
) -> None:
    """A web page and a REST API over an index, until Ctrl-C."""
    if read_only and watch:
        raise typer.BadParameter("--watch changes the index, --read-only forbids it", param_hint="--watch")
    try:
        import fastapi  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        from indexer.errors import SeenitError

        raise SeenitError("seenit serve needs a web server; install it with: pip install 'seenit[web]'") from None
    from ..duplicates.commands import index_at
    from .security import Access, printed_url
    from .server import Server, allow_many_files, listen
    from .service import ServeOptions, Service

    with suppress(OSError, ValueError, RuntimeError):  # where stderr is no file
        faulthandler.enable()  # a crash in a library ends the process without a word otherwise
    access = Access(host, token, tuple(allow_host or ()))
    options = ServeOptions(
        read_only=read_only,
        watch=watch,
        move_to=str(move_to.absolute()) if move_to else None,
        precision=precision,
    )
    allow_many_files()
    with listen(host, port) as listening, Service.open(index_at(where), options, say) as service:
        bound = int(listening.getsockname()[1])
        url = printed_url(host, bound)
        server = Server(service, access, bound)
        with server.capture_signals():  # whoever reads the line may end the server at once
            say(f"serving {service.index.location} at {url}; Ctrl-C ends it")
            if open_page:  # the token is not handed to the browser's command line, where others see it
                webbrowser.open(f"{url}#token={access.new_code()}" if token else url)
            server.run([listening])
        say("finishing what runs")
