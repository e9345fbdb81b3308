"""Curation on vectors: each step against what one would write without a thought for speed."""

import errno
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from indexer.errors import SeenitError
from trainer.curation import byte_products, probing
from trainer.curation import cells as cells_module
from trainer.curation import neighbours as neighbours_module
from trainer.curation.balance import Tree, build_tree, default_levels, draw, effective, shares
from trainer.curation.byte_products import Products, encode, most_similar
from trainer.curation.cells import build_cells, nearest_in_cells, probes_for, sample_of, similar_in_cells
from trainer.curation.components import bounded_components, components
from trainer.curation.deduplicate import find_copies, near_any, whole_groups
from trainer.curation.embeddings import Embeddings, equal_rows, unit_rows
from trainer.curation.kinds import unstretch
from trainer.curation.kmeans import assign, kmeans
from trainer.curation.neighbours import EDGE, neighbour_graph
from trainer.curation.retrieve import retrieve_clusters, retrieve_left, retrieve_nearest
from trainer.curation.whole_files import claim_work_folder, step_file


def concepts(count: int, num_concepts: int = 20, dim: int = 24, spread: float = 0.5, seed: int = 0) -> np.ndarray:
    """Rows around centres; a row's concept is its number modulo the number of concepts."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((num_concepts, dim))
    rows = centres[np.arange(count) % num_concepts] + spread * rng.standard_normal((count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def small_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if some hundred vectors were many."""
    monkeypatch.setattr(cells_module, "EXACT_ROWS", 100)
    monkeypatch.setattr(cells_module, "CELL_ROWS", 50)
    monkeypatch.setattr(neighbours_module, "LEAST_ROWS", 128)


def edges_of(graph: neighbours_module.NeighbourLists) -> np.ndarray:
    return np.sort(np.concatenate(list(graph)), order=["row", "neighbour"])


# ---- vectors ----


def test_rows_without_a_direction_are_told_and_zeroed() -> None:
    rows = np.array([[3, 4], [0, 0], [np.nan, 1], [np.inf, 1], [1e30, 0], [1e-30, 0]], np.float32)
    unit, good = unit_rows(rows)
    assert good.tolist() == [True, False, False, False, True, True]
    assert unit.astype(float) == pytest.approx(np.array([[0.6, 0.8], [0, 0], [0, 0], [0, 0], [1, 0], [1, 0]]), abs=1e-3)
    with pytest.raises(SeenitError, match=r"3 of 6 vectors .* first is row 1"):
        Embeddings.of(rows)


def test_shards_read_like_one_array(tmp_path: Path) -> None:
    whole, _ = unit_rows(concepts(100))
    Embeddings((whole[:30], whole[30:30], whole[30:])).save(tmp_path)
    opened = Embeddings.open(tmp_path)
    assert len(opened) == 100 and opened.dim == 24
    numbers = np.array([99, 0, 30, 29, 30])
    assert np.array_equal(opened.rows(numbers), whole[numbers])
    blocks = list(opened.blocks(numbers, size=2))
    assert np.array_equal(np.concatenate([block for _, block in blocks]), whole[numbers].astype(np.float32))
    assert [where.start for where, _ in blocks] == [0, 2, 4]
    with pytest.raises(SeenitError, match="no vectors in"):
        Embeddings.open(tmp_path / "elsewhere")


def test_equal_rows_are_named_by_the_first() -> None:
    rows = concepts(50)
    rows[[7, 20]], rows[40] = rows[3], rows[0]
    expected = np.arange(50)
    expected[[7, 20, 40]] = 3, 3, 0
    assert np.array_equal(equal_rows(Embeddings.of(rows)), expected)


# ---- cells and graph ----


def test_one_cell_is_exact(tmp_path: Path) -> None:
    rows = concepts(200)
    embeddings = Embeddings.of(rows)
    graph = neighbour_graph(build_cells(embeddings, tmp_path / "c"), tmp_path / "g", tmp_path / "c", k=5)
    exact = embeddings.rows(np.arange(200)).astype(np.float32)
    similarity = exact @ exact.T
    np.fill_diagonal(similarity, -2)
    best = np.sort(similarity, axis=1)[:, ::-1][:, :5]
    found = edges_of(graph)
    assert len(found) == 1000 and not (found["row"] == found["neighbour"]).any()
    assert similarity[found["row"], found["neighbour"]] == pytest.approx(found["similarity"], abs=1e-5)
    ours = np.sort(found["similarity"].reshape(200, 5), axis=1)[:, ::-1]  # edges are sorted by row
    assert ours == pytest.approx(best, abs=1e-5)


