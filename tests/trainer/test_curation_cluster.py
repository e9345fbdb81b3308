"""Curation on a Ray cluster on this machine: the list of one process, also where workers are killed on the way."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer.cluster.session import Cluster, open_cluster
from trainer.curation import balance, cells, kmeans, neighbours
from trainer.curation.deduplicate import find_copies
from trainer.curation.embeddings import Embeddings, unit_rows

pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = pytest.mark.slow
ROWS, DIM = 3000, 16


def _die(path: str) -> None:
    """The first worker that comes here is killed in mid-work."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def search_shard_or_die(folder: Path, cells_folder: Path, number: int) -> None:
    neighbours.LEAST_ROWS = 500
    _die(str(folder / "killed"))
    neighbours.search_shard(folder, cells_folder, number)


def assign_block_or_die(paths: tuple[str, ...], *rest: Any) -> Any:
    _die(f"{paths[0]}.killed")
    return kmeans._assign_block(paths, *rest)


class Deadly:
    """A cluster in which each step loses a worker."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self.share = cluster, cluster.share
        self.calls: list[str] = []

    def map(self, function: Any, arguments: Any) -> Any:
        self.calls.append(function.__name__)
        known: dict[str, Any] = {"search_shard": search_shard_or_die, "_assign_block": assign_block_or_die}
        return self._cluster.map(known[function.__name__], arguments)


@pytest.mark.long
def test_the_choice_of_a_cluster_is_that_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(neighbours, "LEAST_ROWS", 500)
    monkeypatch.setattr(cells, "EXACT_ROWS", 1000)
    monkeypatch.setattr(kmeans, "BLOCK_ROWS", 700)
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, DIM))
    vectors = centres[rng.integers(40, size=ROWS)] + 0.4 * rng.standard_normal((ROWS, DIM))
    vectors[::50] = vectors[1::50]
    Embeddings((unit_rows(vectors)[0],)).save(tmp_path / "vectors")
    embeddings = Embeddings.open(tmp_path / "vectors")
    assert embeddings.paths is not None and len(Embeddings.of_files(embeddings.paths)) == ROWS

    def choose(work: Path, spread: Any) -> tuple[np.ndarray, np.ndarray]:
        copies = find_copies(embeddings, work, above=0.95, k=8, spread=spread)
        tree = balance.build_tree(embeddings, (60, 8), rows=copies.kept, resamplings=1, spread=spread)
        return copies.kept_for, copies.kept[balance.draw(tree, 200)]

    alone = choose(tmp_path / "alone", None)
    with open_cluster("local", 2) as cluster:
        deadly = Deadly(cluster)
        together = choose(tmp_path / "together", deadly)
    assert np.array_equal(alone[0], together[0]) and np.array_equal(alone[1], together[1])
    assert {"search_shard", "_assign_block"} <= set(deadly.calls)
    assert (tmp_path / "together" / "graph" / "killed").exists()
    assert list((tmp_path / "vectors").glob("*.killed"))
