"""Commands that look after an index, its tags and the backbones."""

import json
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .printable import megabytes, plural, printable, quoted
from .sync.options import SyncOptions
from .terminal import (
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
    say,
    say_details,
    shows_progress,
    stop_on_interrupt,
)

if TYPE_CHECKING:
    from .store.protocol import Record


def info(
    image: Annotated[
        Path | None,
        typer.Argument(metavar="IMAGE", help="What the index holds of this image; of its folder, or of none: all."),
    ] = None,
    index: IndexOption = None,
    skipped: Annotated[bool, typer.Option("--skipped", help="List the files that were skipped, and why.")] = False,
    as_json: JsonOption = False,
) -> None:
    """What the index holds, or what it knows of one image.

    Of the index what made it; of an image its date and its source, camera, place, tags, copies.
    """
    from .index.find_index import find_index
    from .index.index import Index

    if index is None and image is not None and image.is_dir():  # as `seenit index` takes it
        index, image = str(image), None
    if image is not None:
        if skipped:
            raise typer.BadParameter("--skipped is about the whole index", param_hint="IMAGE")
        with Index.open(find_index(index, [image], say=say)) as opened:
            record = opened.record_of(image)
            paths = [opened.roots.path(file.key) for file in record.files]
        print(json.dumps(_image_values(record, paths)) if as_json else _image_text(record, paths))
        return
    with Index.open(find_index(index, say=say)) as opened:
        broken = [(opened.roots.path(file.key), file.reason) for file in opened.skipped() if file.reason is not None]
        facts = opened.facts()
    if skipped and as_json:
        print(json.dumps([{"path": path, "reason": reason} for path, reason in broken]))
    elif skipped:
        for path, reason in broken:
            print(f"{quoted(path)}: {printable(reason)}")
    elif as_json:
        print(json.dumps(asdict(facts)))
    else:
        size = ", ".join(f"{part} {megabytes(count)}" for part, count in facts.bytes.items()) or "on the server"
        shown: dict[str, object] = {
            "index": quoted(facts.index),
            "images": facts.images,
            "folders": ", ".join(map(quoted, facts.folders)),
            "excluded": ", ".join(map(quoted, facts.exclude)) or "-",
            "backbone": f"{facts.backbone} ({facts.backbone_hash[:8]})",
            "precision": facts.precision if facts.precision != "auto" else "not known",
            "resolution": facts.resolution,
            "fitted on": facts.fitted_on,
            "dimensions": f"global {facts.dimensions.global_dim}" if facts.dimensions else "-",
            "probabilities": "learnt" if facts.calibrated else "not learnt yet",
            "awaiting refit": facts.awaiting_refit,
            "skipped": facts.skipped,
            "not images": facts.not_images,
            "size on disk": size,
            "made by": f"seenit {facts.made_by}, format {facts.format}",
        }
        for name, value in shown.items():
            print(f"{name:<15} {value:,}" if isinstance(value, int) else f"{name:<15} {value}")


def _image_values(record: "Record", paths: list[str]) -> dict[str, object]:
    metadata = record.metadata
    return {
        "id": record.id,
        "files": paths,
        **asdict(metadata),
        "taken_at": metadata.taken_at.isoformat() if metadata.taken_at else None,
        "tags": list(record.tags),
        "attributes": dict(record.attributes),
    }


def _image_text(record: "Record", paths: list[str]) -> str:
    metadata = record.metadata
    place = f"{metadata.gps[0]:.5f}, {metadata.gps[1]:.5f}" if metadata.gps else ""
    shown = {
        "image": record.id,
        "size": f"{metadata.width} x {metadata.height} pixels, {metadata.format}",
        "date": metadata.date_in_words or "not known",
        "camera": metadata.camera,
        "place": place,
        "pages or frames": metadata.frames if metadata.frames > 1 else None,
        "note": metadata.note,
        "title": metadata.title,
        "caption": metadata.caption,
        "keywords": ", ".join(metadata.keywords),
        "rating": metadata.rating,
        "tags": ", ".join(record.tags),
        "attributes": ", ".join(f"{name}={json.dumps(value)}" for name, value in record.attributes.items()),
    }
    lines = [f"{name:<15} {printable(str(value))}" for name, value in shown.items() if value]
    return "\n".join([*lines, *(f"{'file':<15} {quoted(path)}" for path in paths)])


