"""Statistics of few images: shrinkage, views of one image, and which images views are rendered of."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import draw_photo
from torch import Tensor

from indexer import Backbone, sync_folder
from indexer.backbone.vit import TokenFeatures
from indexer.descriptor import config as config_module
from indexer.descriptor.config import DESCRIPTOR_CONFIGS, NUM_VIEWS, DescriptorConfig
from indexer.descriptor.embedder import Embedder
from indexer.descriptor.pooling import PooledFeatures, pool
from indexer.descriptor.view_statistics import shrink_covariance, within_views
from indexer.descriptor.viewed_images import ViewedImages
from indexer.descriptor.whitening import apply_whitening
from indexer.descriptor.whitening_fit import fit_whitening, prior_from
from indexer.errors import SeenitError
from indexer.index.index import Index
from indexer.index.manifest import MANIFEST_BLOB
from indexer.sync.embedding import OUTGROWN
from indexer.sync.options import SyncOptions

DEPTH, DIM = 12, 24
CONFIG = DescriptorConfig(num_tokens=8, token_dim=16, global_dim=40, num_views=NUM_VIEWS)


def images(count: int, seed: int = 0, like: Tensor | None = None, noise: float = 0.0) -> PooledFeatures:
    """Random features; `like` (count, D) is what all layers of an image show, with noise in the first channel."""
    chance = torch.Generator().manual_seed(seed)
    shown = torch.randn(count, DIM, generator=chance) if like is None else like.clone()
    loud = noise * torch.randn(count, generator=chance)
    shown[:, 0] += loud

    def layer() -> TokenFeatures:
        tokens = torch.randn(count, 20, DIM, generator=chance)
        return TokenFeatures(shown, torch.zeros(count, 0, DIM), tokens * 0.1 + shown[:, None], (4, 5))

    return pool([layer() for _ in CONFIG.layers_of(DEPTH)], CONFIG, DEPTH)


def test_shrinkage_is_the_formula() -> None:
    rows = np.random.default_rng(0).standard_normal((7, 5)) * (3, 1, 1, 0.5, 0.1)
    covariance = np.cov(rows.T, bias=True)
    n, p = 7, 5
    trace, trace_of_square = np.trace(covariance), np.trace(covariance @ covariance)
    rho = ((1 - 2 / p) * trace_of_square + trace**2) / ((n + 1 - 2 / p) * (trace_of_square - trace**2 / p))
    assert 0.05 < rho < 1
    wanted = (1 - rho) * covariance + rho * trace / p * np.eye(p)
    np.testing.assert_allclose(shrink_covariance(torch.from_numpy(covariance), n).numpy(), wanted)


@pytest.mark.parametrize("factor", [1.0, 1e-9])
def test_few_rows_become_a_multiple_of_the_identity_and_many_stay(factor: float) -> None:
    covariance = factor * torch.diag(torch.tensor([4.0, 2.0, 1.0, 1.0]).double())
    alone = shrink_covariance(covariance, 1)
    np.testing.assert_allclose(alone.numpy(), 2 * factor * np.eye(4))
    np.testing.assert_allclose(shrink_covariance(covariance, 100_000).numpy(), covariance.numpy(), atol=1e-3 * factor)
    same = factor * torch.eye(4).double()
    np.testing.assert_allclose(shrink_covariance(same, 50).numpy(), same.numpy())


def test_views_differ_by_the_mean_over_all_of_them() -> None:
    views = [torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(n)) for n in range(5)]
    wanted = np.zeros((2, 3, 3))
    for one in views:
        for part in range(2):
            for row in one[:, part].double().numpy() - one[:, part].double().numpy().mean(0):
                wanted[part] += np.outer(row, row) / 20
    np.testing.assert_allclose(within_views(views).numpy(), wanted, atol=1e-12)


def test_what_differs_between_views_is_played_down() -> None:
    """Of few images nothing else tells that the first channel is noise."""
    shown = 0.3 * torch.randn(40, DIM, generator=torch.Generator().manual_seed(5))
    shown[:, 1] += 3  # what all images have in common
    corpus, queries = images(40, like=shown), images(40, seed=1, like=shown, noise=3.0)
    views = [images(6, seed=10 + n, like=shown[n].expand(6, -1), noise=3.0) for n in range(12)]
    right = np.arange(40)
    found = {
        name: (apply_whitening(queries, whitening)[0] @ apply_whitening(corpus, whitening)[0].T).argmax(1) == right
        for name, whitening in (
            ("without", fit_whitening([corpus], CONFIG)),
            ("with", fit_whitening([corpus], CONFIG, views=views)),
        )
    }
    assert found["with"].mean() > found["without"].mean() + 0.3


def test_beside_a_prior_views_change_nothing() -> None:
    corpus, prior = images(5), prior_from([images(40, seed=3)], CONFIG)
    assert fit_whitening([corpus], CONFIG, prior, [images(4, seed=8)]).id == fit_whitening([corpus], CONFIG, prior).id


@pytest.mark.parametrize("same", [False, True])
def test_one_image_whose_views_are_all_the_same_has_a_descriptor(same: bool) -> None:
    one = images(1)
    views = PooledFeatures(*(rows.expand(4, -1, -1) for rows in (one.parts, one.tokens, one.positions)))
    made = fit_whitening([one], CONFIG, views=[views] if same else [images(4)])
    for rows in apply_whitening(one, made):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=-1), 1, atol=1e-5)


@pytest.fixture
def embedder(tiny_backbone: Path) -> Embedder:
    return Embedder(Backbone.load(tiny_backbone), 56, CONFIG)


def sample(embedder: Embedder, count: int) -> tuple[list[str], list[np.ndarray], PooledFeatures]:
    rng = np.random.default_rng(0)
    ids = ["".join(rng.choice(list("0123456789abcdef"), 32)) for _ in range(count)]
    pixels = [rng.integers(0, 255, (56, 56, 3), np.uint8) for _ in range(count)]
    return ids, pixels, embedder.pooled(pixels)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "viewed", "each"), [(1, 1, 10), (30, 30, 10), (60, 60, 5), (140, 100, 3)])
def test_an_image_has_more_views_the_fewer_there_are(embedder: Embedder, count: int, viewed: int, each: int) -> None:
    one = ViewedImages(embedder)
    one.add(*sample(embedder, count))
    views = one.render()
    assert [len(of_image.parts) for of_image in views] == [1 + each] * viewed
    distance = (views[0].parts[1:] - views[0].parts[:1]).norm(dim=-1)
    assert (distance > 0).all(), "views are no copies"


@pytest.mark.slow
def test_the_views_do_not_depend_on_the_order_of_the_files(embedder: Embedder) -> None:
    ids, pixels, pooled = sample(embedder, 120)
    forwards, backwards = ViewedImages(embedder), ViewedImages(embedder)
    forwards.add(ids, pixels, pooled)
    for n in reversed(range(120)):
        backwards.add([ids[n]], [pixels[n]], pooled.row(n))
    for one, other in zip(forwards.render(), backwards.render(), strict=True):
        assert torch.equal(one.parts, other.parts) and torch.equal(one.tokens, other.tokens)


def test_nothing_is_rendered_beside_a_prior_or_where_no_views_are_wanted(embedder: Embedder) -> None:
    with_prior = Embedder(replace(embedder.backbone, prior={}), 56, CONFIG)
    without = Embedder(embedder.backbone, 56, replace(CONFIG, num_views=0))
    for one in map(ViewedImages, (with_prior, without)):
        one.add(*sample(embedder, 4))
        assert one.render() == []


@pytest.mark.slow
def test_an_index_of_the_formula_of_before_stays_usable_and_keeps_it(
    tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        draw_photo(tmp_path / f"{n}.png", n)
    before = {
        name: replace(config, num_views=0, part_bits=0, colour_bits=0, dark_below=0)
        for name, config in DESCRIPTOR_CONFIGS.items()
    }
    with monkeypatch.context() as patched:
        patched.setattr(config_module, "DESCRIPTOR_CONFIGS", before)
        sync_folder(tmp_path, options=SyncOptions(resolution=56, workers=1), backbone=str(tiny_backbone))
    index = tmp_path / ".seenit"
    with Index.open(index, write=True) as opened:
        values = cast(dict[str, Any], json.loads(opened.store.read_blob(MANIFEST_BLOB) or b""))
        for name in ("num_views", "part_bits", "colour_bits", "dark_below"):
            assert values["descriptor"].pop(name) == 0  # as a version wrote it that did not know the setting
        opened.store.write_blob(MANIFEST_BLOB, json.dumps(values).encode())
    for n in range(3, 3 * OUTGROWN):
        draw_photo(tmp_path / f"{n}.png", n)
    summary = sync_folder(tmp_path, options=SyncOptions(tokens="balanced"))
    assert summary.refitted and summary.images == 3 * OUTGROWN
    with Index.open(index) as opened:
        assert opened.whitening.config == DescriptorConfig()
    with pytest.raises(SeenitError, match="not made with --tokens compact"):
        sync_folder(tmp_path, options=SyncOptions(tokens="compact"))


def test_a_new_index_says_that_it_was_fitted_on_views(tmp_path: Path, tiny_backbone: Path) -> None:
    draw_photo(tmp_path / "one.png", 1)
    sync_folder(tmp_path, options=SyncOptions(resolution=56, workers=1), backbone=str(tiny_backbone))
    with Index.open(tmp_path / ".seenit") as opened:
        assert opened.manifest.descriptor["num_views"] == DESCRIPTOR_CONFIGS["balanced"].num_views == NUM_VIEWS
        assert opened.whitening.config.num_views == NUM_VIEWS
