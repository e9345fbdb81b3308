"""Commands that index, search and explain."""

import json
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from indexer.printable import pasted, plural, printable, quoted
from indexer.sync.options import SyncOptions
from indexer.terminal import (
    ActorsOption,
    AllowPrivateOption,
    BackboneOption,
    GpusPerActorOption,
    IndexOption,
    JsonOption,
    KeyColumnOption,
    PathColumnOption,
    PrecisionOption,
    RayOption,
    ResolutionOption,
    TokensOption,
    WaitOption,
    WorkersOption,
    parse_attributes,
    parse_moment,
    parse_numbers,
    parse_place,
    say,
    say_details,
    shows_progress,
    stop_on_interrupt,
)

if TYPE_CHECKING:
    from PIL import Image

    from indexer.errors import ImageError

    from .build import Built
    from .results import Result


NO_RESULTS = 3  # exit status of a search that finds nothing


def index(
    folders: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE...",
            help="Folders of photos, lists (.txt), tables (.csv, .parquet), tar shards, or addresses such as"
            " s3://bucket/photos; none: those indexed before.",
        ),
    ] = None,
    index: IndexOption = None,
    backbone: Annotated[
        str | None,
        typer.Option(metavar="NAME|PATH", help="The network for a new index; see: seenit backbone list. [auto]"),
    ] = None,
    precision: PrecisionOption = "auto",
    resolution: ResolutionOption = SyncOptions.resolution,
    tokens: TokensOption = SyncOptions.tokens,
    workers: WorkersOption = SyncOptions.workers,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on keeping the index in line until Ctrl-C or SIGTERM.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = SyncOptions.dry_run,
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="Accept that a folder with indexed images is now empty.")
    ] = SyncOptions.allow_empty,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Also what links out of the folders lead to.")
    ] = SyncOptions.follow_links,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Leave out files like '*.tif', folders like 'raw/'; later runs do so too."),
    ] = None,
    no_exclude: Annotated[
        list[str] | None, typer.Option("--no-exclude", metavar="GLOB", help="Forget such a pattern of an earlier run.")
    ] = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="Try again what was remembered as damaged or too large.")
    ] = SyncOptions.retry,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read files again whose size and time are unchanged.")
    ] = SyncOptions.verify,
    path_column: PathColumnOption = SyncOptions.path_column,
    key_column: KeyColumnOption = SyncOptions.key_column,
    ray: RayOption = SyncOptions.ray,
    actors: ActorsOption = SyncOptions.actors,
    gpus_per_actor: GpusPerActorOption = SyncOptions.gpus_per_actor,
    allow_private: AllowPrivateOption = SyncOptions.allow_private,
    wait: WaitOption = SyncOptions.wait_s,
    as_json: JsonOption = False,
) -> None:
    """Bring the index in line with its folders and other sources.

    New, changed, deleted, renamed, moved and copied files are found.

    The default index of one folder is FOLDER/.seenit; other sources need --index.
    """
    from indexer.backbone.load_once import LoadOnce
    from indexer.index.find_index import find_index, remember_index
    from indexer.sync.sync import default_index

    from .build import build_index
    from .watch import watch_index

    folders = folders or []
    location = index if index is not None else str(default_index(folders)) if folders else find_index(None, say=say)
    once = LoadOnce(backbone, say, precision)
    options = SyncOptions(
        resolution=resolution,
        tokens=tokens,
        workers=workers,
        dry_run=dry_run,
        allow_empty=allow_empty,
        follow_links=follow_links,
        exclude=tuple(exclude or ()),
        no_exclude=tuple(no_exclude or ()),
        retry=retry,
        verify=verify,
        path_column=path_column,
        key_column=key_column,
        allow_private=allow_private,
        ray=ray,
        actors=actors,
        gpus_per_actor=gpus_per_actor,
        wait_s=wait,
    )
    progress = shows_progress(as_json)

    def tell(built: "Built") -> None:
        if not dry_run and built.summary.images:
            remember_index(location)
        values = {**asdict(built.summary), "calibration_s": built.calibration_s}
        print(json.dumps(values) if as_json else _summary_text(built), flush=True)
        for note in built.notes:
            say(note)

    with stop_on_interrupt(signal.SIGTERM) as stop:
        if watch and not dry_run:
            interrupted = watch_index(
                folders, location, options=options, backbone=once, stop=stop, tell=tell, say=say, progress=progress
            )
        else:
            built = build_index(
                folders, location, options=options, backbone=once, progress=progress, stop=stop.is_set, say=say
            )
            tell(built)
            interrupted = built.interrupted
    if interrupted:
        sys.exit(130)