def test_probing_all_cells_is_exact_and_the_promised_recall_is_kept(tmp_path: Path, small_cells: None) -> None:
    embeddings = Embeddings.of(concepts(1000, num_concepts=60, spread=1.0))
    cells = build_cells(embeddings, tmp_path / "c")
    assert len(cells.centroids) == 20 and len(cells) == 1000
    assert np.array_equal(np.sort(cells.rows), np.arange(1000))
    assert np.array_equal(cells.vectors, embeddings.rows(cells.rows))
    exact = embeddings.rows(np.arange(1000)).astype(np.float32)
    true = np.argsort(-(exact @ exact.T), axis=1)[:, :11]
    _, found = nearest_in_cells(cells, exact, 11, probes=20)
    assert np.mean([len(set(a) & set(b)) / 11 for a, b in zip(found, true, strict=True)]) > 0.999
    probes, promised, judged = probes_for(cells, sample_of(1000), k=10, recall=0.9)
    assert 1 < probes < 20 and judged == 10 * cells_module.SAMPLE and promised >= 0.9
    _, found = nearest_in_cells(cells, exact, 11, probes=probes)
    reached = np.mean([len((set(a) & set(b)) - {n}) / 10 for n, (a, b) in enumerate(zip(found, true, strict=True))])
    assert reached == pytest.approx(promised, abs=0.03)


def test_of_two_neighbours_it_is_enough_that_one_finds_the_other(tmp_path: Path, small_cells: None) -> None:
    embeddings = Embeddings.of(concepts(1000, num_concepts=60, spread=1.0))
    cells = build_cells(embeddings, tmp_path / "c")
    sample = sample_of(1000)
    both, _, _ = probes_for(cells, sample, k=999, above=0.55, recall=0.9)
    probes, promised, judged = probes_for(cells, sample, k=999, above=0.55, recall=0.9, either=True)
    assert 1 < probes < both and promised >= 0.9 and judged == cells_module.SAMPLE
    exact = embeddings.rows(np.arange(1000)).astype(np.float32)
    asking, rows, _ = similar_in_cells(cells, exact, 1000, probes=probes, above=0.55)
    found = np.zeros((1000, 1000), bool)
    found[asking, rows] = True
    true = (exact @ exact.T > 0.55) & ~np.eye(1000, dtype=bool)
    assert ((found | found.T) & true).sum() / true.sum() == pytest.approx(promised, abs=0.03)


def test_the_most_similar_as_bytes_tell_are_nearly_those_of_exact_products() -> None:
    rows, centres = concepts(3000, num_concepts=60, spread=1.0), concepts(300, spread=1.0, seed=1)
    similarity = rows @ centres.T
    found = most_similar(rows, centres, 20)
    best = np.argsort(-similarity, axis=1)[:, :20]
    assert np.mean([len(set(a) & set(b)) / 20 for a, b in zip(found, best, strict=True)]) > 0.97
    got = np.take_along_axis(similarity, found, axis=1)
    assert np.abs(got - np.take_along_axis(similarity, best, axis=1)).max() < 0.03
    assert np.array_equal(np.sort(most_similar(rows, centres, 300), axis=1), np.tile(np.arange(300), (3000, 1)))


