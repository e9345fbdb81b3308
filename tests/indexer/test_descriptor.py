"""The descriptor on random tokens: shapes, small corpora, shrinkage, whitening, and files that lie."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from indexer.backbone.vit import TokenFeatures
from indexer.descriptor.config import DescriptorConfig
from indexer.descriptor.covariance import main_directions, main_directions_of_rows
from indexer.descriptor.pooling import PooledFeatures, pool, select_patches
from indexer.descriptor.whitening import Whitening, apply_whitening, load_whitening, save_whitening
from indexer.descriptor.whitening_fit import fit_whitening, prior_from
from indexer.errors import SeenitError

DEPTH, DIM = 12, 24
RECIPE = DescriptorConfig(num_tokens=8, token_dim=16, global_dim=40)


def features(count: int, seed: int = 0, grid: tuple[int, int] = (4, 5), dim: int = DIM) -> list[TokenFeatures]:
    """Random tokens with strongly unequal variances and a common mean, as real ones have."""
    chance = torch.Generator().manual_seed(seed)
    scale = torch.logspace(1, -1, dim)

    def tokens(*shape: int) -> Tensor:
        return torch.randn(*shape, dim, generator=chance) * scale + 5 * scale

    n = grid[0] * grid[1]
    layers = RECIPE.layers_of(DEPTH)
    return [TokenFeatures(tokens(count), tokens(count, 0), tokens(count, n), grid) for _ in layers]


def pooled(count: int, seed: int = 0, **shape: object) -> PooledFeatures:
    return pool(features(count, seed, **shape), RECIPE, DEPTH)  # type: ignore[arg-type]


def assert_unit_rows(rows: np.ndarray) -> None:
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=-1), 1, atol=1e-5)


def test_layers_scale_with_depth() -> None:
    assert DescriptorConfig().layers_of(12) == [7, 8, 9, 10, 11]
    assert DescriptorConfig().layers_of(24) == [15, 17, 19, 21, 23]
    assert DescriptorConfig().layers_of(40) == [26, 29, 32, 36, 39]
    assert DescriptorConfig().layers_of(1) == [0]


def test_the_version_tells_configs_apart() -> None:
    assert DescriptorConfig().version == DescriptorConfig().version
    assert DescriptorConfig().version != DescriptorConfig(shrinkage=0.2).version


def test_pool_holds_what_it_names() -> None:
    given = features(3)
    by_layer = dict(zip(RECIPE.layers_of(DEPTH), given, strict=True))
    made = pool(given, RECIPE, DEPTH)
    assert made.parts.shape == (3, 4, DIM) and made.parts.dtype == torch.float32
    assert made.tokens.shape == (3, 8, DIM) and made.tokens.dtype == torch.float16
    assert made.positions.shape == (3, 8, 2) and made.positions.dtype == torch.uint8

    expected = [by_layer[11].cls, by_layer[10].cls, by_layer[9].patches.mean(1), by_layer[8].patches.mean(1)]
    for number, part in enumerate(expected):
        torch.testing.assert_close(made.parts[:, number], torch.nn.functional.normalize(part, dim=-1))
    rows, cols = made.positions[1].long().unbind(-1)
    torch.testing.assert_close(made.tokens[1].float(), by_layer[7].patches[1, rows * 5 + cols], rtol=1e-3, atol=1e-2)


def test_pooling_an_image_does_not_depend_on_its_batch() -> None:
    given = features(4)
    alone = [TokenFeatures(f.cls[2:3], f.registers[2:3], f.patches[2:3], f.grid) for f in given]
    batch, single = pool(given, RECIPE, DEPTH), pool(alone, RECIPE, DEPTH)
    torch.testing.assert_close(batch.parts[2:3], single.parts)
    assert torch.equal(batch.positions[2:3], single.positions)


def slow_selection(patches: Tensor, count: int) -> list[int]:
    """One image (N, D): the patch least like the mean, then always the one farthest from those chosen."""
    unit = torch.nn.functional.normalize(patches, dim=-1)
    chosen = [int((unit @ unit.mean(0)).argmin())]
    while len(chosen) < min(count, len(patches)):
        left = [n for n in range(len(patches)) if n not in chosen]
        chosen.append(max(left, key=lambda n: min(1 - float(unit[n] @ unit[s]) for s in chosen)))
    return sorted(chosen)


def test_selection_equals_its_slow_twin() -> None:
    patches = torch.randn(3, 20, 6, generator=torch.Generator().manual_seed(1))
    for count in (1, 7, 20, 99):
        assert select_patches(patches, count).tolist() == [slow_selection(one, count) for one in patches]


def test_selection_of_equal_patches_never_takes_one_twice() -> None:
    kept = select_patches(torch.ones(2, 12, 4), 5)
    assert all(len(set(row)) == 5 for row in kept.tolist())


@pytest.mark.parametrize("count", [1, 2, 10, 60])
@pytest.mark.parametrize("with_prior", [False, True])
def test_every_size_of_corpus_has_a_descriptor(count: int, with_prior: bool) -> None:
    prior = prior_from([pooled(80, seed=9)], RECIPE) if with_prior else None
    corpus = pooled(count)
    made = fit_whitening([corpus], RECIPE, prior)
    vectors, tokens = apply_whitening(corpus, made)
    assert vectors.shape == (count, made.global_dim) == (count, 40)
    assert tokens.shape == (count, 8, made.token_dim) == (count, 8, 16)
    assert_unit_rows(vectors)
    assert_unit_rows(tokens)


def test_a_single_image_is_told_from_others() -> None:
    corpus, others = pooled(1), pooled(20, seed=3)
    made = fit_whitening([corpus], RECIPE)
    mine, rest = apply_whitening(corpus, made)[0], apply_whitening(others, made)[0]
    assert float((rest @ mine.T).max()) < 0.9999


def test_equal_images_and_broken_features_give_finite_vectors() -> None:
    same = pooled(1)
    equal = PooledFeatures(
        same.parts.expand(6, -1, -1), same.tokens.expand(6, -1, -1), same.positions.expand(6, -1, -1)
    )
    given = features(2)
    given[0].cls[0] = torch.nan
    given[1].patches[1] = 0
    for corpus in (equal, pool(given, RECIPE, DEPTH)):
        for rows in apply_whitening(corpus, fit_whitening([corpus], RECIPE)):
            assert_unit_rows(rows)


def test_images_of_different_grids_are_fitted_together_and_tiny_ones_keep_fewer_tokens() -> None:
    corpus = [pooled(5), pooled(3, grid=(1, 3))]
    made = fit_whitening(corpus, RECIPE)
    assert made.num_images == 8
    assert apply_whitening(corpus[1], made)[1].shape == (3, 3, 16)


def test_a_large_corpus_is_centred_and_every_part_is_white() -> None:
    config = DescriptorConfig(num_tokens=8, shrinkage=0.0, global_dim=4 * DIM)
    corpus = pooled(1000)
    made = fit_whitening([corpus], config)
    rows = (corpus.parts.flatten(1) - made.mean) @ made.projection  # (n, 4 D), before the rows are normalised
    assert float(rows.mean(0).abs().max()) < 0.2
    np.testing.assert_allclose(float(rows.square().sum(1).mean()), 4 * DIM, rtol=0.05)


def test_whitening_finds_an_image_that_raw_cosine_loses() -> None:
    """Noise in one loud direction drowns the quiet ones that tell images apart, unless all weigh alike."""
    corpus = pooled(400)
    noise = torch.zeros_like(corpus.parts)
    noise[..., 0] = 0.3 * torch.randn(400, 4, generator=torch.Generator().manual_seed(2))  # in the loudest channel
    queries = PooledFeatures(corpus.parts + noise, corpus.tokens, corpus.positions)
    made = fit_whitening([corpus], DescriptorConfig(num_tokens=8))
    right = torch.arange(400).numpy()
    whitened = (apply_whitening(queries, made)[0] @ apply_whitening(corpus, made)[0].T).argmax(1)
    raw = (queries.parts.flatten(1) @ corpus.parts.flatten(1).T).argmax(1).numpy()
    assert (whitened == right).mean() > (raw == right).mean() + 0.2


def test_the_prior_rules_a_small_corpus_and_not_a_large_one() -> None:
    prior = prior_from([pooled(500, seed=7)], RECIPE)
    elsewhere = pooled(1).parts.mean((0, 1))

    def distance_to_prior(count: int) -> float:
        shifted = pooled(count)
        shifted = PooledFeatures(shifted.parts + elsewhere, shifted.tokens, shifted.positions)
        return float((fit_whitening([shifted], RECIPE, prior).mean - prior["mean"].float().flatten()).norm())

    near, far = distance_to_prior(1), distance_to_prior(2000)
    assert near < 0.02 * far


def test_fits_are_repeatable_and_told_apart() -> None:
    corpus = pooled(30)
    assert fit_whitening([corpus], RECIPE).id == fit_whitening([corpus], RECIPE).id
    assert fit_whitening([corpus], RECIPE).id != fit_whitening([pooled(30, seed=1)], RECIPE).id
    assert len(fit_whitening([corpus], RECIPE).id) == 32


def test_a_direction_has_the_same_sign_however_it_is_found() -> None:
    """Else an index that is made by other batches, as on a cluster, has vectors of other signs."""
    rows = torch.randn(200, 12, generator=torch.Generator().manual_seed(0)).double()
    directions = main_directions(rows.T @ rows, 8)
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    assert directions.shape == (12, 8) and (largest > 0).all()
    assert torch.allclose(directions.T @ directions, torch.eye(8).double(), atol=1e-9)


@pytest.mark.parametrize("num_rows", [1, 5, 8, 11, 12, 40])
def test_directions_of_few_rows_are_those_of_their_covariance(num_rows: int) -> None:
    """With fewer rows than directions the others are at right angles to all rows."""
    rows = torch.randn(num_rows, 12, generator=torch.Generator().manual_seed(1)).double()
    found, plain = main_directions_of_rows(rows, 8), main_directions(rows.T @ rows, 8)
    settled = min(num_rows, 8)
    assert found.shape == (12, 8)
    assert torch.allclose(found[:, :settled], plain[:, :settled], atol=1e-9)
    assert torch.allclose(found.T @ found, torch.eye(8).double(), atol=1e-9)
    assert settled == 8 or (rows @ found[:, settled:]).abs().max() < 1e-9
    assert (found.gather(0, found.abs().argmax(0, keepdim=True)) > 0).all()
    assert torch.equal(found, main_directions_of_rows(rows, 8))


def test_rows_that_repeat_leave_directions_that_are_at_right_angles() -> None:
    rows = torch.ones(6, 12).double()
    found = main_directions_of_rows(rows, 8)
    assert torch.allclose(found[:, 0], torch.full((12,), 12**-0.5).double(), atol=1e-9)
    assert torch.allclose(found.T @ found, torch.eye(8).double(), atol=1e-9)
    nothing = main_directions_of_rows(0 * rows, 8)
    assert torch.allclose(nothing.T @ nothing, torch.eye(8).double(), atol=1e-9)


def test_a_prior_of_another_config_or_backbone_is_refused() -> None:
    prior = prior_from([pooled(30)], RECIPE)
    with pytest.raises(SeenitError, match="another descriptor config"):
        fit_whitening([pooled(5)], DescriptorConfig(num_tokens=8, cls_depths=(1.0, 0.5)), prior)
    with pytest.raises(SeenitError, match="another descriptor config"):
        fit_whitening([pooled(5, dim=12)], RECIPE, prior)
    with pytest.raises(SeenitError, match="lacks factors"):
        fit_whitening([pooled(5)], RECIPE, {name: value for name, value in prior.items() if name != "factors"})


@pytest.mark.slow
def test_the_prior_of_a_small_vit_is_under_three_megabytes() -> None:
    wide = [TokenFeatures(f.cls, f.registers, f.patches, f.grid) for f in features(8, dim=384)]
    prior = prior_from([pool(wide, DescriptorConfig(), DEPTH)], DescriptorConfig())
    assert sum(tensor.numel() * tensor.element_size() for tensor in prior.values()) <= 3_000_000


@pytest.fixture(scope="module")
def saved() -> tuple[Whitening, bytes]:
    made = fit_whitening([pooled(30)], RECIPE)
    return made, save_whitening(made)


def test_a_fit_survives_saving(saved: tuple[Whitening, bytes]) -> None:
    made, data = saved
    loaded = load_whitening(data)
    assert (loaded.id, loaded.config, loaded.num_images) == (made.id, RECIPE, 30)
    for ours, theirs in zip(apply_whitening(pooled(3), made), apply_whitening(pooled(3), loaded), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def damaged(data: bytes) -> dict[str, bytes]:
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]

    def with_header(**changed: object) -> bytes:
        text = json.dumps({**header, **changed}).encode()
        return len(text).to_bytes(8, "little") + text + body

    meta = header["__metadata__"]
    nan = np.array([np.nan], "<f4").tobytes()
    return {
        "nothing": b"",
        "short": data[: len(data) // 2],
        "cut by one": data[:-1],
        "noise": b"\x93" * 400,
        "huge header": (1 << 60).to_bytes(8, "little") + data[8:],
        "no metadata": with_header(__metadata__={}),
        "a list": with_header(__metadata__=[]),
        "other format": with_header(__metadata__={**meta, "format": "other"}),
        "recipe not JSON": with_header(__metadata__={**meta, "recipe": "{"}),
        "recipe a list": with_header(__metadata__={**meta, "recipe": "[1]"}),
        "unknown field": with_header(__metadata__={**meta, "recipe": '{"surprise": 1}'}),
        "wrong types": with_header(__metadata__={**meta, "recipe": '{"cls_depths": 3}'}),
        "deep": with_header(__metadata__={**meta, "recipe": "[" * 100_000}),
        "bad shape": with_header(mean={**header["mean"], "shape": [2, header["mean"]["shape"][0] // 2]}),
        "not finite": data[:-4] + nan,
    }


def test_anything_but_a_fit_is_refused_in_one_line(saved: tuple[Whitening, bytes]) -> None:
    for name, data in damaged(saved[1]).items():
        with pytest.raises(SeenitError, match="descriptor statistics are damaged") as error:
            load_whitening(data)
        assert "\n" not in str(error.value), name