def _summary_text(built: "Built") -> str:
    summary = built.summary
    changes = summary.changes
    parts = [
        f"added {changes.added:,}" + (f" ({plural(changes.copies, 'copy', 'copies')})" if changes.copies else ""),
        f"updated {changes.updated:,}",
        f"renamed {changes.renamed:,}",
        f"removed {changes.removed:,}",
        f"unchanged {changes.unchanged:,}",
    ]
    lines = [("would be: " if summary.dry_run else "") + ", ".join(parts)]
    if summary.skipped:
        reasons = ", ".join(f"{count} {printable(reason)}" for reason, count in list(summary.skipped.items())[:4])
        lines.append(
            f"skipped {sum(summary.skipped.values()):,}: {reasons}"
            + (", ..." if len(summary.skipped) > 4 else "")
            + "  (all of them: seenit info --skipped)"
        )
    lines += [printable(f"not readable, kept as it was: {folder}") for folder in summary.unreadable]
    lines += map(printable, summary.notes)
    if summary.interrupted:
        lines.append("stopped early: what was done is saved; run the same command again to go on")
    rate = f", {summary.images_per_s:.1f} images/s" if summary.embedded else ""
    learnt = f"; match probabilities in {built.calibration_s:.1f} s" if built.calibration_s >= 0.1 else ""
    took = f"{summary.seconds:.1f} s{rate}{learnt}"
    lines.append(f"{quoted(summary.index)}: {plural(summary.images, 'image')}; {took}")
    return "\n".join(lines)