@pytest.mark.parametrize("of_bytes", [True, False])
@pytest.mark.parametrize(("above", "pairs"), [(0.05, 10_000), (0.6, 10_000), (0.6, 200), (0.97, 10_000)])
def test_pairs_over_a_similarity_are_those_of_the_full_search(
    tmp_path: Path, small_cells: None, monkeypatch: pytest.MonkeyPatch, above: float, pairs: int, of_bytes: bool
) -> None:
    """Products of bytes leave nothing out; with few pairs held at a time the best are kept."""
    monkeypatch.setattr(probing, "MOST_PAIRS", pairs)
    monkeypatch.setattr(byte_products, "_PIECE", 37)
    monkeypatch.setattr(byte_products, "_PAD_ROWS", 1)
    if not of_bytes:
        monkeypatch.setattr(byte_products, "multiplies_bytes", lambda: False)
    embeddings = Embeddings.of(concepts(1000, num_concepts=60, spread=0.3))
    cells = build_cells(embeddings, tmp_path / "c")
    queries = embeddings.rows(np.arange(300)).astype(np.float32)
    similarity, rows = nearest_in_cells(cells, queries, 9, probes=4)
    asking, at = np.nonzero((rows >= 0) & (similarity > above))
    found = similar_in_cells(cells, queries, 9, probes=4, above=above)
    assert len(asking) > 200 and np.array_equal(found[0], asking)
    assert found[2] == pytest.approx(similarity[asking, at], abs=1e-6)
    assert set(zip(*found[:2], strict=True)) == set(zip(asking, rows[asking, at], strict=True))


def test_no_pair_over_its_bound_is_missed_and_few_others_are_told() -> None:
    rng = np.random.default_rng(0)
    rows, _ = unit_rows(rng.standard_normal((2000, 64)) * np.arange(1, 65) ** -0.3)
    rows[500:1000] = unit_rows(rows[:500] + 0.08 * rng.standard_normal((500, 64)))[0]
    exact = rows.astype(np.float32)
    similarity = exact @ exact.T
    mine = rng.permutation(2000)[:1300]
    above = rng.choice([0.3, 0.6, 0.9], 1300).astype(np.float32)
    asking, found = Products(encode(rows)).pairs_over(mine, encode(rows, one_step=True), above)
    told = np.zeros((1300, 2000), bool)
    told[asking, found] = True
    over = similarity[mine] > above[:, None]
    assert told[over].all() and len(asking) == told.sum()
    assert not told[similarity[mine] < above[:, None] - 0.06].any()


def test_rounding_to_bytes_takes_away_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _ = unit_rows(concepts(100, dim=48))
    monkeypatch.setattr(byte_products, "multiplies_bytes", lambda: False)
    assert np.array_equal(encode(rows).codes.numpy(), rows) and not encode(rows).error.any()
    monkeypatch.setattr(byte_products, "multiplies_bytes", lambda: True)  # rounding alone is done by any processor
    for one_step in (False, True):
        codes = encode(rows, one_step=one_step)
        again = codes.codes.float().numpy() * codes.step[:, None]
        assert np.linalg.norm(rows - again, axis=1) == pytest.approx(codes.error, abs=1e-6)
        assert codes.error.max() < 0.03 and (len(np.unique(codes.step)) == 1) == one_step


def test_pairs_are_ordered_by_query_similarity_and_number() -> None:
    rng = np.random.default_rng(0)
    queries, numbers = rng.integers(0, 20, 500), rng.permutation(500)
    similarity = rng.choice(rng.uniform(0.1, 1, 30), 500).astype(np.float32)  # many are equal
    ordered = probing._by_query(queries, numbers, similarity)
    assert np.array_equal(ordered, np.lexsort((numbers, -similarity, queries)))


