"""Patches that agree on one move: the arithmetic, the bytes it starts from, and what a score is worth."""

import threading

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from indexer.descriptor.features import CropFeatures
from indexer.descriptor.patch_codec import BITS, PatchTokens, pack_patches, read_codes, unpack_patches
from indexer.errors import SeenitError
from indexer.index.calibration import Calibration
from retrieval.calibrate import BACKGROUND, CONSISTENCY_OFFSET, CONSISTENCY_SLOPE, OFFSET, SLOPE
from retrieval.rerank import products
from retrieval.rerank.fuse import fuse_scores
from retrieval.rerank.geometry import ELSEWHERE, FLOOR, Pairs, distinctiveness_of, far_apart, find_inliers, mutual_pairs
from retrieval.rerank.patches import patches_at
from retrieval.rerank.products import Factors, cosines
from retrieval.rerank.rerank import CHUNK, Comparison, map_threads, to_evidence


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    rows = rng.standard_normal(shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def some_patches(rng: np.random.Generator, count: int, grid: tuple[int, int] = (12, 21), dim: int = 64) -> PatchTokens:
    cells = np.sort(rng.choice(grid[0] * grid[1], count, replace=False))
    return PatchTokens(unit(rng, count, dim), np.stack(np.divmod(cells, grid[1]), 1).astype(np.uint8), grid)


@pytest.mark.parametrize(("bits", "least"), [(1, 0.75), (2, 0.92), (8, 0.9999)])
def test_packed_tokens_come_back(bits: int, least: float) -> None:
    rng = np.random.default_rng(0)
    images = [some_patches(rng, 40), some_patches(rng, 7, (3, 5)), some_patches(rng, 1, (1, 1))]
    packed = [pack_patches(image, bits) for image in images]
    back = unpack_patches(packed)
    assert back.counts == (40, 7, 1) and back.grids == tuple(image.grid for image in images)
    np.testing.assert_array_equal(back.positions, np.concatenate([image.positions for image in images]))
    np.testing.assert_allclose(np.linalg.norm(back.tokens, axis=1), 1, atol=1e-5)
    ends = np.cumsum(back.counts)[:-1]
    for data, image, tokens in zip(packed, images, np.split(back.tokens, ends), strict=True):
        assert len(data) == 6 + -(-image.grid[0] * image.grid[1] // 8) + len(image.tokens) * 64 * bits // 8
        assert (tokens * image.tokens).sum(1).mean() > least
    numbers, step = read_codes(packed).numbers()
    assert numbers.dtype == np.int8 and step.shape == (48, 1)
    np.testing.assert_allclose((numbers * step * back.tokens).sum(1), 1, atol=1e-5)  # the same, in whole numbers


def test_damaged_patches_are_told() -> None:
    good = pack_patches(some_patches(np.random.default_rng(0), 5), 2)
    for bad in (b"", good[:-1], good + b"x", b"\x03" + good[1:], good[:1] + b"\x03" + good[2:], good[:40]):
        with pytest.raises(SeenitError, match="rebuild the index"):
            unpack_patches([bad])
    with pytest.raises(SeenitError, match="several kinds"):
        unpack_patches([good, pack_patches(some_patches(np.random.default_rng(0), 5), 1)])


def test_mutual_pairs_against_the_slow_loop() -> None:
    rng = np.random.default_rng(1)
    query, gallery = unit(rng, 9, 16), unit(rng, 3, 7, 16)
    real = [7, 4, 1]
    for b, count in enumerate(real):
        gallery[b, count:] = 0
    pairs = mutual_pairs(torch.from_numpy(query), torch.from_numpy(gallery))
    for b, count in enumerate(real):
        similarity = query @ gallery[b, :count].T  # (9, count)
        for m in range(7):
            if m < count and similarity[similarity[:, m].argmax()].argmax() == m and similarity[:, m].max() > 0:
                assert pairs.nearest[b, m] == similarity[:, m].argmax()
                assert pairs.cosine[b, m] == pytest.approx(similarity[:, m].max(), abs=1e-6)
            else:
                assert pairs.cosine[b, m] == 0


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 1024])
def test_the_nearest_is_found_among_any_number_of_patches(count: int) -> None:
    query = torch.from_numpy(unit(np.random.default_rng(count), count, 32))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    pairs = mutual_pairs(query, query[order][None])
    assert pairs.nearest[0].tolist() == order.tolist() and pairs.cosine.min() > 0.999
    nothing = mutual_pairs(query, -query[None]) if count == 1 else mutual_pairs(query, torch.zeros(2, 3, 32))
    assert not nothing.cosine.any()