def search(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...",
            help="The query: a file, an http(s) address, or - for standard input. Several are views of one thing; a"
            " folder with --batch.",
        ),
    ],
    index: IndexOption = None,
    top: Annotated[int, typer.Option(min=1, help="How many results.")] = 10,
    region: Annotated[
        str | None, typer.Option(metavar="X,Y,W,H", help="Only this part of the query: pixels, or fractions of 1.")
    ] = None,
    batch: Annotated[bool, typer.Option("--batch", help="Every image, or every one of a folder, is a query.")] = False,
    rerank: Annotated[
        bool, typer.Option("--rerank/--no-rerank", help="Rescore the best candidates on patches.")
    ] = True,
    like: Annotated[list[Path] | None, typer.Option(metavar="IMAGE", help="A result that was right.")] = None,
    unlike: Annotated[
        list[Path] | None, typer.Option("--not", metavar="IMAGE", help="A result that was wrong.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare with every image, and rerank all of them up to 10,000.")
    ] = False,
    expand: Annotated[
        int, typer.Option(min=0, metavar="N", help="Query expansion (alpha-QE) over the top N results.")
    ] = 0,
    augment: Annotated[int, typer.Option(min=0, metavar="N", help="Database-side augmentation with N neighbours.")] = 0,
    like_kind: Annotated[
        bool, typer.Option("--like-kind", help="Find others of its kind, too: of one motif, product or building.")
    ] = False,
    include_self: Annotated[bool, typer.Option("--include-self", help="Keep the query's own file in.")] = False,
    under: Annotated[list[str] | None, typer.Option(metavar="SUBFOLDER", help="Only below this folder.")] = None,
    after: Annotated[str | None, typer.Option(metavar="DATE", help="Taken then or later: 2023, 2023-05-01.")] = None,
    before: Annotated[str | None, typer.Option(metavar="DATE", help="Taken earlier than that.")] = None,
    file_dates: Annotated[
        bool, typer.Option("--file-dates", help="Where an image has no date of its own, go by its file's time.")
    ] = False,
    camera: Annotated[str | None, typer.Option(help="Words of the camera's name: 'iphone 12'.")] = None,
    near: Annotated[str | None, typer.Option(metavar="LAT,LON,KM", help="Taken within KM of a place.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Only images with this tag; repeat for several.")] = None,
    keyword: Annotated[
        list[str] | None, typer.Option(help="Only images with this keyword in their own metadata; repeat for several.")
    ] = None,
    rating: Annotated[
        int | None, typer.Option(min=-1, max=5, metavar="STARS", help="Only images with so many stars or more.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Only added images with this attribute; repeat for several."),
    ] = None,
    min_probability: Annotated[
        float, typer.Option(min=0, max=1, metavar="P", help="Only results with this match probability or a higher one.")
    ] = 0.0,
    group: Annotated[bool, typer.Option("--group", help="Hide near-copies of a better result.")] = False,
    precision: PrecisionOption = "auto",
    allow_private: AllowPrivateOption = False,
    as_json: JsonOption = False,
    paths_only: Annotated[bool, typer.Option("--paths-only", help="Print a path a line, and nothing else.")] = False,
    null: Annotated[bool, typer.Option("--null", "-0", help="The same, each path ended by a NUL byte.")] = False,
    copy_to: Annotated[Path | None, typer.Option(metavar="DIR", help="Copy the results' files there.")] = None,
    link_to: Annotated[Path | None, typer.Option(metavar="DIR", help="Link to the results' files from there.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page of the results.")] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Show that page in the browser.")] = False,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one image of the first query and its results.")
    ] = None,
) -> None:
    """Find the images of the same thing.

    Exit status 0 with results, 3 with none.
    """
    numbers = parse_numbers(region, 4, "--region", "X,Y,W,H") if region else None
    box = (numbers[0], numbers[1], numbers[2], numbers[3]) if numbers else None
    moments = (parse_moment(after, "--after"), parse_moment(before, "--before"))
    place = parse_place(near, "--near") if near else None
    attributes = parse_attributes(where or [], "--where")
    together = len(images) > 1 or bool(like or unlike)
    if batch and (like or unlike):
        raise typer.BadParameter("--like and --not belong to one query, not to --batch", param_hint="--batch")
    if as_json and (paths_only or null):
        raise typer.BadParameter("choose one of --json, --paths-only and -0", param_hint="--json")
    from indexer.collector import wake_collector
    from indexer.index.find_index import find_index
    from indexer.store.protocol import Filter, is_url

    from .options import SearchOptions
    from .query.query import MultiQuery
    from .query.sources import STDIN, as_files
    from .search import Searcher
    from .show.answers import Form, ShownAnswers, show_answers

    if batch:  # perhaps of thousands
        wake_collector()
    near_images = [Path(image) for image in images if image != STDIN and not is_url(image)]
    location = find_index(index, near_images, say=say)
    with (
        as_files(images, allow_private=allow_private) as files,
        Searcher.open(location, say=say_details, precision=precision) as searcher,
    ):
        conditions = Filter(
            under=tuple(under or ()),
            after=moments[0],
            before=moments[1],
            camera=camera,
            near=place,
            tags=tuple(tag or ()),
            keywords=tuple(keyword or ()),
            rating=rating,
            attributes=attributes,
            file_dates=file_dates,
        )
        if about_dates := searcher.index.about_dates(searcher.index.with_keys(conditions)):
            say(about_dates)
        if waiting := searcher.awaiting_refit():
            finish = f"seenit index --index {pasted(location)}"
            say(f"{plural(waiting, 'image')} of the index await refitting; to finish: {finish}")
        options = SearchOptions(
            top,
            conditions,
            rerank,
            exact,
            include_self,
            expand,
            augment,
            min_probability=min_probability,
            group=group,
            like_kind=like_kind,
        )
        if min_probability and searcher.calibration is None:
            learn = f"seenit index --index {pasted(location)}"
            say(f"no match probability is known yet, so nothing is found; to learn it: {learn}")
        answers: Iterator[tuple[str, list[Result] | ImageError]]
        if batch or not together:
            queries = list(_query_files(list(files.values()))) if batch else list(files.values())
            answers = searcher.search_files(queries, options, region=box)
        else:
            query = MultiQuery(tuple(files.values()), tuple(like or ()), tuple(unlike or ()))
            answers = iter([(str(files[images[0]]), searcher.search(query, options, region=box))])
        names = {str(path): source for source, path in files.items()}
        form: Form = "json" if as_json else "null" if null else "paths" if paths_only else "table"
        shown = ShownAnswers(form, batch, names, copy_to, link_to)
        show_answers(answers, searcher, shown, html, open_page, sheet, box)
    if shown.failed:
        sys.exit(1)
    if not shown.found:
        sys.exit(NO_RESULTS)


def _query_files(images: Sequence[Path]) -> Iterator[Path]:
    """Every image named, and every file of the folders named."""
    from indexer.errors import SeenitError
    from indexer.images.decode import is_image
    from indexer.images.find import FoundFile, find_files

    for image in images:
        if not image.is_dir():
            yield image
            continue
        files = [Path(found.path) for found in find_files([image]) if isinstance(found, FoundFile)]
        found_images = [file for file in files if is_image(file)]
        if not found_images:
            raise SeenitError(f"no images in {image}; name a folder of query images")
        yield from found_images


