"""The same photos through seenit and through what else one would take, with quality beside speed.

    python tests/benchmarks/beside_peers.py PHOTO_FOLDER [--images 1000]

Photos are copied from the folder, which is left as it is; of every tenth, three copies are made: half the size, JPEG
of quality 40, nine tenths of each side. Then, in turn on this machine:

- features: a new index of seenit, beside the loop that one writes first (Pillow, resize, torch in float32, one by one);
- neighbours: the ten nearest of every vector in seenit's store, in FAISS (exact), and in hnswlib and usearch;
- copies: `seenit duplicates`, and imagededup by its hashes and by its CNN.

Peers that cannot be imported have a line that says so: pip install imagededup hnswlib usearch. imagededup's CNN fetches
its weights.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from indexing_speed import plain_loop
from PIL import Image

from indexer import Index, sync_folder
from indexer.backbone.backbone import Backbone
from indexer.backbone.checkpoint import build_model, load_checkpoint
from indexer.backbone.resolve import choose_backbone
from indexer.store.faiss_library import faiss
from retrieval.duplicates.find import find_duplicates

COPIED_EVERY = 10
NEAREST = 10
LOOPED = 100  # photos that the plain loop is timed on
ROUNDS = 5
Pairs = set[tuple[str, str]]
Neighbours = Callable[[np.ndarray], np.ndarray]  # (Q, G) -> numbers of the nearest vectors, (Q, NEAREST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--backbone", default="seenit_vits14")
    arguments = parser.parse_args()
    sources = sorted(arguments.photos.rglob("*.jpg"))[: arguments.images]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "photos"
        truth = make_set(sources, folder)
        files = sorted(folder.iterdir())
        print(
            f"{len(sources)} photos and {len(files) - len(sources)} copies of {len(sources[::COPIED_EVERY])} of them\n"
        )
        print_features(folder, files, arguments.backbone)
        print_neighbours(vectors_of(folder / ".seenit"))
        print_copies(folder, truth)


def make_set(sources: list[Path], folder: Path) -> Pairs:
    """The photos with copies of some; the pairs of files that show the same photo."""
    folder.mkdir()
    truth: Pairs = set()
    for number, source in enumerate(sources):
        image = Image.open(source).convert("RGB")
        family = [folder / f"{number:05}.jpg"]
        image.save(family[0], quality=92)
        if number % COPIED_EVERY == 0:
            left, top = image.width // 20, image.height // 20
            copies = {
                "half": (image.resize((image.width // 2, image.height // 2)), 90),
                "coarse": (image, 40),
                "crop": (image.crop((left, top, image.width - left, image.height - top)), 90),
            }
            for name, (copy, quality) in copies.items():
                family.append(folder / f"{number:05}-{name}.jpg")
                copy.save(family[-1], quality=quality)
        truth |= pairs_in(file.name for file in family)
    return truth


def pairs_in(names: Iterable[str]) -> Pairs:
    return {(a, b) for a, b in itertools.combinations(sorted(set(names)), 2)}


def print_features(folder: Path, files: list[Path], spec: str) -> None:
    backbone = Backbone.load(spec)
    plain = build_model(load_checkpoint(choose_backbone(spec, offline=True).path))
    summary = sync_folder(folder, backbone=backbone)
    print("| features | images/s |\n|---|---|")
    print(f"| seenit index, {backbone.precision} | {summary.images_per_s:.1f} |")
    print(f"| torch alone, float32, one by one | {plain_loop(files[:LOOPED], plain):.1f} |\n")


def vectors_of(index: Path) -> np.ndarray:
    """(N, G) float32, L2-normalised."""
    with Index.open(index) as opened:
        ids = [record.id for record in opened.store.scroll()]
        records = opened.store.retrieve(ids, vectors=True)
        return np.stack([record.global_vector for record in records if record.global_vector is not None])


def print_neighbours(vectors: np.ndarray) -> None:
    exact = np.argsort(-(vectors @ vectors.T), axis=1)[:, :NEAREST]
    print(f"| {NEAREST} nearest of {len(vectors)} vectors | build, s | a query, ms | recall |\n|---|---|---|---|")
    peers: dict[str, tuple[str, Callable[[np.ndarray], Neighbours]]] = {
        "FAISS, exact": ("faiss", faiss_exact),
        "FAISS, HNSW of 8-bit codes, as seenit has it from 30,000 on": ("faiss", faiss_graph),
        "hnswlib": ("hnswlib", hnswlib_graph),
        "usearch": ("usearch", usearch_graph),
    }
    for name, (module, build) in peers.items():
        if not can_import(module):
            print(f"| {name} | cannot be imported | | |")
            continue
        started = time.perf_counter()
        nearest = build(vectors)
        built_s = time.perf_counter() - started
        times = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            found = nearest(vectors)
            times.append((time.perf_counter() - started) / len(vectors))
        recall = np.mean([len(set(a) & set(b)) / NEAREST for a, b in zip(found, exact, strict=True)])
        print(f"| {name} | {built_s:.2f} | {1000 * statistics.median(times):.3f} | {recall:.3f} |")
    print()


def can_import(module: str) -> bool:
    try:
        import_module(module)
        return True
    except (ImportError, RuntimeError):  # as torchvision beside another torch
        return False


def faiss_exact(vectors: np.ndarray) -> Neighbours:
    index: Any = faiss().IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return lambda queries: index.search(queries, NEAREST)[1]


def faiss_graph(vectors: np.ndarray) -> Neighbours:
    from indexer.store.neighbours import EF_CONSTRUCTION, EF_SEARCH, LINKS

    codes = faiss().ScalarQuantizer.QT_8bit
    index: Any = faiss().IndexHNSWSQ(vectors.shape[1], codes, LINKS, faiss().METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = EF_CONSTRUCTION, EF_SEARCH
    index.train(vectors)
    index.add(vectors)
    return lambda queries: index.search(queries, NEAREST)[1]


def hnswlib_graph(vectors: np.ndarray) -> Neighbours:
    index = import_module("hnswlib").Index("ip", vectors.shape[1])
    index.init_index(len(vectors), M=24, ef_construction=80)
    index.add_items(vectors)
    index.set_ef(128)
    return lambda queries: index.knn_query(queries, NEAREST)[0]


def usearch_graph(vectors: np.ndarray) -> Neighbours:
    index = import_module("usearch.index").Index(ndim=vectors.shape[1], metric="ip", dtype="f16")
    index.add(np.arange(len(vectors)), vectors)
    return lambda queries: index.search(queries, NEAREST).keys


def print_copies(folder: Path, truth: Pairs) -> None:
    print("| copies | seconds | recall | precision |\n|---|---|---|---|")
    ways: dict[str, tuple[str, Callable[[], Pairs]]] = {
        "seenit duplicates, the index not counted": ("retrieval", lambda: seenit_pairs(folder)),
        "imagededup, PHash": ("imagededup.methods", lambda: imagededup_pairs(folder, "PHash")),
        "imagededup, DHash": ("imagededup.methods", lambda: imagededup_pairs(folder, "DHash")),
        "imagededup, CNN": ("imagededup.methods", lambda: imagededup_pairs(folder, "CNN")),
    }
    for name, (module, find) in ways.items():
        if not can_import(module):
            print(f"| {name} | cannot be imported | | |")
            continue
        started = time.perf_counter()
        found = find()
        seconds = time.perf_counter() - started
        right = len(found & truth)
        print(f"| {name} | {seconds:.1f} | {right / len(truth):.3f} | {right / max(1, len(found)):.3f} |")


def seenit_pairs(folder: Path) -> Pairs:
    groups = find_duplicates(folder / ".seenit").groups
    families = [[g.file.path, *(file.path for member in g.members for file in member.files)] for g in groups]
    return set().union(*(pairs_in(Path(path).name for path in family) for family in families))


def imagededup_pairs(folder: Path, method: str) -> Pairs:
    found = getattr(import_module("imagededup.methods"), method)().find_duplicates(image_dir=str(folder))
    return {(min(a, b), max(a, b)) for a, others in found.items() for b in others}


if __name__ == "__main__":
    main()
