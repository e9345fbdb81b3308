"""The command line: parse, call, print. Results go to stdout, everything else to stderr.

Heavy packages are imported inside the commands, so that `seenit --help` and a usage error answer at once.
"""

import json
import os
import signal
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from retrieval.duplicates import command as duplicates
from trainer.curation import command as curate

if TYPE_CHECKING:
    from PIL import Image

    from indexer.errors import PictureError
    from indexer.sync.sync import Summary
    from retrieval.query.query import Region
    from retrieval.search import Result, Searcher
    from trainer.evaluate.dense import DenseFeatures, DepthScores, SegmentationScores
    from trainer.evaluate.labelled import LabelledFeatures
    from trainer.evaluate.probes import FewShotScores, KnnScores, LinearScores

    Scores = KnnScores | LinearScores | FewShotScores | SegmentationScores | DepthScores

app = typer.Typer(
    help="Finds the same thing again: index your photos, then search them with a picture.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
backbone_app = typer.Typer(help="The networks that describe pictures: list, import, path.", no_args_is_help=True)
tag_app = typer.Typer(
    help="Words of your own on pictures, to search among: add, remove, list, export, import.", no_args_is_help=True
)
evaluate_app = typer.Typer(
    help="How well things are found (retrieval), and how good a backbone's features are (the others).",
    no_args_is_help=True,
)
app.add_typer(backbone_app, name="backbone")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(tag_app, name="tag")

IndexOption = Annotated[
    str | None,
    typer.Option("--index", metavar="PATH|URL", help="The index: a folder, or http(s)://host:port/collection."),
]
WaitOption = Annotated[
    float, typer.Option("--wait", min=0, metavar="SECONDS", help="How long to wait for another process that writes.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on stdout, for programs.")]
BackboneOption = Annotated[str, typer.Option(metavar="NAME|PATH", help="See: seenit backbone list.")]
WATCH_AGAIN_S = 5.0  # until --watch asks again for an index that another process writes
TrainPhotos = Annotated[
    Path, typer.Argument(metavar="TRAIN", help="A folder with a folder of photos per class, or a CSV of path, label.")
]
ValPhotos = Annotated[Path, typer.Argument(metavar="VAL", help="The same for the photos to score.")]


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit 1, a usage error exit 2."""
    for stream in (sys.stdout, sys.stderr):  # file names need not be valid text; a pipe must not choke on them
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="surrogateescape" if os.name == "posix" else "backslashreplace")  # type: ignore[union-attr]
    from indexer.errors import SeenitError

    try:
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
        print("seenit: stopped", file=sys.stderr)
        sys.exit(130)


def _fail(message: str) -> None:
    print(f"seenit: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(1)


def _say(line: str) -> None:
    print(f"seenit: {line}", file=sys.stderr)


# ---- index ----


@app.command(
    epilog="Example: seenit index ~/Pictures        then: seenit search photo.jpg",
)
def index(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="FOLDER...", help="Folders of photos; none: those indexed before.")
    ] = None,
    index: IndexOption = None,
    backbone: Annotated[
        str | None,
        typer.Option(metavar="NAME|PATH", help="The network for a new index; see: seenit backbone list. [auto]"),
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(metavar="PX", help="Pictures are seen at about PX x PX pixels. [224]")
    ] = None,
    tokens: Annotated[
        Literal["compact", "balanced", "full"] | None,
        typer.Option(help="Patches kept of each picture, for reranking: 1, 3 or 49 kB. [balanced]"),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Decoding processes. [one per core]")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on keeping the index in line until Ctrl-C.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="Accept that a folder with indexed pictures is now empty.")
    ] = False,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Also what links out of the folders lead to.")
    ] = False,
    wait: WaitOption = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Bring the index in line with the folders: new, changed, deleted, renamed, moved and copied files.

    The default index of one folder is FOLDER/.seenit.
    """
    from indexer.backbone.load_once import LoadOnce
    from indexer.errors import LockedError
    from indexer.index.find_index import find_index, remember_index
    from indexer.sync.sync import default_index
    from retrieval.build import build_index

    folders = folders or []
    location = index if index is not None else str(default_index(folders)) if folders else find_index(None, say=_say)
    once = LoadOnce(backbone, _say)
    with _stop_on_interrupt() as stop:
        while True:
            try:
                built = build_index(
                    folders,
                    location,
                    backbone=once,
                    resolution=resolution,
                    tokens=tokens,
                    workers=workers,
                    dry_run=dry_run,
                    allow_empty=allow_empty,
                    follow_links=follow_links,
                    wait_s=wait,
                    progress=not as_json and sys.stderr.isatty(),
                    stop=stop.is_set,
                    say=_say,
                )
            except LockedError as error:
                if not watch:
                    raise
                _say(f"{error}; trying again")
                if stop.wait(WATCH_AGAIN_S):
                    sys.exit(130)
                continue
            summary = built.summary
            if not dry_run and summary.pictures:
                remember_index(location)
            print(json.dumps(asdict(summary)) if as_json else _summary_text(summary), flush=True)
            for note in built.notes:
                _say(note)
            if not watch or dry_run or stop.is_set() or not _wait_for_changes(folders, location, stop):
                break
    if summary.interrupted:
        sys.exit(130)


def _summary_text(summary: "Summary") -> str:
    changes = summary.changes
    parts = [
        f"added {changes.added:,}" + (f" ({_count(changes.copies, 'copy', 'copies')})" if changes.copies else ""),
        f"updated {changes.updated:,}",
        f"renamed {changes.renamed:,}",
        f"removed {changes.removed:,}",
        f"unchanged {changes.unchanged:,}",
    ]
    lines = [("would be: " if summary.dry_run else "") + ", ".join(parts)]
    if summary.skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in list(summary.skipped.items())[:4])
        lines.append(
            f"skipped {sum(summary.skipped.values()):,}: {reasons}"
            + (", ..." if len(summary.skipped) > 4 else "")
            + "  (all of them: seenit info --skipped)"
        )
    lines += [f"not readable, kept as it was: {folder}" for folder in summary.unreadable]
    lines += summary.notes
    if summary.interrupted:
        lines.append("stopped early: what was done is saved; run the same command again to go on")
    rate = f", {summary.images_per_s:.1f} images/s" if summary.embedded else ""
    lines.append(f"{summary.index}: {_count(summary.pictures, 'picture')}; {summary.seconds:.1f} s{rate}")
    return "\n".join(lines)


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


