"""`seenit curate`: parse, call, print."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from indexer.errors import SeenitError
from indexer.terminal import say, shows_progress

from .choices import (
    COPY,
    LARGEST,
    LEAK,
    LEAST_CURATED,
    MOST,
    NEAREST,
    NEIGHBOURS,
    PER_CLUSTER,
    RECALL,
    RESAMPLINGS,
    Choices,
)


def curate(
    pool: Annotated[
        list[str], typer.Argument(metavar="POOL...", help="Folders, lists, tables, tar shards, addresses, or indexes.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The list, one path a line, for: seenit train FILE.")],
    like: Annotated[
        list[str] | None, typer.Option(metavar="CURATED", help="Images to resemble: the same kinds; repeatable.")
    ] = None,
    avoid: Annotated[
        list[str] | None, typer.Option(metavar="EVALUATION", help="Remove what is near these; repeatable.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Images in the list, with kinds balanced. [all that are left]")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(metavar="NAME|PATH", help="See: seenit backbone list. [auto, or the index's]")
    ] = None,
    copy: Annotated[float, typer.Option(help="Similarity over which two images are copies.")] = COPY,
    leak: Annotated[float, typer.Option(help="Similarity to EVALUATION over which an image is removed.")] = LEAK,
    neighbours: Annotated[
        int, typer.Option(min=1, help="Of each image that copies are looked for among.")
    ] = NEIGHBOURS,
    largest: Annotated[
        int, typer.Option("--largest-component", min=1, help="Images in a group of copies; larger ones are cut.")
    ] = LARGEST,
    mode: Annotated[
        Literal["nearest", "clusters"],
        typer.Option(help="nearest: of each curated image; clusters: for few curated images, of their clusters."),
    ] = "nearest",
    nearest: Annotated[int, typer.Option(min=1, help="Mode nearest: images for each curated one.")] = NEAREST,
    clusters: Annotated[int | None, typer.Option(min=1, help="Mode clusters: of the pool. [by its size]")] = None,
    per_cluster: Annotated[int, typer.Option(min=1, help="Drawn from each cluster.")] = PER_CLUSTER,
    least_curated: Annotated[int, typer.Option(min=1, help="Curated images that a cluster must hold.")] = LEAST_CURATED,
    most: Annotated[int, typer.Option(min=1, help="Drawn from all clusters together.")] = MOST,
    levels: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Clusters per level for --size, finest first. [by number]")
    ] = None,
    resamplings: Annotated[int, typer.Option(min=0, help="Times that k-means is repeated, for --size.")] = RESAMPLINGS,
    recall: Annotated[
        float, typer.Option(min=0.5, max=1, help="True neighbours to be found, where not all are compared.")
    ] = RECALL,
    seed: Annotated[int, typer.Option(help="The same seed chooses the same images.")] = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that decode and that search. [one per core; this one]")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Search and cluster on a Ray cluster: its address, auto, or local."),
    ] = None,
    work: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For what is computed on the way, to go on from. [FILE.work]")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page of what was chosen and why.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, for programs.")] = False,
) -> None:
    """Choose images to train on.

    No copies, nothing of the evaluation set, like a curated set, kinds balanced.
    """
    chosen_levels = None if levels is None else _whole_numbers(levels)
    if find_spec("faiss") is None:
        raise SeenitError("seenit curate needs FAISS; install it with: pip install faiss-cpu")
    from .pipeline import as_dict, describe_selection
    from .pipeline import curate as run

    choices = Choices(
        copy=copy,
        leak=leak,
        neighbours=neighbours,
        largest=largest,
        mode=mode,
        nearest=nearest,
        clusters=clusters,
        per_cluster=per_cluster,
        least_curated=least_curated,
        most=most,
        size=size,
        levels=chosen_levels,
        resamplings=resamplings,
        recall=recall,
        seed=seed,
    )
    try:
        summary = run(
            pool,
            out,
            like=like or (),
            avoid=avoid or (),
            choices=choices,
            backbone=backbone,
            work=work,
            html=html,
            workers=workers,
            ray=ray,
            progress=shows_progress(as_json),
            say=say,
        )
    except KeyboardInterrupt:
        say("what was done is kept; run the same command again to go on")
        raise
    print(json.dumps(as_dict(summary)) if as_json else describe_selection(summary))
    if html is not None:
        say(f"wrote {html}")


def _whole_numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise typer.BadParameter(f"{text!r} is not whole numbers such as 1000,50,10", param_hint="--levels")
    return numbers