@pytest.mark.long
def test_the_graph_is_the_same_by_several_workers_and_after_an_interruption(
    tmp_path: Path, small_cells: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # spawned workers do not see the small numbers
    embeddings = Embeddings.of(concepts(40_000, num_concepts=200, dim=8, spread=0.3))
    cells = build_cells(embeddings, tmp_path / "c", num_cells=40)
    alone = neighbour_graph(cells, tmp_path / "alone", tmp_path / "c", k=6, above=0.8)
    together = neighbour_graph(cells, tmp_path / "two", tmp_path / "c", k=6, above=0.8, workers=2)
    assert len(alone.shards) == 2 and alone.plan == together.plan
    for one, other in zip(alone, together, strict=True):
        assert len(one) > 1000 and np.array_equal(one, other)

    alone.shards[1].unlink()
    kept = alone.shards[0].stat().st_mtime_ns
    steps: list[tuple[int, int]] = []
    again = neighbour_graph(
        build_cells(embeddings, tmp_path / "c", num_cells=40),
        tmp_path / "alone",
        tmp_path / "c",
        k=6,
        above=0.8,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps == [(1, 2), (2, 2)] and again.shards[0].stat().st_mtime_ns == kept
    assert np.array_equal(edges_of(again), edges_of(together))


def test_other_vectors_are_not_taken_for_those_of_before(tmp_path: Path) -> None:
    first = build_cells(Embeddings.of(concepts(50)), tmp_path / "c")
    second = build_cells(Embeddings.of(concepts(50, seed=1)), tmp_path / "c")
    assert not np.array_equal(first.vectors, second.vectors)


def test_a_folder_of_something_else_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(SeenitError, match="something else"):
        claim_work_folder(tmp_path, "x")
    assert (tmp_path / "precious.txt").read_text() == "mine"


# ---- copies ----


def test_components_are_those_of_a_slow_search() -> None:
    rng = np.random.default_rng(1)
    links = [(rng.integers(0, 300, 40), rng.integers(0, 300, 40)) for _ in range(4)]
    reached = {n: {n} for n in range(300)}
    for first, second in links:
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            merged = reached[a] | reached[b]
            for n in merged:
                reached[n] = merged
    assert components(300, links).tolist() == [min(reached[n]) for n in range(300)]


def edges(*links: tuple[int, int, float]) -> list[np.ndarray]:
    return [np.array(list(links), EDGE)]


def test_a_chain_that_is_too_long_is_cut_where_it_is_weak() -> None:
    chain = edges((0, 1, 0.9), (1, 2, 0.9), (2, 3, 0.62), (3, 4, 0.9), (4, 5, 0.9), (7, 8, 0.61))
    groups, cut = bounded_components(9, chain, 0.6, largest=3)
    assert groups.tolist() == [0, 0, 0, 3, 3, 3, 6, 7, 7] and cut == 1
    groups, cut = bounded_components(9, chain, 0.6, largest=6)
    assert groups.tolist() == [0, 0, 0, 0, 0, 0, 6, 7, 7] and cut == 0


def test_what_is_all_but_equal_stays_together_however_many() -> None:
    star = edges(*[(0, n, 0.99) for n in range(1, 10)])
    groups, cut = bounded_components(10, star, 0.6, largest=3)
    assert groups.tolist() == [0] * 10 and cut == 1


@pytest.mark.parametrize("largest", [100, 1])
def test_all_rows_equal_are_one_group(tmp_path: Path, largest: int) -> None:
    copies = find_copies(Embeddings.of(np.ones((500, 8))), tmp_path, largest=largest)
    assert copies.kept.tolist() == [0] and copies.num_equal == 499 and copies.sizes().tolist() == [500]


def test_copies_are_grouped_and_the_largest_image_kept(tmp_path: Path, small_cells: None) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((300, 64))  # unrelated: cosines below .5
    rows[200:] = rows[:100] + 0.3 * rng.standard_normal((100, 64))  # copies with edits
    rows[199] = rows[0]
    pixels = np.full(300, 100)
    pixels[[205, 7]] = 400, 400
    copies = find_copies(Embeddings.of(rows), tmp_path, pixels=pixels, recall=1.0)
    expected = np.arange(300)
    expected[200:] = np.arange(100)
    expected[199] = 0
    expected[[5, 205]] = 205  # the copy is larger
    assert np.array_equal(copies.kept_for, expected)
    assert copies.num_equal == 1 and copies.num_cut == 0 and copies.sizes()[:2].tolist() == [3, 2]
    assert len(copies.kept) == 199


def test_two_vectors_in_all(tmp_path: Path) -> None:
    copies = find_copies(Embeddings.of(np.eye(2)), tmp_path)
    assert copies.kept.tolist() == [0, 1]
    tree = build_tree(Embeddings.of(np.eye(2)))
    assert draw(tree, 1).shape == (1,)


def test_whatever_is_near_the_evaluation_set_goes_with_its_group() -> None:
    rows = concepts(40, num_concepts=40)
    avoid = Embeddings.of(rows[[30, 3]] + 0.01)
    similarity, which = near_any(Embeddings.of(rows), avoid)
    assert similarity[3] > 0.99 and which[3] == 1 and which[30] == 0
    exact = rows @ avoid.rows(np.arange(2)).astype(np.float32).T
    assert similarity == pytest.approx(exact.max(1), abs=2e-3)
    hit = np.zeros(40, bool)
    hit[3] = True
    kept_for = np.arange(40)
    kept_for[[3, 5]] = 5, 5
    assert np.flatnonzero(whole_groups(kept_for, hit)).tolist() == [3, 5]


# ---- retrieval ----


def test_the_nearest_of_each_curated_image_are_retrieved(tmp_path: Path, small_cells: None) -> None:
    pool = concepts(400, num_concepts=40, dim=48, spread=0.2)
    curated = concepts(40, num_concepts=40, dim=48, spread=0.0)[[2, 9, 9]]  # two kinds, one of them twice
    cells = build_cells(Embeddings.of(pool), tmp_path)
    assert len(cells.centroids) > 1
    found = retrieve_nearest(cells, Embeddings.of(curated), count=5, recall=1.0)
    kinds = found.rows % 40
    assert sorted(set(kinds.tolist())) == [2, 9] and len(found.rows) == 10
    assert (found.because_of[kinds == 2] == 0).all() and (found.because_of[kinds == 9] > 0).all()
    allowed = np.ones(400, bool)
    allowed[found.rows] = False
    others = retrieve_nearest(cells, Embeddings.of(curated), count=5, allowed=allowed, recall=1.0)
    assert not set(others.rows) & set(found.rows) and set(others.rows % 40) == {2, 9}


def test_rows_that_are_left_are_retrieved_by_the_rows_that_the_cells_hold(tmp_path: Path, small_cells: None) -> None:
    pool = concepts(400, num_concepts=40, dim=48, spread=0.2)
    pool[300:340] = pool[:40]
    embeddings = Embeddings.of(pool)
    alike = equal_rows(embeddings)
    cells = build_cells(embeddings, tmp_path, rows=np.flatnonzero(alike == np.arange(400)))
    left = np.arange(200, 400)  # of the equal ones the larger images are left, which the cells do not have
    curated = concepts(40, num_concepts=40, dim=48, spread=0.0)[[2, 9]]
    found = retrieve_left(cells, alike, left, Embeddings.of(curated), count=5, recall=1.0)
    exact = embeddings.rows(left).astype(np.float32) @ curated.T
    true = {int(left[at]) for one in (0, 1) for at in np.argsort(-exact[:, one])[:5]}
    assert set(found.rows.tolist()) == true and {302, 309} <= true and np.array_equal(found.rows, np.sort(found.rows))


def test_clusters_with_enough_curated_images_are_drawn_from() -> None:
    pool = Embeddings.of(concepts(1000, num_concepts=10, dim=32, spread=0.1))
    curated = concepts(1000, num_concepts=10, dim=32, spread=0.1)
    kinds = np.arange(1000) % 10
    chosen = Embeddings.of(np.concatenate([curated[kinds == 4], curated[kinds == 7][:2]]))  # 7: too few
    rows = np.flatnonzero(kinds != 0)
    found = retrieve_clusters(pool, chosen, rows, num_clusters=60, per_cluster=5)
    assert found.num_clusters > 2 and 5 < len(found.rows) <= 5 * found.num_clusters
    assert (found.rows % 10 == 4).all() and (found.because_of == -1).all()
    assert len(retrieve_clusters(pool, chosen, rows, num_clusters=60, most=7).rows) == 7
    assert len(retrieve_clusters(pool, Embeddings.of(curated[:2]), rows, num_clusters=60).rows) == 0


# ---- balance ----


@pytest.mark.parametrize("count", [0, 1, 5, 7, 20, 31, 32, 100])
def test_shares_are_as_equal_as_sizes_allow(count: int) -> None:
    sizes = np.array([1, 20, 3, 0, 8])
    given = shares(sizes, count, np.random.default_rng(0))
    assert given.sum() == min(count, 32) and (given <= sizes).all()
    level = given.max()
    assert all(share >= min(size, level - 1) for share, size in zip(given, sizes, strict=True))


def test_drawing_from_a_tree_balances_every_level() -> None:
    # 2 kinds at the top; the first has a huge and a tiny cluster, the second three of 10
    fine = np.repeat([0, 1, 2, 3, 4], [1000, 5, 10, 10, 10])
    tree = Tree((fine, np.array([0, 0, 1, 1, 1])), 2)
    drawn = draw(tree, 40, seed=3)
    assert np.bincount(fine[drawn]).tolist()[:2] == [15, 5]
    assert np.bincount(tree.top[drawn]).tolist() == [20, 20] and sorted(np.bincount(fine[drawn])[2:]) == [6, 7, 7]
    assert np.array_equal(drawn, draw(tree, 40, seed=3)) and not np.array_equal(drawn, draw(tree, 40, seed=4))
    allowed = fine != 0
    assert set(fine[draw(tree, 20, allowed=allowed)]) <= {1, 2, 3, 4}
    assert np.array_equal(draw(tree, 5000), np.arange(len(fine)))


def test_hierarchical_clusters_of_an_unbalanced_pool_bring_balance() -> None:
    rng = np.random.default_rng(0)
    kinds = np.repeat(np.arange(10), [1500, 700, 330, 160, 75, 35, 30, 25, 20, 15])
    centres = rng.standard_normal((10, 32))
    rows = Embeddings.of(centres[kinds] + 0.5 * rng.standard_normal((len(kinds), 32)))
    tree = build_tree(rows, (60, 12), resamplings=4)
    before, after = np.bincount(kinds), np.bincount(kinds[draw(tree, 200)], minlength=10)
    at_random = np.bincount(rng.permutation(kinds)[:200], minlength=10)
    assert after.sum() == 200 and after.min() >= 5
    assert effective(after) > 7 > 6 > effective(at_random) and effective(after) > effective(before)


def test_resampling_spreads_centroids_over_the_rare() -> None:
    rng = np.random.default_rng(0)
    kinds = np.repeat(np.arange(6), [3000, 60, 60, 60, 60, 60])
    rows = Embeddings.of(rng.standard_normal((6, 16))[kinds] + 0.6 * rng.standard_normal((len(kinds), 16)))

    def owned_by_the_frequent(resamplings: int) -> int:
        cluster = build_tree(rows, (40,), resamplings=resamplings).parents[0]
        return sum(np.bincount(kinds[cluster == c], minlength=6)[0] * 2 > (cluster == c).sum() for c in range(40))

    assert owned_by_the_frequent(10) < owned_by_the_frequent(0)


def test_levels_follow_the_number_of_images() -> None:
    assert default_levels(743_000_000)[:2] == (9_906_667, 495_333)
    assert default_levels(1_000_000) == (13_333, 667, 67, 13)
    assert default_levels(10_000) == (316, 16) and default_levels(1000) == (100, 10)
    assert default_levels(100) == (31,) and default_levels(2) == (1,)


def test_effective_number_of_clusters() -> None:
    assert effective(np.array([5, 5, 5, 5])) == pytest.approx(4)
    assert effective(np.array([7, 0, 0])) == pytest.approx(1)
    assert effective(np.array([1, 3])) == pytest.approx(math.exp(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75))))


def test_many_centroids_are_searched_nearly_as_well_as_few(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Embeddings.of(concepts(3000, num_concepts=100, dim=16))
    centroids = kmeans(rows, 100)
    near, which = assign(rows, centroids)
    monkeypatch.setattr("trainer.curation.kmeans.FLAT", 50)
    near_too, which_too = assign(rows, centroids)
    assert (which == which_too).mean() > 0.9 and near.mean() - near_too.mean() < 0.01


def test_whitening_is_taken_back() -> None:
    projection = torch.randn(40, 12, generator=torch.Generator().manual_seed(0))
    back = unstretch(projection)
    whole = torch.linalg.matrix_power((projection.T @ projection).double(), 3)
    fourth = torch.linalg.matrix_power(back.double(), 4)  # the fourth power of P^T P to the -3/4
    assert torch.allclose(fourth @ whole, torch.eye(12).double(), atol=1e-2)


# ---- files ----


def test_a_file_that_cannot_be_finished_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), step_file(tmp_path / "x") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with (
        pytest.raises(SeenitError, match=r"cannot write .*out: no space left on device; make room"),
        step_file(tmp_path / "out") as file,
    ):
        file.write(b"x" * 100_000)
