"""The command line: parse, call, print. Results go to stdout, everything else to stderr.

Heavy packages are imported inside the commands, so that `seenit --help` and a usage error answer at once.
"""

import os
import sys
from contextlib import suppress
from typing import Annotated

import typer

from indexer import commands as indexer_commands
from indexer.common_options import SeenitCommand
from indexer.terminal import complain, set_verbosity
from retrieval import commands as retrieval_commands
from retrieval.duplicates import commands as duplicates_commands
from trainer import commands as trainer_commands
from trainer.curation import commands as curation_commands

app = typer.Typer(
    help="Finds the same thing again: index your photos, then search them with an image.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
backbone_app = typer.Typer(help="Networks for images: list, fetch, import, export, path.", no_args_is_help=True)
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
    cls=SeenitCommand,
    epilog="Example: seenit index ~/Pictures        then: seenit search photo.jpg",
)(retrieval_commands.index)
app.command(
    cls=SeenitCommand, epilog="Example: seenit search photo.jpg --top 5 --after 2023 --html results.html --open"
)(retrieval_commands.search)
app.command(cls=SeenitCommand, epilog="Example: seenit explain photo.jpg found.jpg -o match.png")(
    retrieval_commands.explain
)
app.command(
    cls=SeenitCommand,
    epilog="Example: seenit duplicates ~/Pictures --html duplicates.html   then: --move-to ~/duplicates --yes",
)(duplicates_commands.duplicates)
app.command(cls=SeenitCommand, epilog="Example: seenit info --index ~/Pictures/.seenit --skipped")(
    indexer_commands.info
)
app.command(
    cls=SeenitCommand, epilog="Example: seenit check --index ~/Pictures/.seenit        then: seenit check --repair"
)(indexer_commands.check)
app.command(cls=SeenitCommand, epilog="Example: seenit copy ~/Pictures/.seenit http://localhost:6333/photos")(
    indexer_commands.copy
)
app.command(
    cls=SeenitCommand,
    epilog="Example: seenit demo demo   then: seenit index demo/photos; seenit search demo/queries --batch",
)(retrieval_commands.demo)
app.command(cls=SeenitCommand, epilog="Example: seenit embed ~/Pictures --out features.npy")(indexer_commands.embed)
backbone_app.command("list", cls=SeenitCommand, epilog="Example: seenit backbone list")(indexer_commands.backbone_list)
backbone_app.command(
    "import", cls=SeenitCommand, epilog="Example: seenit backbone import dinov2_vitb14_pretrain.pth --name my_vitb14"
)(indexer_commands.backbone_import)
backbone_app.command("fetch", cls=SeenitCommand, epilog="Example: seenit backbone fetch dinov2_vitb14")(
    indexer_commands.backbone_fetch
)
backbone_app.command(
    "export", cls=SeenitCommand, epilog="Example: seenit backbone export dinov2_vits14 --onnx vits14.onnx"
)(indexer_commands.backbone_export)
backbone_app.command("path", cls=SeenitCommand, epilog="Example: seenit backbone path seenit_vits14")(
    indexer_commands.backbone_path_
)
tag_app.command("add", cls=SeenitCommand, epilog="Example: seenit tag add holiday ~/Pictures/2023")(
    indexer_commands.tag_add
)
tag_app.command("remove", cls=SeenitCommand, epilog="Example: seenit tag remove holiday ~/Pictures/2023/receipts")(
    indexer_commands.tag_remove
)
tag_app.command("list", cls=SeenitCommand, epilog="Example: seenit tag list")(indexer_commands.tag_list)
tag_app.command("export", cls=SeenitCommand, epilog="Example: seenit tag export > tags.json")(
    indexer_commands.tag_export
)
tag_app.command("import", cls=SeenitCommand, epilog="Example: seenit tag import tags.json --index ~/Pictures/.seenit")(
    indexer_commands.tag_import
)
app.command(
    cls=SeenitCommand,
    epilog="Example: seenit curate ~/Downloads --like ~/Paintings --avoid test/ --out photos.txt --html photos.html",
)(curation_commands.curate)
app.command(cls=SeenitCommand, epilog="Example: seenit train ~/Pictures --preset adapt --from dinov2_vits14 --out run")(
    trainer_commands.train
)
evaluate_app.command(
    "retrieval",
    cls=SeenitCommand,
    epilog="Example: seenit evaluate retrieval landmarks/manifest.csv --distractors others/manifest.csv",
)(retrieval_commands.evaluate_retrieval)
evaluate_app.command("knn", cls=SeenitCommand, epilog="Example: seenit evaluate knn photos/train photos/val")(
    trainer_commands.evaluate_knn
)
evaluate_app.command("linear", cls=SeenitCommand, epilog="Example: seenit evaluate linear photos/train photos/val")(
    trainer_commands.evaluate_linear
)
evaluate_app.command("fewshot", cls=SeenitCommand, epilog="Example: seenit evaluate fewshot photos/train photos/val")(
    trainer_commands.evaluate_fewshot
)
evaluate_app.command(
    "segmentation", cls=SeenitCommand, epilog="Example: seenit evaluate segmentation coco --resolution 448"
)(trainer_commands.evaluate_segmentation)
evaluate_app.command("depth", cls=SeenitCommand, epilog="Example: seenit evaluate depth rooms --resolution 448")(
    trainer_commands.evaluate_depth
)


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit 1, a usage error exit 2."""
    for stream in (sys.stdout, sys.stderr):  # file names need not be valid text; a pipe must not choke on them
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="surrogateescape" if os.name == "posix" else "backslashreplace")  # type: ignore[union-attr]
    from indexer.configuration import apply_configuration
    from indexer.errors import SeenitError

    set_verbosity(0)
    try:
        apply_configuration()
        app()
    except SeenitError as error:
        _fail(str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has seen enough
    except OSError as error:
        _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except MemoryError:
        _fail("not enough memory; close other programs or take a smaller --backbone")
    except KeyboardInterrupt:
        complain("stopped")
        sys.exit(130)


def _fail(message: str) -> None:
    complain(message.strip())
    sys.exit(1)


if __name__ == "__main__":
    main()