def test_cosines_in_whole_numbers_are_those_in_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    query, gallery = torch.from_numpy(unit(rng, 35, 192)), torch.from_numpy(unit(rng, 3, 20, 192))
    gallery[:, :10] = torch.nn.functional.normalize(gallery[:, :10] * 0.2 + query[:10], dim=-1)
    gallery[2, 15:] = 0
    exact = gallery @ query.T
    for bytes_are_quick in (True, False):  # on every machine both
        monkeypatch.setattr(products, "multiplies_bytes", lambda told=bytes_are_quick: told)
        found = cosines(Factors.of(gallery), Factors.of(query))
        torch.testing.assert_close(cosines(Factors.of(gallery), Factors.of_query(query.numpy())), found)
        assert found.dtype == torch.float32 and (found - exact).abs().max() < 0.01
    assert (found - exact).abs().max() < 1e-6
    spiky = torch.zeros(1, 1, 192)
    spiky[..., 3] = 1  # far beyond what most entries are
    monkeypatch.setattr(products, "multiplies_bytes", lambda: True)
    assert (cosines(Factors.of(spiky), Factors.of(query)) - spiky @ query.T).abs().max() < 0.01


def test_a_product_of_bytes_that_is_not_there_or_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "best_dtype", lambda device: torch.bfloat16)
    wrong = torch.zeros(8, 16, dtype=torch.int32)

    def refused(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("not built with it")

    for stand_in in (refused, lambda left, right: wrong):
        products.multiplies_bytes.cache_clear()
        monkeypatch.setattr(torch, "_int_mm", stand_in)
        assert not products.multiplies_bytes()
    monkeypatch.undo()
    products.multiplies_bytes.cache_clear()


def assert_near(got: object, want: object, atol: float) -> None:
    np.testing.assert_allclose(np.asarray(got, np.float64), np.asarray(want, np.float64), atol=atol)


def moved_pairs(
    rng: np.random.Generator, right: int, wrong: int
) -> tuple[Pairs, torch.Tensor, torch.Tensor, np.ndarray]:
    """Points of a 16 x 16 grid, `right` of them carried by one similarity transform, the others anywhere."""
    angle, zoom = rng.uniform(-np.pi, np.pi), rng.uniform(0.5, 1.5)
    linear = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    start = patches_at((16, 16)).numpy()[rng.choice(256, right + wrong, replace=False)]
    end = (start - 8) @ linear.T + 8 + rng.uniform(-0.3, 0.3, start.shape)
    end[right:] = rng.uniform(0, 16, (wrong, 2))
    cosine = torch.from_numpy(rng.uniform(0.4, 0.9, (1, right + wrong)).astype(np.float32))
    pairs = Pairs(cosine, torch.arange(right + wrong)[None])
    return pairs, torch.from_numpy(start), torch.from_numpy(end.astype(np.float32))[None], linear


def test_a_transform_is_found_among_chance_pairs() -> None:
    for seed in range(10):
        pairs, start, end, linear = moved_pairs(np.random.default_rng(seed), right=12, wrong=10)
        inliers = find_inliers(pairs.cosine, start[pairs.nearest], end)
        assert inliers.is_inlier[0, :12].sum() >= 11 and inliers.is_inlier[0, 12:].sum() <= 2
        np.testing.assert_allclose(inliers.transform[0, :, :2].numpy(), linear, atol=0.15)
        expected = (pairs.cosine[0] - FLOOR)[inliers.is_inlier[0]].sum()
        assert inliers.weight[0] == pytest.approx(float(expected), rel=1e-5)


def test_chance_pairs_agree_on_little_and_padding_on_nothing() -> None:
    pairs, start, end, _ = moved_pairs(np.random.default_rng(3), right=0, wrong=22)
    assert find_inliers(pairs.cosine, start[pairs.nearest], end).is_inlier.sum() <= 8
    empty = find_inliers(torch.zeros(2, 5), torch.rand(2, 5, 2), torch.rand(2, 5, 2))
    assert not empty.is_inlier.any() and not empty.weight.any() and torch.isfinite(empty.transform).all()
    few = find_inliers(torch.full((1, 1), 0.9), torch.rand(1, 1, 2), torch.rand(1, 1, 2))
    assert few.weight.tolist() == [0]  # one pair fixes no transform


def test_distinctiveness_is_what_stands_out_from_elsewhere() -> None:
    """Against a slow twin; and a lawn, all patches alike, has support but nothing distinct."""
    rng = np.random.default_rng(3)
    query, gallery = (torch.from_numpy(unit(rng, *shape, 16)) for shape in ((30,), (3, 9)))
    gallery[:, :6] = query[None, [0, 7, 14, 15, 22, 29]]
    lawn = torch.nn.functional.normalize(torch.ones(16) + 0.05 * torch.randn(30, 16), dim=1)
    at = patches_at((5, 6))
    gallery_at = torch.cat([at[[0, 7, 14, 15, 22, 29]], torch.rand(3, 2)]).expand(3, -1, -1)
    pairs = mutual_pairs(query, gallery)
    inliers = find_inliers(pairs.cosine, at[pairs.nearest], gallery_at)
    found = distinctiveness_of(inliers.is_inlier, pairs, gallery @ query.T, far_apart(at))
    for b in range(3):
        expected = 0.0
        for m in inliers.is_inlier[b].nonzero()[:, 0].tolist():
            n = int(pairs.nearest[b, m])
            others = [float(gallery[b, m] @ query[k]) for k in range(30) if torch.dist(at[k], at[n]) > ELSEWHERE]
            expected += max(float(pairs.cosine[b, m]) - max(0.0, *others), 0.0)
        assert found[b] == pytest.approx(expected, abs=1e-5) and found[b] > 2
    of_lawn = mutual_pairs(lawn, lawn[None])
    alike = find_inliers(of_lawn.cosine, at[of_lawn.nearest], at[None])
    assert alike.weight[0] > 10
    assert distinctiveness_of(alike.is_inlier, of_lawn, (lawn @ lawn.T)[None], far_apart(at))[0] < 2


def test_many_candidates_are_compared_as_each_by_itself() -> None:
    """Two views of different grids, more candidates than are compared at once, some with fewer patches."""
    rng = np.random.default_rng(7)
    views = [CropFeatures(np.zeros(4, np.float32), unit(rng, rows * 8, 64), (rows, 8)) for rows in (8, 5)]
    packed = []
    for n in range(CHUNK + 3):
        count = int(rng.integers(9, 30))
        cells = np.sort(rng.choice(40, count, replace=False))
        tokens = unit(rng, count, 64)
        tokens[: count - 4] = views[n % 2].tokens[cells[: count - 4]]
        packed.append(
            pack_patches(PatchTokens(tokens, np.stack(np.divmod(cells, 8), 1).astype(np.uint8), (5 + n % 2, 8)), 8)
        )
    together = Comparison(views, packed)
    assert (together.inlier_weight > 1).all()
    for n, data in enumerate(packed):
        alone = Comparison(views, [data])
        assert together.inlier_weight[n] == pytest.approx(alone.inlier_weight[0], abs=1e-5)
        assert together.distinctiveness[n] == pytest.approx(alone.distinctiveness[0], abs=1e-5)
        np.testing.assert_allclose(together.match(n).pairs, alone.match(0).pairs, atol=1e-6)


def test_threads_of_a_comparison_leave_the_process_as_it_was() -> None:
    """`torch.set_num_threads` holds for every thread that begins later; within a comparison it is one."""

    def in_new_thread() -> int:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return found[0]

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert list(map_threads(lambda x, y: (x + y, torch.get_num_threads()), range(6), range(6))) == [
            (2 * n, 1) for n in range(6)
        ]
        nested = map_threads(lambda x, y: list(map_threads(lambda a, b: a * b, [x, y], [y, y])), [1, 2], [3, 4])
        assert list(nested) == [[3, 9], [8, 16]]
        assert (torch.get_num_threads(), in_new_thread()) == (3, 3)
    finally:
        torch.set_num_threads(before)


def test_a_thing_in_another_place_is_boxed_there() -> None:
    """The query's patches lie in the lower right quarter of a larger image."""
    rng = np.random.default_rng(5)
    thing = unit(rng, 8, 8, 64)
    scene = unit(rng, 16, 16, 64)
    scene[8:, 8:] = thing
    cells = np.stack(np.divmod(np.arange(256), 16), 1).astype(np.uint8)
    packed = [
        pack_patches(PatchTokens(scene.reshape(256, 64), cells, (16, 16)), 8),
        pack_patches(PatchTokens(unit(rng, 256, 64), cells, (16, 16)), 8),
    ]
    comparison = Comparison([CropFeatures(np.zeros(4, np.float32), thing.reshape(64, 64), (8, 8))], packed)
    assert comparison.inlier_weight[0] > 10 * comparison.inlier_weight[1]
    evidence = to_evidence(comparison.match(0), 0.9)
    assert evidence.is_match and evidence.num_inliers == 64 and evidence.verdict == "same"
    assert_near(evidence.box, (0.5, 0.5, 0.5, 0.5), atol=1e-6)
    assert_near(evidence.query_box, (0, 0, 1, 1), atol=1e-6)
    assert_near(evidence.transform, [[0.5, 0, 0.5], [0, 0.5, 0.5]], atol=1e-3)
    middle = CropFeatures(
        np.zeros(4, np.float32),
        thing[2:6, 2:6].reshape(16, 64),
        (4, 4),
        frame=np.array([[0.5, 0, 0.25], [0, 0.5, 0.25]], np.float32),
    )
    of_middle = to_evidence(Comparison([middle], packed).match(0), None)
    assert_near(of_middle.transform, [[0.5, 0, 0.5], [0, 0.5, 0.5]], atol=1e-3)
    assert_near(of_middle.query_box, (0.25, 0.25, 0.5, 0.5), atol=1e-6)
    nothing = to_evidence(Comparison([], packed).match(0), None)
    assert nothing.box is None and nothing.num_inliers == 0 and nothing.verdict is None


def logo(rng: np.random.Generator, place: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Patches (N, D) of a figure on plain ground, whose patches are alike but for knowing a little of their place."""
    ground = np.zeros(place.shape[1], np.float32)
    ground[0] = 1
    tokens = ground + 0.4 * place + 0.05 * rng.standard_normal(place.shape)
    tokens[cells] = unit(rng, len(cells), place.shape[1])
    return np.asarray(tokens / np.linalg.norm(tokens, axis=1, keepdims=True), np.float32)


def test_figures_on_the_same_plain_ground_are_no_match() -> None:
    """The grounds of two images fit onto each other well, and prove nothing."""
    rng = np.random.default_rng(5)
    grid, dim = (12, 12), 64
    positions = np.stack(np.divmod(np.arange(144), 12), 1).astype(np.uint8)
    place = unit(rng, 144, dim)
    inner = np.flatnonzero(np.abs(positions.astype(int) - 5.5).max(1) < 3)  # 6 x 6

    def packed(tokens: np.ndarray) -> bytes:
        noisy = tokens + 0.05 * rng.standard_normal(tokens.shape).astype(np.float32)
        return pack_patches(PatchTokens(noisy / np.linalg.norm(noisy, axis=1, keepdims=True), positions, grid), 8)

    def compared(tokens: np.ndarray, others: list[np.ndarray]) -> Comparison:
        return Comparison([CropFeatures(np.zeros(4, np.float32), tokens, grid)], [packed(one) for one in others])

    calibration = Calibration(SLOPE, OFFSET, CONSISTENCY_SLOPE, CONSISTENCY_OFFSET, "w", 8, BACKGROUND, 0.0, 0.0)
    logos = [logo(rng, place, inner) for _ in range(3)]
    for n, one in enumerate(logos):
        found = compared(one, logos)
        assert (found.inlier_weight > 10).all()  # by which all three would be the same
        scores = fuse_scores(np.full(3, 0.95), found.inlier_weight, found.distinctiveness)
        verdicts = [
            to_evidence(found.match(k), calibration.probability(scores[k], found.consistency(k))).verdict
            for k in range(3)
        ]
        assert [verdict == "same" for verdict in verdicts] == [k == n for k in range(3)], (
            verdicts,
            [found.consistency(k) for k in range(3)],
        )


def test_bits_are_those_of_the_configs() -> None:
    from indexer.descriptor.config import DESCRIPTOR_CONFIGS

    assert {config.token_bits for config in DESCRIPTOR_CONFIGS.values()} == set(BITS)
    for name, most in (("compact", 1024), ("balanced", 4096)):
        config = DESCRIPTOR_CONFIGS[name]
        grid = (16, 16)
        cells = np.stack(np.divmod(np.arange(256), 16), 1)[: config.num_tokens].astype(np.uint8)
        tokens = normalize(torch.randn(config.num_tokens, config.token_dim), dim=1).numpy()
        assert len(pack_patches(PatchTokens(tokens, cells, grid), config.token_bits)) <= most
