"""The command line: parse, call, print. Results go to stdout, everything else to stderr.

Heavy packages are imported inside the commands, so that `seenit --help` and a usage error answer at once.
"""

import os
import select
import sys
from contextlib import suppress
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from indexer import commands as indexer_commands
from indexer.terminal import say
from retrieval import commands as retrieval_commands
from retrieval.duplicates import commands as duplicates_commands
from retrieval.serve import commands as serve_commands
from trainer import commands as trainer_commands
from trainer.curation import commands as curation_commands


class _PipeBroke(Exception):
    """A BrokenPipeError that typer does not see: it would end the process with status 1 and without a word."""


class _Interrupted(Exception):
    """A KeyboardInterrupt, likewise."""


class _Commands(TyperGroup):
    def make_context(self, *values: Any, **named: Any) -> Any:  # prints the help
        try:
            return super().make_context(*values, **named)
        except BrokenPipeError as error:
            raise _PipeBroke from error

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _PipeBroke from error
        except KeyboardInterrupt:
            raise _Interrupted from None


app = typer.Typer(
    cls=_Commands,
    help="Finds the same thing again: index your photos, then search them with an image.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
backbone_app = typer.Typer(help="The networks that describe images: list, import, path.", no_args_is_help=True)
tag_app = typer.Typer(help="Tags on images: add, remove, list, export, import.", no_args_is_help=True)
evaluate_app = typer.Typer(
    help="How good retrieval is, or a backbone's features.",
    no_args_is_help=True,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from indexer.version import VERSION

        print(f"seenit {VERSION}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """What every command knows."""


app.add_typer(backbone_app, name="backbone")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(tag_app, name="tag")


app.command(
    epilog="Example: seenit index ~/Pictures        then: seenit search photo.jpg",
)(retrieval_commands.index)
app.command(epilog="Example: seenit search photo.jpg --top 5 --after 2023 --html results.html --open")(
    retrieval_commands.search
)
app.command(epilog="Example: seenit explain photo.jpg found.jpg -o match.png")(retrieval_commands.explain)
app.command(epilog="Example: seenit duplicates ~/Pictures --html duplicates.html   then: --move-to ~/duplicates --yes")(
    duplicates_commands.duplicates
)
app.command(epilog="Example: seenit serve ~/Pictures --open   then: http://127.0.0.1:8765/docs for the API")(
    serve_commands.serve
)
app.command(epilog="Example: seenit info --index ~/Pictures/.seenit --skipped")(indexer_commands.info)
app.command(epilog="Example: seenit check --index ~/Pictures/.seenit        then: seenit check --repair")(
    indexer_commands.check
)
app.command(epilog="Example: seenit copy ~/Pictures/.seenit http://localhost:6333/photos")(indexer_commands.copy)
app.command(epilog="Example: seenit demo demo   then: seenit index demo/photos; seenit search demo/queries --batch")(
    retrieval_commands.demo
)
backbone_app.command("list", epilog="Example: seenit backbone list")(indexer_commands.backbone_list)
backbone_app.command("import", epilog="Example: seenit backbone import dinov2_vitb14_pretrain.pth --name my_vitb14")(
    indexer_commands.backbone_import
)
backbone_app.command("path", epilog="Example: seenit backbone path dinov2_vits14")(indexer_commands.backbone_path_)
tag_app.command("add", epilog="Example: seenit tag add holiday ~/Pictures/2023")(indexer_commands.tag_add)
tag_app.command("remove", epilog="Example: seenit tag remove holiday ~/Pictures/2023/receipts")(
    indexer_commands.tag_remove
)
tag_app.command("list", epilog="Example: seenit tag list")(indexer_commands.tag_list)
tag_app.command("export", epilog="Example: seenit tag export > tags.json")(indexer_commands.tag_export)
tag_app.command("import", epilog="Example: seenit tag import tags.json --index ~/Pictures/.seenit")(
    indexer_commands.tag_import
)
app.command(
    epilog="Example: seenit curate ~/Downloads --like ~/Paintings --avoid test/ --out photos.txt --html photos.html"
)(curation_commands.curate)
app.command(epilog="Example: seenit train ~/Pictures --preset adapt --from dinov2_vits14 --out run")(
    trainer_commands.train
)
evaluate_app.command(
    "retrieval", epilog="Example: seenit evaluate retrieval landmarks/manifest.csv --distractors others/manifest.csv"
)(retrieval_commands.evaluate_retrieval)
evaluate_app.command("knn", epilog="Example: seenit evaluate knn photos/train photos/val")(
    trainer_commands.evaluate_knn
)
evaluate_app.command("linear", epilog="Example: seenit evaluate linear photos/train photos/val")(
    trainer_commands.evaluate_linear
)
evaluate_app.command("fewshot", epilog="Example: seenit evaluate fewshot photos/train photos/val")(
    trainer_commands.evaluate_fewshot
)
evaluate_app.command("segmentation", epilog="Example: seenit evaluate segmentation coco --resolution 448")(
    trainer_commands.evaluate_segmentation
)
evaluate_app.command("depth", epilog="Example: seenit evaluate depth rooms --resolution 448")(
    trainer_commands.evaluate_depth
)


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit 1, a usage error exit 2."""
    for stream in (sys.stdout, sys.stderr):  # file names need not be valid text; a pipe must not choke on them
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="surrogateescape" if os.name == "posix" else "backslashreplace")  # type: ignore[union-attr]
    from indexer.errors import SeenitError

    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # a reader that went away shows now, and not after the end
    except SeenitError as error:
        _fail(str(error))
    except (_PipeBroke, BrokenPipeError):
        if _is_read(sys.stdout):
            _fail("a process that was started to help ended too early; run it again")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has seen enough
    except OSError as error:
        _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except MemoryError:
        _fail("not enough memory; close other programs or take a smaller --backbone")
    except (_Interrupted, KeyboardInterrupt):
        say("stopped")
        sys.exit(130)


def _is_read(stream: TextIO) -> bool:
    """Whether somebody still reads what is written to a stream; False where the system does not tell."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    try:
        poll.register(stream.fileno(), 0)
    except (OSError, ValueError):  # no file at all
        return True
    return not poll.poll(0)  # asked for nothing: only errors are told


def _fail(message: str) -> None:
    say(message.strip())
    sys.exit(1)


if __name__ == "__main__":
    main()