def check(
    index: IndexOption = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Make a new database of what is sound; the damaged one is kept beside it.")
    ] = False,
    wait: WaitOption = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Whether the index is whole; repair it where it is not.

    Checked are its database page by page, every record against its checksum, every count; of the shards of seenit
    embed every page, vector and record.

    After a repair, images whose records were lost are embedded again by the next: seenit index. Tags are kept.
    """
    from .index.find_index import find_index
    from .store.sqlite_check import check_index, repair_index

    location = find_index(index, say=say)
    progress = shows_progress(as_json)
    if repair:
        repaired = repair_index(location, wait_s=wait, progress=progress)
        print(json.dumps(asdict(repaired)) if as_json else printable(repaired.in_words))
        return
    found = check_index(location, progress=progress)
    print(json.dumps(asdict(found)) if as_json else found.in_words)
    if found.problems:
        sys.exit(1)


def copy(
    source: Annotated[str, typer.Argument(metavar="SRC", help="An index: folder or URL; or shards.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="Where to: folder or URL.")],
    wait: WaitOption = 10.0,
) -> None:
    """Copy an index between folders and servers.

    In any direction, also out of the shards of: seenit embed --shards. May be repeated after a break.
    """
    from .index.copy import copy_index

    count = copy_index(source, target, progress=shows_progress(), wait_s=wait)
    print(printable(f"copied {plural(count, 'image')} from {source} to {target}"))


def embed(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...", help="Folders of images; with --shards also lists, tables, tar, addresses."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Plain features: .npy, with the paths in FILE.txt, or .parquet."),
    ] = None,
    shards: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="What an index holds, as Parquet shards, for copy and curate; or s3://..."),
    ] = None,
    patches: Annotated[
        bool, typer.Option("--patches/--no-patches", help="With --shards: keep patches, which an index needs.")
    ] = True,
    backbone: BackboneOption = "auto",
    precision: PrecisionOption = "auto",
    resolution: ResolutionOption = SyncOptions.resolution,
    workers: WorkersOption = SyncOptions.workers,
    tokens: TokensOption = SyncOptions.tokens,
    path_column: PathColumnOption = SyncOptions.path_column,
    key_column: KeyColumnOption = SyncOptions.key_column,
    ray: RayOption = SyncOptions.ray,
    actors: ActorsOption = SyncOptions.actors,
    gpus_per_actor: GpusPerActorOption = SyncOptions.gpus_per_actor,
    allow_private: AllowPrivateOption = SyncOptions.allow_private,
    wait: WaitOption = SyncOptions.wait_s,
) -> None:
    """Write features of images; no index is made.

    --out: the backbone's last CLS, L2-normalised, of folders. Nothing is overwritten.

    --shards: the vectors and patches of an index; run again, it embeds what is new. Then: seenit copy DIR INDEX. What
    concerns patches, tables, addresses and clusters goes with it alone.
    """
    if (out is None) == (shards is None):
        raise typer.BadParameter("give one of --out and --shards", param_hint="--out")
    if shards is not None:
        options = SyncOptions(
            resolution=resolution,
            tokens=tokens,
            workers=workers,
            path_column=path_column,
            key_column=key_column,
            allow_private=allow_private,
            ray=ray,
            actors=actors,
            gpus_per_actor=gpus_per_actor,
            wait_s=wait,
        )
        _embed_into_shards(sources, shards, patches, options, backbone, precision)
        return
    asked = {
        "--tokens": tokens,
        "--path-column": path_column,
        "--key-column": key_column,
        "--ray": ray,
        "--actors": actors,
        "--gpus-per-actor": gpus_per_actor,
        "--allow-private": allow_private,
    }
    if only := [name for name, value in asked.items() if value] + ["--no-patches"] * (not patches):
        raise typer.BadParameter(f"{only[0]} goes with --shards", param_hint=only[0])
    assert out is not None
    from .backbone.load_once import LoadOnce
    from .folder_features import check_target, embed_folder, save_features

    check_target(out)
    once = LoadOnce(backbone, say, precision)
    found = embed_folder(
        sources, once, resolution=resolution or 224, workers=workers, progress=shows_progress(), say=say
    )
    written = save_features(found, out)
    count, length = found.features.shape
    print(f"{plural(count, 'image')}, {length} numbers each: {' and '.join(quoted(str(file)) for file in written)}")


def _embed_into_shards(
    sources: Sequence[str], place: str, patches: bool, options: SyncOptions, backbone: str, precision: str
) -> None:
    from .backbone.load_once import LoadOnce
    from .vector_shards import embed_into_shards

    once = LoadOnce(None if backbone == "auto" else backbone, say, precision)
    with stop_on_interrupt(signal.SIGTERM) as stop:
        summary = embed_into_shards(
            sources,
            place,
            patches=patches,
            options=options,
            backbone=once,
            progress=shows_progress(),
            stop=stop.is_set,
            say=say,
        )
    for line in summary.unreadable:
        say(f"not readable, kept as it was: {line}")
    for reason, count in summary.skipped.items():
        say(f"skipped {count:,}: {reason}")
    for note in summary.notes:
        say(note)
    print(f"{plural(summary.images, 'image')}, {summary.embedded:,} embedded now: {quoted(place)}")
    if summary.interrupted:
        say("stopped early: what was done is saved; run the same command again to go on")
        sys.exit(130)


def backbone_list(as_json: JsonOption = False) -> None:
    """The backbones by name, and which of them are here."""
    from .backbone.catalogue import list_backbones

    found = list_backbones()
    if as_json:
        print(json.dumps([asdict(entry) for entry in found], default=str))
        return
    print(f"{'name':<22} {'where':<13} {'size':>9}  {'parameters':>10}  dim  patch  registers")
    for entry in found:
        size = megabytes(entry.size) if entry.size else "-"
        print(
            f"{quoted(entry.name):<22} {entry.where:<13} {size:>9}  {entry.parameters / 1e6:>8.1f} M"
            f"  {entry.embed_dim:>4}  {entry.patch_size:>4}  {entry.registers:>6}"
        )


def backbone_import(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Official .pth, Hugging Face or our own safetensors.")],
    name: Annotated[str | None, typer.Option(help="What to call it. [the file's name]")] = None,
) -> None:
    """Check a weights file, convert it, and make it available by name."""
    from .backbone.import_weights import import_backbone

    print(quoted(str(import_backbone(file, name))))


def backbone_fetch(name: Annotated[str, typer.Argument(help="An official backbone's name.")]) -> None:
    """Fetch an official backbone ahead of time.

    Prints where its file lies. What is here already is not fetched again.
    """
    from .backbone.cache import backbone_path

    print(quoted(str(backbone_path(name, say=say))))


def backbone_export(
    name: Annotated[str, typer.Argument(metavar="NAME|PATH", help="A backbone's name, or a weights file.")],
    onnx: Annotated[Path, typer.Option(metavar="FILE", help="The ONNX file to write; none is overwritten.")],
) -> None:
    """Write a backbone as an ONNX file.

    For any number of images of any size in whole patches; the file's description tells the preprocessing.
    """
    from .backbone.backbone import Backbone
    from .backbone.export_onnx import export_onnx, preprocessing_note

    loaded = Backbone.load(name, device="cpu", say=say_details)
    print(quoted(str(export_onnx(loaded, onnx))))
    say(preprocessing_note(loaded.preprocessing, loaded.patch_size))


def backbone_path_(name: Annotated[str, typer.Argument(help="A backbone's name.")]) -> None:
    """Where a backbone's file lies; nothing is fetched."""
    from .backbone.cache import backbone_path

    print(quoted(str(backbone_path(name, offline=True))))