@contextmanager
def _stop_on_interrupt(*also: signal.Signals) -> Iterator[threading.Event]:
    """The first Ctrl-C, or signal of those named, asks to stop after the batch in hand, the second stops at once."""
    stop = threading.Event()

    def ask(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        if os.environ.get("RANK", "0") == "0":  # under torchrun the first process speaks
            _say("stopping after the batch in hand; Ctrl-C again stops at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, *also)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait_for_changes(folders: Sequence[Path], location: str, stop: threading.Event) -> bool:
    """Sleep until files below the folders change; False on Ctrl-C. The index is free for searches meanwhile."""
    from watchfiles import watch

    from indexer.index.index import Index

    watched = [str(folder) for folder in folders]
    if not watched:
        with Index.open(location) as index:
            watched = list(index.roots.folders.values())
    own = os.path.join(os.path.abspath(location), "")
    _say("watching for changes; Ctrl-C ends it")
    for _ in watch(
        *watched,
        watch_filter=lambda _, path: not path.startswith(own) and os.sep + ".seenit" + os.sep not in path,
        stop_event=stop,
        debounce=2000,
        raise_interrupt=False,
    ):
        return not stop.is_set()
    return False


# ---- search ----


@app.command(epilog="Example: seenit search photo.jpg --top 5 --after 2023 --html results.html --open")
def search(
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...", help="The query; several are views of one thing; a folder with --batch."),
    ],
    index: IndexOption = None,
    top: Annotated[int, typer.Option(min=1, help="How many results.")] = 10,
    region: Annotated[
        str | None, typer.Option(metavar="X,Y,W,H", help="Only this part of the query: pixels, or fractions of 1.")
    ] = None,
    batch: Annotated[
        bool, typer.Option("--batch", help="Every picture, or every one of a folder, is a query.")
    ] = False,
    rerank: Annotated[
        bool | None, typer.Option("--rerank/--no-rerank", help="Rescore the best candidates on patches. [on]")
    ] = None,
    like: Annotated[list[Path] | None, typer.Option(metavar="IMAGE", help="A result that was right.")] = None,
    unlike: Annotated[
        list[Path] | None, typer.Option("--not", metavar="IMAGE", help="A result that was wrong.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare with every picture, and rerank all of them up to 10,000.")
    ] = False,
    expand: Annotated[
        int, typer.Option(min=0, metavar="N", help="Ask again with the N first results mixed into the query.")
    ] = 0,
    augment: Annotated[
        int, typer.Option(min=0, metavar="N", help="Compare each candidate together with its N neighbours.")
    ] = 0,
    include_self: Annotated[bool, typer.Option("--include-self", help="Keep the query's own file in.")] = False,
    under: Annotated[list[str] | None, typer.Option(metavar="SUBFOLDER", help="Only below this folder.")] = None,
    after: Annotated[str | None, typer.Option(metavar="DATE", help="Taken then or later: 2023, 2023-05-01.")] = None,
    before: Annotated[str | None, typer.Option(metavar="DATE", help="Taken earlier than that.")] = None,
    camera: Annotated[str | None, typer.Option(help="Words of the camera's name: 'iphone 12'.")] = None,
    near: Annotated[str | None, typer.Option(metavar="LAT,LON,KM", help="Taken within KM of a place.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Only pictures with this tag; repeat for several.")] = None,
    as_json: JsonOption = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page of the results.")] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Show that page in the browser.")] = False,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one picture of the first query and its results.")
    ] = None,
) -> None:
    """Find the pictures of the same thing."""
    numbers = _numbers(region, 4, "--region", "X,Y,W,H") if region else None
    box = (numbers[0], numbers[1], numbers[2], numbers[3]) if numbers else None
    moments = (_moment(after, "--after"), _moment(before, "--before"))
    place = _numbers(near, 3, "--near", "LAT,LON,KM") if near else None
    together = len(images) > 1 or bool(like or unlike)
    if batch and (like or unlike):
        raise typer.BadParameter("--like and --not belong to one query, not to --batch", param_hint="--batch")
    from indexer.index.find_index import find_index
    from indexer.store.protocol import Where
    from retrieval.query.query import Together
    from retrieval.search import RERANK_BY_DEFAULT, Searcher

    location = find_index(index, images, say=_say)
    with Searcher.open(location, say=_say) as searcher:
        where = Where(
            under=tuple(under or ()),
            after=moments[0],
            before=moments[1],
            camera=camera,
            near=(place[0], place[1], place[2]) if place else None,
            tags=tuple(tag or ()),
        )
        if waiting := searcher.awaiting_refit():
            _say(
                f"{_count(waiting, 'picture')} of the index await refitting; to finish: seenit index --index {location}"
            )
        options: dict[str, Any] = {
            "where": where,
            "rerank": RERANK_BY_DEFAULT if rerank is None else rerank,
            "exact": exact,
            "include_self": include_self,
            "expand": expand,
            "augment": augment,
        }
        answers: Iterator[tuple[str, list[Result] | PictureError]]
        if batch or not together:
            queries = list(_query_files(images)) if batch else list(images)
            answers = searcher.search_files(queries, top, region=box, **options)
        else:
            query = Together(tuple(images), tuple(like or ()), tuple(unlike or ()))
            answers = iter([(str(images[0]), searcher.search(query, top, region=box, **options))])
        failed = _show(answers, searcher, batch, as_json, html, open_page, sheet, box)
    if failed:
        sys.exit(1)


