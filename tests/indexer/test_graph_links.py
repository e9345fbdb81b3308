"""Points that hardly any link of a graph leads to are linked to, and the graph stays one."""

from typing import Any

import numpy as np
import pytest

from indexer.store import graph_links
from indexer.store.faiss_library import faiss
from indexer.store.graph_links import FEWEST, _Lists, link_faint_points


def vectors(count: int, seed: int = 0) -> np.ndarray:
    """Around a few centres, with noise in all directions."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((8, 48))[rng.integers(0, 8, count)] + rng.standard_normal((count, 48))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def graph_of(rows: np.ndarray) -> Any:
    index = faiss().IndexHNSWSQ(48, faiss().ScalarQuantizer.QT_8bit, 8, faiss().METRIC_INNER_PRODUCT)
    index.train(rows)
    index.hnsw.efConstruction = 30
    index.add(rows)
    return index


def assert_sound(index: Any) -> None:
    """No list holds a point twice or its own, none has a gap, and none a point that is not there."""
    lists = _Lists(index.hnsw, index.ntotal).of(np.arange(index.ntotal))
    filled = lists >= 0
    assert (filled[:, 1:] <= filled[:, :-1]).all() and lists.max() < index.ntotal
    for point, links in enumerate(lists):
        real = links[links >= 0].tolist()
        assert point not in real and len(set(real)) == len(real)


def test_every_point_is_led_to_and_more_are_found() -> None:
    rows, queries = vectors(5000), vectors(200, 1)
    index = graph_of(rows)
    before = _Lists(index.hnsw, index.ntotal).incoming()
    assert (before < FEWEST).sum() > 50, "otherwise this shows nothing"

    def recall() -> float:
        _, found = index.search(queries, 10, params=faiss().SearchParametersHNSW(efSearch=40))
        nearest = np.argsort(-queries @ rows.T, axis=1)[:, :10]
        return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, nearest, strict=True)]))

    missed = recall()
    assert link_faint_points(index) > 50
    assert_sound(index)
    after = _Lists(index.hnsw, index.ntotal).incoming()
    assert (after >= before).all() and (after < FEWEST).sum() < 0.2 * (before < FEWEST).sum()
    assert recall() > missed
    index.add(vectors(500, 2))  # it grows on as before
    link_faint_points(index)
    assert_sound(index)


def test_few_points_and_full_lists_are_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (1, 2, 5):
        index = graph_of(np.repeat(vectors(1), count, 0))
        link_faint_points(index)
        assert_sound(index)
    monkeypatch.setattr(graph_links, "FEWEST", 1000)  # more than any list holds
    index = graph_of(vectors(300))
    link_faint_points(index)
    assert_sound(index)


def test_it_can_be_stopped() -> None:
    index = graph_of(vectors(2000))
    assert link_faint_points(index, stop=lambda: True) == 0
