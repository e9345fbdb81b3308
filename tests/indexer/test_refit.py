"""An index that grows gets new statistics from what it stores: no image is embedded again."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_photo
from qdrant_peer import QdrantPeer

from indexer import sync_folder
from indexer.backbone.backbone import Backbone
from indexer.descriptor.config import DescriptorConfig
from indexer.descriptor.embedder import Embedder
from indexer.descriptor.patch_codec import unpack_parts
from indexer.descriptor.pooling import PooledFeatures
from indexer.descriptor.whitening import Whitening, apply_whitening, vectors_of
from indexer.descriptor.whitening_fit import fit_whitening, prior_from, refit_whitening
from indexer.index.index import Index
from indexer.index.tags import change_tags
from indexer.store.protocol import Record
from indexer.sync import refit
from indexer.sync.embedding import OUTGROWN_STORED
from indexer.sync.options import SyncOptions
from indexer.sync.refit import refit_from_parts

CONFIG = DescriptorConfig(cls_depths=(1.0,), mean_depths=(0.5,), global_dim=16, token_dim=8, part_bits=8)
FEW = 4


def pooled(count: int, seed: int) -> PooledFeatures:
    chance = torch.Generator().manual_seed(seed)
    parts = torch.randn(count, 2, 24, generator=chance) * torch.linspace(0.2, 1.5, 24)
    tokens = torch.randn(count, 4, 24, generator=chance).half()
    positions = torch.zeros(count, 4, 2).byte()
    return PooledFeatures(torch.nn.functional.normalize(parts, dim=-1), tokens, positions)


@pytest.mark.parametrize("with_prior", [False, True])
def test_a_refit_gives_what_a_fit_gives_and_keeps_the_tokens(with_prior: bool) -> None:
    few, all_images = pooled(10, 0), pooled(200, 1)
    views = [pooled(6, 10 + n) for n in range(8)]
    prior = None
    if with_prior:
        prior = prior_from([pooled(80, 3)], CONFIG)
        prior["within"] = torch.eye(24).repeat(2, 1, 1) * torch.linspace(0.1, 2, 24)
    first, wanted = (fit_whitening([sample], CONFIG, prior, views) for sample in (few, all_images))
    made = refit_whitening(all_images.parts, first, prior)
    assert made.num_images == 200 and made.id not in (first.id, wanted.id)
    vectors = vectors_of(all_images.parts, made)
    np.testing.assert_allclose(vectors @ vectors.T, _gram(wanted, all_images), atol=1e-4)
    assert np.abs(_gram(first, all_images) - _gram(wanted, all_images)).max() > 0.05, "the fits differ"
    assert made.kind_projection is not None and wanted.kind_projection is not None
    np.testing.assert_allclose(made.kind_projection, wanted.kind_projection, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(apply_whitening(all_images, made)[1], apply_whitening(all_images, first)[1])


def _gram(whitening: Whitening, images: PooledFeatures) -> np.ndarray:
    vectors = vectors_of(images.parts, whitening)
    return vectors @ vectors.T


def records_of(location: Path | str) -> tuple[list[Record], str, int]:
    with Index.open(location) as opened:
        return list(opened.store.scroll(vectors=True)), opened.manifest.whitening_id, opened.manifest.fitted_on


@pytest.mark.slow
@pytest.mark.parametrize("on_server", [False, True])
def test_growth_embeds_new_images_alone(
    tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch, peer: QdrantPeer, on_server: bool
) -> None:
    location = f"{peer.url}/grown" if on_server else tmp_path / "index"
    photos = tmp_path / "photos"
    photos.mkdir()
    monkeypatch.setattr(refit, "TOKENS_SETTLED", FEW)
    options = SyncOptions(resolution=56, workers=1)
    for n in range(FEW):
        draw_photo(photos / f"{n}.png", n)
    sync_folder(photos, location, options=options, backbone=str(tiny_backbone))
    change_tags(location, [photos / "0.png"], lambda tags: tags | {"kept"})
    before, old_id, _ = records_of(location)
    embedded: list[int] = []
    plain = Embedder.pooled

    def counted(embedder: Embedder, pixels: Sequence[np.ndarray]) -> PooledFeatures:
        embedded.append(len(pixels))
        return plain(embedder, pixels)

    monkeypatch.setattr(Embedder, "pooled", counted)
    for n in range(FEW, FEW * OUTGROWN_STORED):
        draw_photo(photos / f"{n}.png", n)
    summary = sync_folder(photos, location)
    assert summary.refitted and sum(embedded) == FEW * (OUTGROWN_STORED - 1)
    after, new_id, fitted_on = records_of(location)
    assert new_id != old_id and fitted_on == len(after) == FEW * OUTGROWN_STORED
    assert {record.whitening_id for record in after} == {new_id}
    by_id = {record.id: record for record in after}
    assert all(by_id[one.id].patches == one.patches and by_id[one.id].files == one.files for one in before)
    assert [record.tags for record in after if record.tags] == [("kept",)]
    with Index.open(location) as opened:
        parts = unpack_parts([record.patches or b"" for record in after])
        assert parts is not None
        wanted = vectors_of(torch.from_numpy(parts), opened.whitening)
    for record, vector in zip(after, wanted, strict=True):
        assert record.global_vector is not None
        np.testing.assert_allclose(record.global_vector, vector, atol=2e-3)
    embedded.clear()
    assert not sync_folder(photos, location).refitted and not embedded


@pytest.mark.slow
def test_a_record_without_its_features_leaves_the_statistics_as_they_are(
    tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refit, "TOKENS_SETTLED", 1)
    for n in range(2):
        draw_photo(tmp_path / f"{n}.png", n)
    sync_folder(tmp_path, options=SyncOptions(resolution=56, workers=1), backbone=str(tiny_backbone))
    with Index.open(tmp_path / ".seenit", write=True) as opened:
        (one, *_) = opened.store.scroll(vectors=True)
        opened.store.upsert([Record(one.id, one.files, one.metadata, one.whitening_id, (), one.global_vector, None)])
        prior = Backbone.load(tiny_backbone).prior
        assert refit_from_parts(opened.store, opened.manifest, opened.whitening, prior, 10) is None
        manifest = json.loads(opened.store.read_blob("manifest.json") or b"")
        assert manifest["whitening_id"] == opened.whitening.id