def _show(
    answers: Iterator[tuple[str, "list[Result] | PictureError"]],
    searcher: "Searcher",
    batch: bool,
    as_json: bool,
    html: Path | None,
    open_page: bool,
    sheet: Path | None,
    region: "Region | None",
) -> int:
    """Print every answer as it comes, and write the page; returns how many queries could not be read."""
    from indexer.errors import PictureError
    from retrieval.show.contact_sheet import contact_sheet
    from retrieval.show.results_page import PageQuery, write_page
    from retrieval.show.text import json_line, page_query, table

    failed = 0

    def readable() -> "Iterator[tuple[str, list[Result]]]":
        nonlocal failed
        for path, answer in answers:
            if as_json:
                print(json_line(path, answer), flush=True)
            if isinstance(answer, PictureError):
                failed += 1
                _say(str(answer))
                continue
            if not as_json:
                print(table(path, answer, heading=batch), flush=True)
            yield path, answer

    def shown() -> Iterator[PageQuery]:
        for number, (path, answer) in enumerate(readable()):
            query = page_query(path, answer, region)
            if sheet is not None and number == 0:
                contact_sheet(query, sheet)
                _say(f"wrote {sheet}")
            yield query

    if html is None and open_page:
        html = Path(tempfile.mkdtemp(prefix="seenit-")) / "results.html"
    if html is not None:
        made_by = f"index {searcher.store.location}, backbone {searcher.manifest.backbone}"
        write_page(html, shown(), made_by=[made_by, f"{datetime.now():%Y-%m-%d %H:%M}"])
        _say(f"wrote {html}")
        if open_page:
            webbrowser.open(html.resolve().as_uri())
    else:
        for _ in readable() if sheet is None else shown():
            pass
    return failed