def tag_add(
    tag: Annotated[str, typer.Argument(help="A word.")],
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Images or folders of the index.")],
    index: IndexOption = None,
    wait: WaitOption = 10.0,
) -> None:
    """Put a tag on images."""
    _change_tags(index, paths, lambda tags: tags | {tag}, "tagged", wait)


def tag_remove(
    tag: Annotated[str, typer.Argument(help="A word.")],
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Images or folders of the index.")],
    index: IndexOption = None,
    wait: WaitOption = 10.0,
) -> None:
    """Take a tag off images."""
    _change_tags(index, paths, lambda tags: tags - {tag}, "untagged", wait)


def tag_list(index: IndexOption = None, as_json: JsonOption = False) -> None:
    """Every tag, and how many images have it."""
    from .index.find_index import find_index
    from .index.tags import count_tags

    counts = count_tags(find_index(index, say=say))
    if as_json:
        print(json.dumps(counts))
    for tag, count in [] if as_json else counts.items():
        print(f"{count:>7,}  {quoted(tag)}")


def tag_export(
    index: IndexOption = None,
    xmp: Annotated[
        bool, typer.Option("--xmp", help="Write PHOTO.jpg.xmp beside each tagged image; only its own are replaced.")
    ] = False,
) -> None:
    """Tags and attributes as JSON by content id, for tag import.

    With --xmp as sidecars, whose keywords photo software reads. What other programs wrote is left as it is.
    """
    from .index.find_index import find_index
    from .index.tags import export_tags

    if xmp:
        from .index.tag_sidecars import write_sidecars

        done = write_sidecars(find_index(index, say=say))
        print(f"wrote {plural(done.written, 'sidecar')}")
        for line in done.left:
            say(f"left alone: {line}")
        return
    print(export_tags(find_index(index, say=say)).decode())


def tag_import(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `seenit tag export` wrote.")],
    index: IndexOption = None,
    wait: WaitOption = 10.0,
) -> None:
    """Add exported tags and attributes; what is there stays. An image that is not there gets its tags when it comes."""
    from .index.find_index import find_index
    from .index.tags import import_tags

    done = import_tags(find_index(index, say=say), file.read_bytes(), wait_s=wait)
    parts = [f"tagged {plural(done.tagged, 'image')}"]
    if done.described:
        parts.append(f"gave attributes to {done.described:,}")
    if done.unknown:
        parts.append(f"{done.unknown:,} are not in the index")
    print("; ".join(parts))
    if done.left_out:
        say(f"attributes of {plural(done.left_out, 'image')} are not kept; import again once they are indexed")


def _change_tags(
    index: str | None, paths: Sequence[Path], change: Callable[[set[str]], set[str]], verb: str, wait_s: float
) -> None:
    from .index.find_index import find_index
    from .index.tags import change_tags

    changed = change_tags(find_index(index, paths, say=say), paths, change, wait_s=wait_s)
    print(f"{verb} {plural(changed, 'image')}")