def explain(
    query: Annotated[Path, typer.Argument(metavar="QUERY", help="The image that was searched with.")],
    result: Annotated[
        Path | None,
        typer.Argument(
            metavar="RESULT", help="An image to compare it with; none: show what the descriptor keeps of QUERY."
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Draw it: .png, .jpg.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page to point at.")] = None,
    index: IndexOption = None,
    region: Annotated[
        str | None, typer.Option(metavar="X,Y,W,H", help="Only this part of the query: pixels, or fractions of 1.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Why two images are a match, or what is kept of one.

    With RESULT: whether it is a match for QUERY, and why. Without: what the descriptor keeps of QUERY.
    """
    numbers = parse_numbers(region, 4, "--region", "X,Y,W,H") if region else None
    if result is None and (region or as_json):
        raise typer.BadParameter("--region and --json need a RESULT", param_hint="RESULT")
    if result is None and output is None and html is None:
        raise typer.BadParameter("one image is drawn: add -o FILE or --html FILE", param_hint="QUERY")
    from indexer.index.find_index import find_index

    from .search import Searcher

    with Searcher.open(find_index(index, [query], say=say), say=say_details) as searcher:
        made_by = [f"index {searcher.store.location}, backbone {searcher.manifest.backbone}"]
        if result is None:
            from .show.inspect import draw_inspection
            from .show.match_page import write_inspection_page
            from .show.save_image import save_image

            drawn = draw_inspection(_photo(query), searcher.inspect(query))
            if output is not None:
                save_image(drawn, output)
            if html is not None:
                write_inspection_page(html, drawn, title=str(query.resolve()), made_by=made_by)
        else:
            from .show.draw_match import draw_match
            from .show.match_page import write_explain_page
            from .show.save_image import save_image
            from .show.text import explained_json

            box = (numbers[0], numbers[1], numbers[2], numbers[3]) if numbers else None
            found = searcher.explain(query, result, region=box)
            parts = (_photo(query), _photo(result), found.evidence, found.query_similarity, found.image_similarity)
            if output is not None:
                save_image(draw_match(*parts, titles=(str(query), str(result))), output)
            if html is not None:
                titles = (str(query.resolve()), str(result.resolve()))
                write_explain_page(html, *parts, titles=titles, made_by=made_by)
            print(explained_json(str(query), str(result), found) if as_json else found.evidence.in_words)
    for path in (output, html):
        if path is not None:
            say(f"wrote {path}")


def _photo(path: Path) -> "Image.Image":
    """An image as fine as it is drawn."""
    from PIL import Image

    from indexer.images.decode import decode_file

    return Image.fromarray(decode_file(path, target_px=800).pixels)


def demo(
    folder: Annotated[Path, typer.Argument(help="Filter to draw the images.")] = Path("demo"),
) -> None:
    """Draw a small set of images to try seenit on.

    The same things in different rooms, angles and light.
    """
    from .scenes import draw_scenes

    made = draw_scenes(folder)
    made_of = f"images in {made / 'photos'}, queries in {made / 'queries'}, answers in {made / 'manifest.csv'}"
    print(printable(made_of))


def evaluate_retrieval(
    sets: Annotated[
        list[Path],
        typer.Argument(metavar="MANIFEST...", help="manifest.csv (path, role, instance), gnd_*.pkl, ILIAS's folder."),
    ],
    benchmark: Annotated[
        Literal["roxford5k", "rparis6k"] | None,
        typer.Option(help="As DINOv2's paper scores a backbone: cosine of CLS alone. Give the set's folder."),
    ] = None,
    distractors: Annotated[
        Path | None, typer.Option(metavar="MANIFEST|FOLDER", help="Images to add to every gallery.")
    ] = None,
    index: IndexOption = None,
    backbone: BackboneOption = "auto",
    resolution: Annotated[int | None, typer.Option(metavar="PX", help="For a new index. [224]")] = None,
    as_json: JsonOption = False,
) -> None:
    """Recall, mAP and trust in matches on known answers.

    Every way to search is measured side by side.

    Each gallery is indexed into a temporary folder, or kept at --index, which must then hold nothing else.
    """
    from .evaluate.benchmark import RESOLUTION, evaluate_benchmark
    from .evaluate.evaluate import evaluate_retrieval as evaluate
    from .evaluate.evaluate import scores_table

    progress = shows_progress(as_json)
    if benchmark is not None:
        if index is not None or len(sets) != 1:
            raise typer.BadParameter("--benchmark takes one folder and makes no index; leave out --index")
        scores = evaluate_benchmark(
            benchmark,
            sets[0],
            distractors=distractors,
            backbone=backbone,
            resolution=resolution or RESOLUTION,
            progress=progress,
            say=say,
        )
    else:
        scores = evaluate(
            sets,
            distractors=distractors,
            index=index,
            backbone=backbone,
            resolution=resolution,
            progress=progress,
            say=say,
        )
    print(json.dumps([one.as_json() for one in scores]) if as_json else scores_table(scores))