def _query_files(images: Sequence[Path]) -> Iterator[Path]:
    """Every picture named, and every file of the folders named."""
    from indexer.errors import SeenitError
    from indexer.images.decode import is_picture
    from indexer.images.find import FoundFile, find_files

    for image in images:
        if not image.is_dir():
            yield image
            continue
        files = [Path(found.path) for found in find_files([image]) if isinstance(found, FoundFile)]
        pictures = [file for file in files if is_picture(file)]
        if not pictures:
            raise SeenitError(f"no pictures in {image}; name a folder of query pictures")
        yield from pictures


# ---- explain ----


@app.command(epilog="Example: seenit explain photo.jpg found.jpg -o match.png")
def explain(
    query: Annotated[Path, typer.Argument(metavar="QUERY", help="The picture that was searched with.")],
    result: Annotated[
        Path | None, typer.Argument(metavar="RESULT", help="A picture to hold against it; none: look at QUERY alone.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Draw it: .png, .jpg.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page to point at.")] = None,
    index: IndexOption = None,
    region: Annotated[
        str | None, typer.Option(metavar="X,Y,W,H", help="Only this part of the query: pixels, or fractions of 1.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Why two pictures are believed to show the same thing, or not; of one picture, what the descriptor looks at."""
    numbers = _numbers(region, 4, "--region", "X,Y,W,H") if region else None
    if result is None and (region or as_json):
        raise typer.BadParameter("--region and --json need a RESULT", param_hint="RESULT")
    if result is None and output is None and html is None:
        raise typer.BadParameter("one picture is drawn: add -o FILE or --html FILE", param_hint="QUERY")
    from indexer.index.find_index import find_index
    from retrieval.search import Searcher

    with Searcher.open(find_index(index, [query], say=_say), say=_say) as searcher:
        made_by = [f"index {searcher.store.location}, backbone {searcher.manifest.backbone}"]
        if result is None:
            from retrieval.show.look import draw_picture
            from retrieval.show.match_page import write_look_page
            from retrieval.whole_file import save_picture

            drawn = draw_picture(_photo(query), searcher.look(query))
            if output is not None:
                save_picture(drawn, output)
            if html is not None:
                write_look_page(html, drawn, title=str(query.resolve()), made_by=made_by)
        else:
            from retrieval.show.draw_match import draw_match
            from retrieval.show.match_page import write_explain_page
            from retrieval.show.text import explained_json
            from retrieval.whole_file import save_picture

            box = (numbers[0], numbers[1], numbers[2], numbers[3]) if numbers else None
            found = searcher.explain(query, result, region=box)
            parts = (_photo(query), _photo(result), found.evidence, found.query_heat, found.picture_heat)
            if output is not None:
                save_picture(draw_match(*parts, titles=(str(query), str(result))), output)
            if html is not None:
                titles = (str(query.resolve()), str(result.resolve()))
                write_explain_page(html, *parts, titles=titles, made_by=made_by)
            print(explained_json(str(query), str(result), found.evidence) if as_json else found.evidence.in_words)
    for path in (output, html):
        if path is not None:
            _say(f"wrote {path}")


def _photo(path: Path) -> "Image.Image":
    """A picture as fine as it is drawn."""
    from PIL import Image

    from indexer.images.decode import decode_file

    return Image.fromarray(decode_file(path, target_px=800).pixels)


app.command(epilog=duplicates.EXAMPLE)(duplicates.duplicates)


# ---- info, copy, demo ----


@app.command(epilog="Example: seenit info --index ~/Pictures/.seenit --skipped")
def info(
    index: IndexOption = None,
    skipped: Annotated[bool, typer.Option("--skipped", help="List the files that were skipped, and why.")] = False,
    as_json: JsonOption = False,
) -> None:
    """What the index holds and what made it."""
    from indexer.index.find_index import find_index
    from indexer.index.index import Index

    with Index.open(find_index(index, say=_say)) as opened:
        broken = [(opened.roots.path(file.key), file.reason) for file in opened.skipped() if file.reason is not None]
        facts = opened.facts()
    if skipped and as_json:
        print(json.dumps([{"path": path, "reason": reason} for path, reason in broken]))
    elif skipped:
        for path, reason in broken:
            print(f"{path}: {reason}")
    elif as_json:
        print(json.dumps(asdict(facts)))
    else:
        size = ", ".join(f"{part} {_megabytes(count)}" for part, count in facts.bytes.items()) or "on the server"
        shown: dict[str, object] = {
            "index": facts.index,
            "pictures": facts.pictures,
            "folders": ", ".join(facts.folders),
            "backbone": f"{facts.backbone} ({facts.backbone_hash[:8]})",
            "resolution": facts.resolution,
            "fitted on": facts.fitted_on,
            "dimensions": f"global {facts.dimensions.global_dim}" if facts.dimensions else "-",
            "probabilities": "learnt" if facts.calibrated else "not learnt yet",
            "awaiting refit": facts.awaiting_refit,
            "skipped": facts.skipped,
            "not pictures": facts.not_pictures,
            "size on disk": size,
            "made by": f"seenit {facts.made_by}, format {facts.format}",
        }
        for name, value in shown.items():
            print(f"{name:<15} {value:,}" if isinstance(value, int) else f"{name:<15} {value}")


@app.command(epilog="Example: seenit check --index ~/Pictures/.seenit        then: seenit check --repair")
def check(
    index: IndexOption = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Make a new database of what is sound; the damaged one is kept beside it.")
    ] = False,
    wait: WaitOption = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Whether the index is whole: its database page by page, every record against its checksum, every count.

    After a repair, images whose records were lost are embedded again by the next: seenit index. Tags are kept.
    """
    from indexer.index.find_index import find_index
    from indexer.store.sqlite_check import check_index, repair_index

    location = find_index(index, say=_say)
    progress = not as_json and sys.stderr.isatty()
    if repair:
        repaired = repair_index(location, wait_s=wait, progress=progress)
        print(json.dumps(asdict(repaired)) if as_json else repaired.in_words)
        return
    found = check_index(location, progress=progress)
    print(json.dumps(asdict(found)) if as_json else found.in_words)
    if found.problems:
        sys.exit(1)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


@app.command(epilog="Example: seenit copy ~/Pictures/.seenit http://localhost:6333/photos")
def copy(
    source: Annotated[str, typer.Argument(metavar="SRC", help="An index: folder or URL.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="Where to: folder or URL.")],
    wait: WaitOption = 10.0,
) -> None:
    """Copy an index, between folder and server in either direction; may be repeated after a break."""
    from indexer.index.copy import copy_index

    count = copy_index(source, target, progress=sys.stderr.isatty(), wait_s=wait)
    print(f"copied {_count(count, 'picture')} from {source} to {target}")


@app.command(epilog="Example: seenit demo demo   then: seenit index demo/photos; seenit search demo/queries --batch")
def demo(
    folder: Annotated[Path, typer.Argument(help="Where to draw the pictures.")] = Path("demo"),
) -> None:
    """Draw a small set of pictures to try seenit on: the same things in different rooms, angles and light."""
    from retrieval.scenes import draw_scenes

    made = draw_scenes(folder)
    print(f"pictures in {made / 'photos'}, queries in {made / 'queries'}, answers in {made / 'manifest.csv'}")


# ---- backbones ----


@backbone_app.command("list", epilog="Example: seenit backbone list")
def backbone_list(as_json: JsonOption = False) -> None:
    """The backbones by name, and which of them are here."""
    from indexer.backbone.catalogue import list_backbones

    found = list_backbones()
    if as_json:
        print(json.dumps([asdict(entry) for entry in found], default=str))
        return
    print(f"{'name':<22} {'where':<13} {'size':>9}  {'parameters':>10}  dim  patch  registers")
    for entry in found:
        size = _megabytes(entry.size) if entry.size else "-"
        print(
            f"{entry.name:<22} {entry.where:<13} {size:>9}  {entry.parameters / 1e6:>8.1f} M  {entry.embed_dim:>4}"
            f"  {entry.patch_size:>4}  {entry.registers:>6}"
        )


@backbone_app.command("import", epilog="Example: seenit backbone import dinov2_vitb14_pretrain.pth --name my_vitb14")
def backbone_import(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Official .pth, Hugging Face or our own safetensors.")],
    name: Annotated[str | None, typer.Option(help="What to call it. [the file's name]")] = None,
) -> None:
    """Check a weights file, convert it, and make it available by name."""
    from indexer.backbone.import_weights import import_backbone

    print(import_backbone(file, name))


@backbone_app.command("path", epilog="Example: seenit backbone path dinov2_vits14")
def backbone_path_(name: Annotated[str, typer.Argument(help="A backbone's name.")]) -> None:
    """Where a backbone's file lies; an official one is downloaded first if need be."""
    from indexer.backbone.cache import backbone_path

    print(backbone_path(name))


# ---- tags ----


@tag_app.command("add", epilog="Example: seenit tag add holiday ~/Pictures/2023")
def tag_add(
    tag: Annotated[str, typer.Argument(help="A word.")],
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Pictures or folders of the index.")],
    index: IndexOption = None,
    wait: WaitOption = 10.0,
) -> None:
    """Put a tag on pictures."""
    _change_tags(index, paths, lambda tags: tags | {tag}, "tagged", wait)


@tag_app.command("remove", epilog="Example: seenit tag remove holiday ~/Pictures/2023/receipts")
def tag_remove(
    tag: Annotated[str, typer.Argument(help="A word.")],
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Pictures or folders of the index.")],
    index: IndexOption = None,
    wait: WaitOption = 10.0,
) -> None:
    """Take a tag off pictures."""
    _change_tags(index, paths, lambda tags: tags - {tag}, "untagged", wait)


@tag_app.command("list", epilog="Example: seenit tag list")
def tag_list(index: IndexOption = None, as_json: JsonOption = False) -> None:
    """Every tag, and how many pictures have it."""
    from indexer.index.find_index import find_index
    from indexer.index.tags import count_tags

    counts = count_tags(find_index(index, say=_say))
    if as_json:
        print(json.dumps(counts))
    for tag, count in [] if as_json else counts.items():
        print(f"{count:>7,}  {tag}")


@tag_app.command("export", epilog="Example: seenit tag export > tags.json")
def tag_export(index: IndexOption = None) -> None:
    """All tags as JSON by content id, for `seenit tag import`."""
    from indexer.index.find_index import find_index
    from indexer.index.tags import export_tags

    print(export_tags(find_index(index, say=_say)).decode())


@tag_app.command("import", epilog="Example: seenit tag import tags.json --index ~/Pictures/.seenit")
def tag_import(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `seenit tag export` wrote.")],
    index: IndexOption = None,
    wait: WaitOption = 10.0,
) -> None:
    """Add exported tags; those that are there stay. An image that is not there gets its tags when it comes."""
    from indexer.index.find_index import find_index
    from indexer.index.tags import import_tags

    changed, unknown = import_tags(find_index(index, say=_say), file.read_bytes(), wait_s=wait)
    print(f"tagged {_count(changed, 'picture')}" + (f"; {unknown:,} are not in the index" if unknown else ""))


def _change_tags(
    index: str | None, paths: Sequence[Path], change: Callable[[set[str]], set[str]], verb: str, wait_s: float
) -> None:
    from indexer.index.find_index import find_index
    from indexer.index.tags import change_tags

    changed = change_tags(find_index(index, paths, say=_say), paths, change, wait_s=wait_s)
    print(f"{verb} {_count(changed, 'picture')}")


# ---- training and evaluation ----


app.command(epilog=curate.EXAMPLE)(curate.curate)


@app.command(epilog="Example: seenit train ~/Pictures --preset adapt --from dinov2_vits14 --out run")
def train(
    photos: Annotated[list[Path], typer.Argument(metavar="PHOTOS...", help="Folders, lists of paths, tar shards.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where all results go.")],
    preset: Annotated[
        str, typer.Option("--preset", "--arch", help="vits14, vitb14, vitl14, vitg14, ..., adapt, head, tiny.")
    ] = "vits14",
    start: Annotated[
        str | None, typer.Option("--from", metavar="NAME|PATH", help="The backbone to start from.")
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="TOML", help="Keys of the configuration, in a file.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One key; repeat for several.")
    ] = None,
    labelled: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Photos in a folder per class, for k-NN on the way.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last snapshot in DIR.")] = False,
) -> None:
    """Train a backbone with DINOv2 on photos, adapt one to them, or fit a head for retrieval on them."""
    progress = sys.stderr.isatty()
    if preset == "head":
        from trainer.retrieval_head import train_head

        head = train_head(_as_pictures(photos), out, from_backbone=start or "auto", progress=progress, say=_say)
        print(head.table())
        print(f"wrote {head.backbone}" if head.backbone else "unseen photos do not gain; nothing was written")
        return
    from trainer.config import make_config
    from trainer.train import train as train_backbone

    made = make_config(preset, file=config, changes=changes or ())
    with _stop_on_interrupt(signal.SIGTERM) as stop:  # Slurm and docker stop send that
        summary = train_backbone(
            _as_pictures(photos),
            out,
            made,
            from_backbone=start,
            labelled=labelled,
            resume=resume,
            progress=progress,
            stop=stop.is_set,
            say=_say,
        )
    if os.environ.get("RANK", "0") != "0":  # under torchrun the first process speaks
        sys.exit(130 if summary.stopped else 0)
    if summary.before and summary.after:
        print(f"before {summary.before.line()}\nafter  {summary.after.line()}")
    print(f"{summary.steps:,} steps, loss {summary.loss:.3f}, {summary.images_per_s:.1f} images/s")
    print("stopped early; go on with --resume" if summary.stopped else f"wrote {summary.backbone}")
    if summary.kept_original:
        print("training made it worse: that file is the backbone it started from")
    if summary.stopped:
        sys.exit(130)


def _as_pictures(photos: Sequence[Path]) -> str | list[str | Path]:
    return str(photos[0]) if len(photos) == 1 else list(photos)


@evaluate_app.command(
    "retrieval", epilog="Example: seenit evaluate retrieval landmarks/manifest.csv --distractors others/manifest.csv"
)
def evaluate_retrieval(
    sets: Annotated[
        list[Path],
        typer.Argument(metavar="MANIFEST...", help="manifest.csv (path, role, instance), gnd_*.pkl, ILIAS's folder."),
    ],
    distractors: Annotated[
        Path | None, typer.Option(metavar="MANIFEST|FOLDER", help="Pictures to add to every gallery.")
    ] = None,
    index: IndexOption = None,
    backbone: BackboneOption = "auto",
    resolution: Annotated[int | None, typer.Option(metavar="PX", help="For a new index. [224]")] = None,
    as_json: JsonOption = False,
) -> None:
    """Recall, mAP and trust in matches on photos with known answers, for every way to search side by side.

    Each gallery is indexed into a temporary folder, or kept at --index, which must then hold nothing else.
    """
    from retrieval.evaluate.evaluate import evaluate_retrieval as evaluate
    from retrieval.evaluate.evaluate import scores_table

    scores = evaluate(
        sets,
        distractors=distractors,
        index=index,
        backbone=backbone,
        resolution=resolution,
        progress=not as_json and sys.stderr.isatty(),
        say=_say,
    )
    print(json.dumps([one.as_json() for one in scores]) if as_json else scores_table(scores))


@evaluate_app.command("knn", epilog="Example: seenit evaluate knn photos/train photos/val")
def evaluate_knn(
    train_photos: TrainPhotos, val_photos: ValPhotos, backbone: BackboneOption = "auto", as_json: JsonOption = False
) -> None:
    """Weighted k-NN on the last CLS."""
    from trainer.evaluate.probes import knn

    _print_scores(knn(*_labelled_features(backbone, train_photos, val_photos)), as_json)


@evaluate_app.command("linear", epilog="Example: seenit evaluate linear photos/train photos/val")
def evaluate_linear(
    train_photos: TrainPhotos, val_photos: ValPhotos, backbone: BackboneOption = "auto", as_json: JsonOption = False
) -> None:
    """Linear classifiers: the reference's grid of rates, blocks and pooling in one pass."""
    from trainer.evaluate.probes import linear

    _print_scores(linear(*_labelled_features(backbone, train_photos, val_photos)), as_json)


@evaluate_app.command("fewshot", epilog="Example: seenit evaluate fewshot photos/train photos/val")
def evaluate_fewshot(
    train_photos: TrainPhotos, val_photos: ValPhotos, backbone: BackboneOption = "auto", as_json: JsonOption = False
) -> None:
    """The nearest class mean of a few photos each, drawn many times."""
    from trainer.evaluate.probes import few_shot

    _print_scores(few_shot(*_labelled_features(backbone, train_photos, val_photos)), as_json)


@evaluate_app.command("segmentation", epilog="Example: seenit evaluate segmentation coco --resolution 448")
def evaluate_segmentation(
    folder: Annotated[Path, typer.Argument(help="With images/ and masks/ (PNG of class numbers).")],
    backbone: BackboneOption = "auto",
    resolution: Annotated[int, typer.Option(metavar="PX")] = 448,
    as_json: JsonOption = False,
) -> None:
    """Linear segmentation on patch features, in folds."""
    from trainer.evaluate.dense import segmentation

    _print_scores(segmentation(_dense_features(backbone, folder, "masks", resolution)), as_json)


@evaluate_app.command("depth", epilog="Example: seenit evaluate depth rooms --resolution 448")
def evaluate_depth(
    folder: Annotated[Path, typer.Argument(help="With images/ and depth/ (16-bit PNG of millimetres, or NPY).")],
    backbone: BackboneOption = "auto",
    resolution: Annotated[int, typer.Option(metavar="PX")] = 448,
    as_json: JsonOption = False,
) -> None:
    """Linear depth on patch features, in folds."""
    from trainer.evaluate.dense import depth

    _print_scores(depth(_dense_features(backbone, folder, "depth", resolution)), as_json)


def _labelled_features(backbone: str, train_photos: Path, val_photos: Path) -> "tuple[LabelledFeatures, ...]":
    from indexer.backbone.backbone import Backbone
    from trainer.evaluate.labelled import embed_labelled, read_labelled

    known = read_labelled(train_photos)
    asked = read_labelled(val_photos, known.classes)
    loaded, progress = Backbone.load(backbone, say=_say), sys.stderr.isatty()
    return tuple(embed_labelled(loaded, pictures, progress=progress, say=_say) for pictures in (known, asked))


def _dense_features(backbone: str, folder: Path, kind: Literal["masks", "depth"], resolution: int) -> "DenseFeatures":
    from indexer.backbone.backbone import Backbone
    from trainer.evaluate.dense import embed_pairs
    from trainer.evaluate.labelled import read_pairs

    pairs = read_pairs(folder, kind)
    loaded, progress = Backbone.load(backbone, say=_say), sys.stderr.isatty()
    return embed_pairs(loaded, pairs, resolution=resolution, progress=progress, say=_say)


def _print_scores(scores: "Scores", as_json: bool) -> None:
    print(json.dumps(asdict(scores)) if as_json else scores.table())


# ---- words into values ----


def _numbers(text: str, count: int, option: str, form: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count or any(value != value for value in values):
        raise typer.BadParameter(f"{text!r} is not {form}", param_hint=option)
    return values


def _moment(text: str | None, option: str) -> datetime | None:
    """The start of a year, month or day, or a full ISO moment; UTC unless it says otherwise."""
    if text is None:
        return None
    for form in ("%Y", "%Y-%m", "%Y-%m-%d"):
        with suppress(ValueError):
            return datetime.strptime(text, form).replace(tzinfo=UTC)
    with suppress(ValueError):
        moment = datetime.fromisoformat(text)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    raise typer.BadParameter(f"{text!r} is not a date; write 2023, 2023-05 or 2023-05-01", param_hint=option)


if __name__ == "__main__":
    main()
