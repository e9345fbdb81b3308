"""The command line: parse, call, print. Results go to stdout, everything else to stderr.

Heavy packages are imported inside the commands, so that `seenit --help` and a usage error answer at once.
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated

import typer

from indexer import commands as indexer_commands
from indexer.collector import collector_at_rest
from indexer.common_options import SeenitCommand
from indexer.pipes import Interrupted, PipeBroke, PipedCommands, is_read
from indexer.terminal import complain, set_verbosity
from retrieval import commands as retrieval_commands
from retrieval.duplicates import commands as duplicates_commands
from retrieval.serve import commands as serve_commands
from trainer import commands as trainer_commands
from trainer.curation import commands as curation_commands

app = typer.Typer(
    cls=PipedCommands,
    help="Finds the same thing again: index your photos, then search them with an image.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
backbone_app = typer.Typer(help="Networks for images: list, fetch, import, export, path.", no_args_is_help=True)
tag_app = typer.Typer(help="Tags on images: add, remove, list, export, import.", no_args_is_help=True)
evaluate_app = typer.Typer(help="How good retrieval is, or a backbone's features.", no_args_is_help=True)


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


GROUPS = {"": app, "backbone": backbone_app, "evaluate": evaluate_app, "tag": tag_app}
for _name, _group in GROUPS.items():
    if _name:
        app.add_typer(_group, name=_name)

# by name: the function, and what is written behind the name in an example
COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "index": (retrieval_commands.index, "~/Pictures        then: seenit search photo.jpg"),
    "search": (retrieval_commands.search, "photo.jpg --top 5 --after 2023 --html results.html --open"),
    "explain": (retrieval_commands.explain, "photo.jpg found.jpg -o match.png"),
    "duplicates": (
        duplicates_commands.duplicates,
        "~/Pictures --html duplicates.html   then: --move-to ~/duplicates --yes",
    ),
    "info": (indexer_commands.info, "--index ~/Pictures/.seenit --skipped"),
    "serve": (serve_commands.serve, "~/Pictures --open   then: http://127.0.0.1:8765/docs for the API"),
    "check": (indexer_commands.check, "--index ~/Pictures/.seenit        then: seenit check --repair"),
    "copy": (indexer_commands.copy, "~/Pictures/.seenit http://localhost:6333/photos"),
    "demo": (retrieval_commands.demo, "demo   then: seenit index demo/photos; seenit search demo/queries --batch"),
    "embed": (indexer_commands.embed, "~/Pictures --out features.npy"),
    "backbone list": (indexer_commands.backbone_list, ""),
    "backbone import": (indexer_commands.backbone_import, "dinov2_vitb14_pretrain.pth --name my_vitb14"),
    "backbone fetch": (indexer_commands.backbone_fetch, "dinov2_vitb14"),
    "backbone export": (indexer_commands.backbone_export, "dinov2_vits14 --onnx vits14.onnx"),
    "backbone path": (indexer_commands.backbone_path_, "seenit_vits14"),
    "tag add": (indexer_commands.tag_add, "holiday ~/Pictures/2023"),
    "tag remove": (indexer_commands.tag_remove, "holiday ~/Pictures/2023/receipts"),
    "tag list": (indexer_commands.tag_list, ""),
    "tag export": (indexer_commands.tag_export, "> tags.json"),
    "tag import": (indexer_commands.tag_import, "tags.json --index ~/Pictures/.seenit"),
    "curate": (
        curation_commands.curate,
        "~/Downloads --like ~/Paintings --avoid test/ --out photos.txt --html photos.html",
    ),
    "train": (trainer_commands.train, "~/Pictures --preset adapt --from dinov2_vits14 --out run"),
    "evaluate retrieval": (
        retrieval_commands.evaluate_retrieval,
        "landmarks/manifest.csv --distractors others/manifest.csv",
    ),
    "evaluate knn": (trainer_commands.evaluate_knn, "photos/train photos/val"),
    "evaluate linear": (trainer_commands.evaluate_linear, "photos/train photos/val"),
    "evaluate fewshot": (trainer_commands.evaluate_fewshot, "photos/train photos/val"),
    "evaluate segmentation": (trainer_commands.evaluate_segmentation, "coco --resolution 448"),
    "evaluate depth": (trainer_commands.evaluate_depth, "rooms --resolution 448"),
}
for _name, (_command, _arguments) in COMMANDS.items():
    _group_name, _, _short = _name.rpartition(" ")
    _register = GROUPS[_group_name].command(
        _short, cls=SeenitCommand, epilog=f"Example: seenit {_name} {_arguments}".rstrip()
    )
    _register(_command)


@collector_at_rest()
def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit 1, a usage error exit 2."""
    for stream in (sys.stdout, sys.stderr):  # file names need not be valid text; a pipe must not choke on them
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="surrogateescape" if os.name == "posix" else "backslashreplace")  # type: ignore[union-attr]
    from indexer.configuration import apply_configuration
    from indexer.errors import SeenitError

    set_verbosity(0)
    # torch's threads wait for work by spinning, on a core that decoders and other programs want; with this, read when
    # torch is loaded, they sleep: a fifth less processor time for a search or an index, more on a busy machine
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        apply_configuration()
        try:
            app()
        finally:
            sys.stdout.flush()  # a reader that went away shows now, and not after the end
    except SeenitError as error:
        _fail(str(error))
    except (PipeBroke, BrokenPipeError):
        if is_read(sys.stdout):
            _fail("a process that was started to help ended too early; run it again")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has seen enough
    except OSError as error:
        _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except MemoryError:
        _fail("not enough memory; close other programs or take a smaller --backbone")
    except (Interrupted, KeyboardInterrupt):
        complain("stopped")
        sys.exit(130)


def _fail(message: str) -> None:
    complain(message.strip())
    sys.exit(1)


if __name__ == "__main__":
    main()
