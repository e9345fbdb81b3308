"""Views of photos, how well they find their photo, and the head that is fitted on them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import draw_photo
from PIL import Image
from torch import Tensor

from indexer.backbone.backbone import Backbone
from indexer.backbone.checkpoint import load_checkpoint, save_checkpoint
from indexer.descriptor.config import DescriptorConfig
from indexer.descriptor.pooling import PooledFeatures
from indexer.descriptor.whitening import Whitening
from indexer.descriptor.whitening_fit import fit_whitening
from indexer.errors import SeenitError
from indexer.images.jobs import Broken, Cut, Job, Settings
from indexer.images.synthetic_views import draw_quad, homography_to, render_view
from indexer.sources.place import ImageRef
from trainer import retrieval_head
from trainer.data.sources import open_source
from trainer.data.views import cut_views, view_job
from trainer.evaluate.views import PhotoViews, embed_views, view_retrieval
from trainer.retrieval_head import gains, head_from, save_head, train_head, within_photo


@pytest.fixture
def backbone(tiny_backbone: Path) -> Backbone:
    return Backbone.load(tiny_backbone, say=lambda line: None, dtype="float32")


@pytest.fixture
def many_photos(tmp_path: Path) -> Path:
    for n in range(24):
        draw_photo(tmp_path / "many" / f"{n:02}.jpg", n, (96, 72) if n % 2 else (72, 96))
    return tmp_path / "many"


def made_views(num: int = 60, noise: float = 0.3, seed: int = 0) -> PhotoViews:
    """Photos that differ in all of 16 channels, views that differ from their photo mostly in the first 4."""
    generator = torch.Generator().manual_seed(seed)
    photos = torch.randn(num, 1, 4, 16, generator=generator)
    strength = torch.tensor([4.0] * 4 + [noise] * 12)
    views = photos + strength * torch.randn(num, 4, 4, 16, generator=generator)
    parts = torch.nn.functional.normalize(torch.cat([photos, views], 1), dim=-1)
    tokens = torch.randn(num, 8, 16, generator=generator).half()
    return PhotoViews(
        PooledFeatures(parts[:, 0], tokens, torch.zeros(num, 8, 2, dtype=torch.uint8)), parts, DescriptorConfig()
    )


def test_a_homography_takes_corners_to_the_quad() -> None:
    quad = draw_quad(np.random.default_rng(0), 60, 90, 1.0)
    a, b, c, d, e, f, g, h = homography_to(quad, 40, 80)
    for (x, y), expected in zip([(0, 0), (80, 0), (80, 40), (0, 40)], quad, strict=True):
        scale = g * x + h * y + 1
        assert np.allclose(((a * x + b * y + c) / scale, (d * x + e * y + f) / scale), expected)


def test_views_show_the_photo_and_differ_from_each_other() -> None:
    """A photo of white on a black background: each view is mostly white, never all the same."""
    white, black = np.full((60, 90, 3), 255, np.uint8), np.zeros((30, 30, 3), np.uint8)
    views = [render_view(np.random.default_rng(n), white, black, 56, 84) for n in range(40)]
    assert all(view.shape == (56, 84, 3) and view.dtype == np.uint8 for view in views)
    shown = np.array([(view.mean(-1) > 60).mean() for view in views])
    assert shown.min() > 0.4 and shown.mean() > 0.8
    assert 0.2 < (shown > 0.995).mean() < 0.9  # some views lie within the photo, some see the background
    assert (render_view(np.random.default_rng(3), white, black, 56, 84) == views[3]).all()


def test_difficulty_is_how_far_views_stray() -> None:
    photo = np.asarray(
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((84, 56))
    )
    black = np.zeros((9, 9, 3), np.uint8)
    apart = [
        np.mean(
            [
                np.abs(render_view(np.random.default_rng(n), photo, black, 56, 84, d) - photo.astype(float)).mean()
                for n in range(12)
            ]
        )
        for d in (0.0, 0.5, 1.0, 2.0)
    ]
    assert apart[0] < 6 and sorted(apart) == apart and apart[3] > 1.2 * apart[1]


def test_a_worker_gives_the_photo_and_its_views(tmp_path: Path) -> None:
    photo = draw_photo(tmp_path / "a.png", 1, (160, 80))
    other = draw_photo(tmp_path / "b.png", 2, (50, 50))
    settings = Settings(resolution=56)
    job = view_job("7", ImageRef(str(photo)), ImageRef(str(other)), (0, 7), 3)
    answer = cut_views(job, settings)
    assert isinstance(answer, Cut)
    assert answer.pixels.shape == (4, answer.grid[0] * 14, answer.grid[1] * 14, 3) and answer.grid[0] < answer.grid[1]
    shrunk = np.asarray(
        Image.open(photo).resize((answer.pixels.shape[2], answer.pixels.shape[1]), Image.Resampling.BICUBIC)
    )
    assert np.abs(answer.pixels[0].astype(int) - shrunk).mean() < 3
    photo.write_bytes(b"\x89PNG\r\n\x1a\n")
    assert isinstance(cut_views(job, settings), Broken)
    order = dict(job.order)
    order["background"], order["place"] = order["place"], order["background"]
    assert isinstance(cut_views(Job("8", order=order), settings), Cut)


@pytest.mark.slow
def test_views_are_drawn_alike_for_every_backbone(many_photos: Path, backbone: Backbone) -> None:
    (many_photos / "03.jpg").write_bytes(b"\xff\xd8\xff" + bytes(60))
    lines: list[str] = []
    source = open_source(many_photos)
    arguments = {"num_photos": 20, "num_views": 2, "resolution": 56, "workers": 1}
    views = embed_views(backbone, source, say=lines.append, **arguments)  # type: ignore[arg-type]
    again = embed_views(backbone, source, say=lines.append, **arguments)  # type: ignore[arg-type]
    assert torch.equal(views.parts, again.parts)
    broken = len(lines) // 2
    assert views.parts.shape == (20 - broken, 3, 4, 32) and broken <= 1
    assert torch.equal(views.photos.parts, views.parts[:, 0])
    with pytest.raises(SeenitError, match="at least 10"):
        embed_views(backbone, source, num_photos=5, resolution=56, workers=1)


def test_view_retrieval_ranks_by_cosine() -> None:
    views = made_views(20, noise=1.0)
    scores = view_retrieval(views)
    assert scores.num_photos == 20 and scores.num_queries == 80
    assert 0.05 < scores.recall_at_1 < 1 and scores.recall_at_1 < scores.mean_reciprocal_rank < 1
    same = PhotoViews(views.photos, views.parts[:, :1].expand(-1, 3, -1, -1), views.config)
    assert view_retrieval(same).mean_reciprocal_rank == 1
    further = torch.nn.functional.normalize(torch.randn(80, 4, 16, generator=torch.Generator().manual_seed(7)), dim=-1)
    harder = view_retrieval(views, fit_whitening([views.photos], views.config), further)
    assert 0 < harder.mean_reciprocal_rank < scores.mean_reciprocal_rank and harder.num_queries == 80
    flat = PhotoViews(views.photos, torch.ones_like(views.parts) / 4, views.config)
    assert view_retrieval(flat).mean_reciprocal_rank == pytest.approx(1 / 20)  # a collapsed network finds nothing


def test_within_photo_is_the_mean_covariance_of_a_photos_views() -> None:
    views = made_views(30)
    within = within_photo(views.parts)
    slow = torch.zeros(4, 16, 16, dtype=torch.float64)
    for photo in views.parts.double():
        for part in range(4):
            slow[part] += torch.cov(photo[:, part].T, correction=0)
    slow *= 16 / slow.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    assert torch.allclose(within, slow)
    spread = within.diagonal(dim1=1, dim2=2)
    assert (spread[:, :4].mean(1) > 3 * spread[:, 4:].mean(1)).all()  # it sees where views stray


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_a_head_travels_in_the_backbones_file(tiny_backbone: Path, tmp_path: Path, dtype: Any) -> None:
    origin, given = load_checkpoint(tiny_backbone), tmp_path / "given.safetensors"
    save_checkpoint(given, origin.state, origin.architecture, name="given", provenance={"from": "here"}, dtype=dtype)
    head, made = head_from(made_views()), tmp_path / "made.safetensors"
    save_head(made, Backbone.load(given, say=lambda line: None), head, "60 photos")
    old, new = load_checkpoint(given), load_checkpoint(made)
    assert all(torch.equal(old.state[name], new.state[name]) for name in old.state)
    assert new.provenance == {"from": "here", "head": "60 photos", "head_for": old.hash} and new.name == "given_head"
    head_bytes = sum(tensor.numel() * tensor.element_size() for tensor in head.values())
    assert made.stat().st_size < given.stat().st_size + head_bytes + 2000  # eight bits stay eight bits
    prior = Backbone.load(made, say=lambda line: None).prior
    assert prior is not None and {"mean", "factors", "within"} <= set(prior)
    assert torch.equal(prior["within"], head["within"])


@pytest.mark.slow
def test_the_index_can_use_a_head(many_photos: Path, backbone: Backbone) -> None:
    views = embed_views(backbone, open_source(many_photos), num_views=2, resolution=56, workers=1)
    whitening = fit_whitening([views.photos], views.config, head_from(views))
    assert view_retrieval(views, whitening).mean_reciprocal_rank > 0.2  # by chance: 0.16


def test_a_gain_must_be_more_than_chance() -> None:
    before = torch.randint(1, 9, (50, 4), generator=torch.Generator().manual_seed(0))
    assert gains(before, (before - 1).clamp_min(1))
    assert not gains((before - 1).clamp_min(1), before)
    assert not gains(before, before)
    swapped = before.flip(1)  # some better, some worse
    assert not gains(before, swapped)
    lucky = before.clone()
    lucky[0] = 1  # one photo of fifty
    assert not gains(before, lucky)


@pytest.mark.slow
def test_training_a_head_keeps_its_word(many_photos: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    """Whether unseen photos gain or not: what is said, what is returned and what is written agree."""
    lines: list[str] = []
    summary = train_head(
        many_photos, tmp_path / "out", from_backbone=tiny_backbone, workers=1, progress=False, say=lines.append
    )
    assert summary.before.num_photos == summary.after.num_photos == 10 and summary.num_photos == 14
    assert len(summary.table().splitlines()) == 3
    written = (tmp_path / "out" / "backbone.safetensors").exists()
    assert written == (summary.backbone is not None)
    assert [("do not gain" in line, "photos gain" in line) for line in lines[-1:]] == [(not written, written)]
    assert not written or summary.after.mean_reciprocal_rank > summary.before.mean_reciprocal_rank


def test_too_few_photos_for_a_head(photos: Path, many_photos: Path, tmp_path: Path, tiny_backbone: Path) -> None:
    for folder, most in ((photos, 1000), (many_photos, 15)):
        with pytest.raises(SeenitError) as caught:
            train_head(
                folder, tmp_path / "out", from_backbone=tiny_backbone, num_photos=most, workers=1, progress=False
            )
        assert "give" in str(caught.value) and "\n" not in str(caught.value)


def test_a_head_that_cannot_be_written_is_not_fitted_first(many_photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SeenitError, match=r"cannot make .*file/out: .*; choose another --out"):
        train_head(many_photos, tmp_path / "file" / "out", from_backbone="asked for later", progress=False)


@pytest.mark.slow
def test_a_head_is_judged_with_the_statistics_that_an_index_would_have(
    tiny_backbone: Path, many_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, plain = [], fit_whitening

    def whitening(
        photos: Sequence[PooledFeatures], config: DescriptorConfig, prior: Mapping[str, Tensor] | None
    ) -> Whitening:
        counted.append(sum(len(pooled.parts) for pooled in photos))
        return plain(photos, config, prior)

    monkeypatch.setattr(retrieval_head, "fit_whitening", whitening)
    train_head(many_photos, tmp_path / "out", from_backbone=tiny_backbone, progress=False, say=lambda line: None)
    assert counted == [24, 24]  # before and after, each of all photos that are searched
