"""How many copies are found, and how many of those found are copies, by kind of edit; hashes beside it.

    python tests/benchmarks/duplicates_quality.py ../shared/data --work FOLDER [--originals 20] [--traps N]
        [--half report] [--hashes] [--json]

The set of copies.py is made and indexed in FOLDER once. A copy is found where one group has it and its original; a
member of a group is right where it shares a photo with the keeper. It is offered where it may be given up for its
keeper or its keeper for it; a caption, a collage and a part that was cut out and enlarged should not be. Constants of
the confirmation were chosen with other originals. Then the edits that others made (`copies_real`). --hashes runs
imagededup's on the same files, at its default distance (pip install imagededup; its networks need torchvision and are
left out). On two cores the set of 4,039 takes six minutes to index and twenty to search, for half of it are copies of
something.
"""

import argparse
import csv
import json
import sys
import types
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that it also runs as a file

from copies import EDITS, Labelled, make_copies

from indexer.sync.sync import sync_folder
from retrieval.duplicates import DuplicateOptions, Duplicates, find_duplicates
from retrieval.duplicates.outcome import Group

Pairs = set[tuple[str, str]]  # of paths, the lower one first
HASHES = ("PHash", "DHash", "AHash", "WHash")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--originals", type=int, default=20, help="of each set")
    parser.add_argument("--traps", type=int, help="photos of each set that are no copies; default: all")
    parser.add_argument("--half", choices=["tune", "report", "both"], default="report")
    parser.add_argument("--hashes", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    labels = labelled_set(args)
    mine = {one.path: one for one in labels if args.half in (one.half, "both")}
    found = searched(args.work / "set")
    by_way = {"seenit near": pairs_of(found, {"exact", "near"}), "seenit scene": pairs_of(found, {"scene"})}
    for name in HASHES if args.hashes else ():
        by_way[f"imagededup {name}"] = hashed_pairs(name, (args.work / "set").resolve())
    by_way["offered"] = offered_pairs(found)
    scores = {way: scores_of(pairs, mine) for way, pairs in by_way.items()}
    real = real_edits(args)
    if args.json:
        print(json.dumps({"made": scores, "real": real, "seconds": found.seconds}))
        return
    print(f"{len(mine):,} images, {args.half} half; {found.images:,} looked through in {found.seconds:.0f} s")
    ways = [way for way in scores if way != "seenit scene"]
    print(f"\n| recall by edit | {' | '.join(ways)} |\n|---|{'---|' * len(ways)}")
    for kind in (*EDITS, "all"):
        print(f"| {kind} | {' | '.join(f'{scores[way][kind]:.3f}' for way in ways)} |")
    print(f"| precision | {' | '.join(precision_text(scores[way]) for way in ways)} |")
    scene = scores["seenit scene"]
    print(f"\nscene level: {scene['same motif']} of {scene['pairs']} pairs show one motif")
    for line in [*real, *wrong_pairs(by_way["seenit near"], mine)]:
        print(line)


def labelled_set(args: argparse.Namespace) -> list[Labelled]:
    """The made set, as it was made before where it is there."""
    kept = args.work / "labels.json"
    if not kept.exists():
        made = make_copies(args.data, (args.work / "set").resolve(), args.originals, args.traps)
        kept.write_text(json.dumps([asdict(one) for one in made]))
    return [Labelled(**{**one, "shows": tuple(one["shows"])}) for one in json.loads(kept.read_text())]


def searched(folder: Path) -> Duplicates:
    sync_folder(folder, progress=sys.stderr.isatty())
    return find_duplicates(folder / ".seenit", DuplicateOptions(level="scene"))


def pairs_of(found: Duplicates, levels: set[str]) -> Pairs:
    """Each keeper with its members of some levels."""
    return {
        ordered(real_path(group.file.path), real_path(file.path))
        for group in found.groups
        for member in group.members
        if member.level in levels
        for file in member.files
    }


def offered_pairs(found: Duplicates) -> Pairs:
    """Each keeper with what may be given up for it."""
    return {ordered(real_path(group.file.path), real_path(file.path)) for group in found.groups for file in group.spare}


def scores_of(pairs: Pairs, labels: dict[str, Labelled]) -> dict[str, float]:
    """Recall by kind of edit, precision, and how many pairs show at least the same motif.

    A copy counts as found beside its original, or beside a third image that the original is beside as well; not so
    where that is a collage, which shows any number of photos.
    """
    beside: dict[str, set[str]] = defaultdict(set)
    for path, second in pairs:
        beside[path].add(second)
        beside[second].add(path)
    original = {one.shows[0]: one.path for one in labels.values() if one.kind == "original"}
    collages = {one.path for one in labels.values() if one.kind == "part of a collage"}
    hits: dict[str, list[bool]] = defaultdict(list)
    for one in labels.values():
        if one.kind in EDITS:
            source = original[one.shows[0]]
            hit = source in beside[one.path] or not (beside[one.path] & beside[source]).issubset(collages)
            hits[one.kind].append(hit)
            hits["all"].append(hit)
    known = [(labels[path], labels[second]) for path, second in pairs if path in labels and second in labels]
    right = sum(not set(first.shows).isdisjoint(second.shows) for first, second in known)
    motif = sum(first.motif == second.motif != "" for first, second in known)
    recall = {kind: sum(found) / len(found) for kind, found in hits.items()}
    return {**recall, "pairs": len(known), "right": right, "same motif": motif, "precision": right / max(len(known), 1)}


def wrong_pairs(pairs: Pairs, labels: dict[str, Labelled]) -> Iterable[str]:
    """The pairs that were taken for copies and are none, for a look at them."""
    for path, second in sorted(pairs):
        if path in labels and second in labels and set(labels[path].shows).isdisjoint(labels[second].shows):
            same = "the same motif" if labels[path].motif == labels[second].motif != "" else "another motif"
            yield f"no copy, but {same}: {path} {second}"


def precision_text(scores: dict[str, float]) -> str:
    return f"{scores['precision']:.4f} ({scores['right']:,} of {scores['pairs']:,})"


def hashed_pairs(name: str, folder: Path) -> Pairs:
    """What a hash of imagededup takes for duplicates."""
    for networks, name_in_it in (("imagededup.methods.cnn", "CNN"), ("imagededup.utils.models", "CustomModel")):
        absent = types.ModuleType(networks)  # what would import torchvision
        absent.__dict__[name_in_it] = None
        sys.modules[networks] = absent
    from imagededup import methods

    hasher = getattr(methods, name)(verbose=False)
    codes = {
        str(folder / file): code
        for part in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        for file, code in ((f"{part.name}/{name}", code) for name, code in hasher.encode_images(part).items())
    }
    return {
        ordered(one, other) for one, others in hasher.find_duplicates(encoding_map=codes).items() for other in others
    }


def real_edits(args: argparse.Namespace) -> Iterable[str]:
    """One line for each group of edits that others made, and what was wrongly put together."""
    folder = args.data / "copies_real"
    rows = list(csv.DictReader((folder / "manifest.csv").open(encoding="utf-8")))
    group_of = {real_path(folder / row["path"]): row["group"] for row in rows}
    index = args.work / "real"
    sync_folder(folder, index)
    found = find_duplicates(index)
    lines = []
    for name in sorted({group for group in group_of.values() if list(group_of.values()).count(group) > 1}):
        files = {path for path, group in group_of.items() if group == name}
        best: set[str] = max((paths_of(group) & files for group in found.groups), key=len, default=set())
        lost = ", ".join(sorted(Path(path).name for path in files - best))
        lines.append(f"copies_real, {name}: {len(best)} of {len(files)} in one group{f'; not {lost}' if lost else ''}")
    wrong = sum(
        group_of[real_path(group.file.path)] != group_of[real_path(file.path)]
        for group in found.groups
        for member in group.members
        for file in member.files
    )
    return [*lines, f"copies_real: {wrong} images in a group of another one"]


def paths_of(group: Group) -> set[str]:
    files = [group.file, *(file for member in group.members for file in member.files)]
    return {real_path(file.path) for file in files}


def real_path(path: str | Path) -> str:
    return str(Path(path).resolve())


def ordered(one: str, other: str) -> tuple[str, str]:
    return (one, other) if one < other else (other, one)


if __name__ == "__main__":
    main()
