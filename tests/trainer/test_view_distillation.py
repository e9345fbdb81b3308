"""Views of photos as the photos' own features: the pairs, the loss at the right place, and whole runs."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, draw_photo
from PIL import Image

import cli
from indexer.backbone.checkpoint import load_checkpoint, save_checkpoint
from indexer.backbone.vit import TokenFeatures, VisionTransformer
from indexer.descriptor.config import DescriptorConfig
from indexer.errors import SeenitError
from indexer.images.jobs import Broken, Cut, Settings
from indexer.images.synthetic_views import homography_to
from indexer.sources.place import ImageRef
from trainer.config import VIEW_KEYS, Config, ConfigError, make_config
from trainer.data import relit_views
from trainer.data.pair_batches import as_batch
from trainer.data.relit_views import RelitPair, cut_pair, draw_pair, pair_job, read_pair, relight, seen_places
from trainer.data.sources import open_source
from trainer.model.view_loss import FeatureSpace, view_loss
from trainer.run.snapshot import Snapshot, check_same_run, config_as_json
from trainer.run.state import telling_of_memory
from trainer.train import TrainSummary, train
from trainer.view_distillation import _loop, _Run, _start, train_views

CPU = torch.device("cpu")


def small(**changes: object) -> Config:
    return make_config("views", changes={"steps": 4, "batch_size": 4, "global_size": 56, "workers": 1, **changes})


def run(
    photos: Path, out: Path, config: Config, backbone: Path, say: Any = lambda line: None, **more: Any
) -> TrainSummary:
    return train_views(photos, out, config, from_backbone=backbone, progress=False, say=say, **more)


def stop_after(steps: int) -> Callable[[], bool]:
    """A stop function that says so when asked for the (steps + 1)-th time."""
    asked = iter(range(10**9))
    return lambda: next(asked) >= steps


@pytest.fixture(scope="module")
def many_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    for n in range(24):
        draw_photo(folder / f"{n:02}.jpg", n, (96, 72) if n % 2 else (72, 96))
    return folder


# Pairs


def test_places_are_where_the_homography_takes_the_middles_of_patches() -> None:
    side, patch = 42, 14
    homography = np.array([*homography_to(np.array([(3, 5), (40, -4), (45, 30), (-2, 41)]), side, side), 1.0])
    places = seen_places(homography.reshape(3, 3), side, patch)
    assert places.shape == (3, 3, 2) and places.dtype == np.float32
    a, b, c, d, e, f, g, h, _ = homography
    for row in range(3):
        for col in range(3):
            x, y = (col + 0.5) * patch, (row + 0.5) * patch
            below = g * x + h * y + 1
            expected = ((a * x + b * y + c) / below / side * 2 - 1, (d * x + e * y + f) / below / side * 2 - 1)
            assert places[row, col] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_a_view_shows_the_crop_where_its_homography_says(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relit_views, "relight", lambda rng, pixels: pixels)
    colours = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    photo = Image.fromarray(colours).resize((300, 380), Image.Resampling.BICUBIC)
    pair = draw_pair(np.random.default_rng(seed), photo, 112, 1.0, dark_below=0)
    assert pair.crop.shape == pair.view.shape == (112, 112, 3) and 0.3 <= pair.difficulty <= 1.6
    middles = pair.view[3::7, 3::7]  # of squares of 7 pixels; Pillow's pixel 3 spans 3 to 4
    places = seen_places(pair.homography, 112, 7)
    apart = []
    for x_first in (True, False):
        x, y = np.moveaxis((places + 1) * 56, -1, 0) if x_first else np.moveaxis((places + 1) * 56, -1, 0)[::-1]
        inside = (np.minimum(x, y) >= 0) & (np.maximum(x, y) < 112)
        assert inside.mean() > 0.3
        shown = pair.crop[y[inside].astype(int), x[inside].astype(int)]
        apart.append(np.abs(shown.astype(float) - middles[inside]).mean())
    assert apart[0] < 3 < 5 * apart[0] < apart[1]


def test_light_alone_leaves_the_view_in_place() -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8))
    pair = draw_pair(np.random.default_rng(1), photo, 56, 0.0, dark_below=65)
    assert pair.difficulty == 0 and (pair.homography == np.eye(3)).all()
    assert (pair.crop != pair.view).any()


@pytest.mark.parametrize("size", [(20, 20), (3, 2000), (56, 56), (1, 1)])
def test_photos_of_any_shape_give_crops(size: tuple[int, int]) -> None:
    for seed in range(3):
        pair = draw_pair(np.random.default_rng(seed), Image.new("RGB", size, (200, 90, 30)), 56, 0.5, dark_below=65)
        assert pair.crop.shape == pair.view.shape == (56, 56, 3)


def test_light_is_drawn_by_the_seed_and_mostly_less() -> None:
    pixels = np.full((42, 56, 3), 140, np.uint8)
    lit = [relight(np.random.default_rng(seed), pixels) for seed in range(60)]
    assert all(one.shape == pixels.shape and one.dtype == np.uint8 for one in lit)
    assert all((relight(np.random.default_rng(seed), pixels) == lit[seed]).all() for seed in (0, 7, 30))
    means = np.array([one.mean() for one in lit])
    assert (means < 140).mean() > 0.6 and means.min() < 60 and means.max() > 150


def test_a_worker_gives_a_pair(tmp_path: Path) -> None:
    photo = draw_photo(tmp_path / "a.png", 1, (160, 80))
    job, settings = pair_job("3", ImageRef(str(photo)), (0, 2, 3, 0), 1.0, 65), Settings(resolution=70)
    answer = cut_pair(job, settings)
    assert isinstance(answer, Cut) and answer.path == "3"
    with Image.open(photo) as image:
        expected = draw_pair(np.random.default_rng((0, 2, 3, 0)), image, 70, 1.0, dark_below=65)
    pair = read_pair(answer)
    assert (pair.crop == expected.crop).all() and (pair.view == expected.view).all()
    assert (pair.homography == expected.homography).all() and pair.difficulty == expected.difficulty > 0
    photo.write_bytes(b"\x89PNG\r\n\x1a\n")
    assert isinstance(cut_pair(job, settings), Broken)


# The loss


def made_space(dim: int = 16) -> FeatureSpace:
    generator = torch.Generator().manual_seed(5)
    mean, projection = torch.randn(dim, generator=generator), torch.randn(dim, 8, generator=generator)
    return FeatureSpace(DescriptorConfig(), 12, mean, projection, torch.randn(4, dim, generator=generator) / 9)


def made_features(patches: torch.Tensor, cls: torch.Tensor) -> list[TokenFeatures]:
    """The same tokens of each block that is read."""
    side = round(patches.shape[1] ** 0.5)
    one = TokenFeatures(cls, torch.zeros(len(cls), 0, cls.shape[1]), patches, (side, side))
    return [one] * len(DescriptorConfig().layers_of(12))


def test_a_patch_is_compared_with_the_place_of_the_crop_that_it_shows() -> None:
    """A view two patches to the right and one down: no loss where its tokens are the crop's of there."""
    generator = torch.Generator().manual_seed(0)
    crop, cls = torch.randn(1, 5, 5, 16, generator=generator), torch.randn(1, 16, generator=generator)
    view = torch.randn(1, 5, 5, 16, generator=generator)  # what lies beyond the crop may be anything
    view[:, :4, :3] = crop[:, 1:, 2:]
    homography = np.array([(1.0, 0, 28), (0, 1, 14), (0, 0, 1)])
    far = torch.tensor([1.5])
    losses = []
    for shift in (homography, np.array([(1.0, 0, 14), (0, 1, 28), (0, 0, 1)])):
        places = torch.from_numpy(seen_places(shift, 70, 14))[None]
        theirs, own = made_features(crop.flatten(1, 2), cls), made_features(view.flatten(1, 2), -cls)
        losses.append(view_loss(theirs, own, places, far, made_space()).item())
    assert losses[0] == pytest.approx(0, abs=1e-5) and losses[1] > 1


def test_global_vectors_count_where_the_view_strays_little() -> None:
    generator = torch.Generator().manual_seed(0)
    patches, cls = torch.randn(2, 16, 16, generator=generator), torch.randn(2, 16, generator=generator)
    places = torch.from_numpy(np.stack([seen_places(np.eye(3), 56, 14)] * 2))
    theirs, own = made_features(patches, cls), made_features(patches, torch.randn(2, 16, generator=generator))
    space = made_space()
    near, far = (view_loss(theirs, own, places, torch.tensor([d, d]), space).item() for d in (0.5, 1.0))
    assert far == pytest.approx(0, abs=1e-5) and near > 0.1
    half = view_loss(theirs, own, places, torch.tensor([0.5, 1.0]), space).item()
    assert half > 0.1  # the mean over those that count, not over all
    assert view_loss(theirs, theirs, places, torch.tensor([0.0, 0.0]), space).item() == pytest.approx(0, abs=1e-5)


# Runs


def test_learning_brings_unseen_views_nearer_and_leaves_clean_features(many_photos: Path, tiny_backbone: Path) -> None:
    origin, source = load_checkpoint(tiny_backbone), open_source(many_photos)
    config = small(steps=40, batch_size=8, rate=2e-2, warmup=0.1)
    made = _start(origin, replace(source, places=source.places[6:]), config, CPU)
    pairs: list[RelitPair] = []
    for n, place in enumerate(source.places[:6] * 6):
        with Image.open(place.path) as photo:
            pairs.append(draw_pair(np.random.default_rng((7, n)), photo, 56, 0.5, dark_below=65))
    before = unseen_loss(made, pairs)
    assert not _loop(made, replace(source, places=source.places[6:]), config, False, lambda: False, lambda line: None)
    assert made.step == 40 and unseen_loss(made, pairs) < 0.9 * before
    crops = as_batch(pairs, 14, made.preprocessing, CPU).crops
    with torch.no_grad():
        old, new = (network(crops).patches for network in (made.teacher, made.student))
    assert torch.nn.functional.cosine_similarity(old, new, dim=-1).mean() > 0.8
    assert all(torch.equal(origin.state[name].float(), value) for name, value in made.teacher.state_dict().items())


def unseen_loss(made: _Run, pairs: Sequence[RelitPair]) -> float:
    batch = as_batch(pairs, 14, made.preprocessing, CPU)
    layers = made.space.config.layers_of(made.space.depth)
    with torch.no_grad():
        theirs, own = made.teacher.intermediate(batch.crops, layers), made.student.intermediate(batch.views, layers)
        return view_loss(theirs, own, batch.places, batch.difficulties, made.space).item()


def test_a_run_is_repeated_bit_for_bit_and_replaces_what_cannot_be_read(tmp_path: Path, tiny_backbone: Path) -> None:
    for n in range(24):
        photo = draw_photo(tmp_path / "photos" / f"{n:02}.jpg", n, (96, 72))
        if n % 4 == 0:
            photo.write_bytes(b"\xff\xd8\xff" + bytes(60))
    lines: list[str] = []
    summaries = [
        run(tmp_path / "photos", tmp_path / out, small(), tiny_backbone, lines.append) for out in ("one", "two")
    ]
    one, two = (summary.backbone.read_bytes() for summary in summaries)
    assert one == two and summaries[0].unreadable == summaries[1].unreadable > 0
    assert sum("another image takes its place" in line for line in lines) == 2 * summaries[0].unreadable
    written, origin = load_checkpoint(summaries[0].backbone), load_checkpoint(tiny_backbone)
    assert written.provenance["from"] == origin.hash and written.provenance["method"] == "views"
    assert written.provenance["steps"] == "4" and written.name == "tiny0_views"
    assert torch.equal(written.state["pos_embed"], origin.state["pos_embed"].float())
    assert not torch.equal(written.state["blocks.0.mlp.fc1.weight"], origin.state["blocks.0.mlp.fc1.weight"].float())
    assert any("--preset head" in line for line in lines) and summaries[0].after is not None


@pytest.mark.slow
def test_hardly_any_image_can_be_read(tmp_path: Path, tiny_backbone: Path) -> None:
    for n in range(20):
        draw_photo(tmp_path / "photos" / f"{n:02}.jpg", n, (96, 72)).write_bytes(b"\xff\xd8\xff" + bytes(60))
    with pytest.raises(SeenitError, match="can be read") as caught:
        run(tmp_path / "photos", tmp_path / "out", small(), tiny_backbone)
    assert "\n" not in str(caught.value)


def test_a_stopped_run_writes_what_it_has_learnt(many_photos: Path, tmp_path: Path, tiny_backbone: Path) -> None:
    lines: list[str] = []
    stopped = run(many_photos, tmp_path / "out", small(), tiny_backbone, lines.append, stop=stop_after(2))
    assert stopped.stopped and stopped.steps == 2 and stopped.before is not None and stopped.after is not None
    assert load_checkpoint(stopped.backbone).provenance["steps"] == "2"
    assert any("stopped after step 2" in line for line in lines)
    with pytest.raises(SeenitError, match="before the first step"):
        run(many_photos, tmp_path / "none", small(), tiny_backbone, stop=stop_after(0))
    assert not list((tmp_path / "none").iterdir())


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(many_photos: Path, tmp_path: Path, tiny_backbone: Path) -> None:
    with pytest.raises(SeenitError, match=r"the loss is \w+ at step \d, and nothing was written; lower rate") as caught:
        run(many_photos, tmp_path / "out", small(rate=1e30, warmup=0, steps=9), tiny_backbone)
    assert "\n" not in str(caught.value) and not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_any_network_learns(many_photos: Path, tmp_path: Path) -> None:
    """Registers, a feed-forward part of another kind, other patches, and only the last block."""
    torch.manual_seed(0)
    shape = replace(TINY, patch_size=8, num_registers=2, ffn="swiglu", depth=3, image_size=64)
    network = VisionTransformer(shape)
    save_checkpoint(tmp_path / "other.safetensors", network.state_dict(), shape, name="other")
    with pytest.raises(ConfigError, match="crops of 60 pixels do not divide into patches of 8"):
        run(many_photos, tmp_path / "out", small(global_size=60), tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="train_blocks is 4, the network has 3 blocks"):
        run(many_photos, tmp_path / "out", small(train_blocks=4), tmp_path / "other.safetensors")
    done = run(many_photos, tmp_path / "out", small(train_blocks=1), tmp_path / "other.safetensors")
    state = load_checkpoint(done.backbone).state
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, state[name])}
    assert changed and all(name.startswith(("blocks.2.", "norm.")) for name in changed)
    done = run(many_photos, tmp_path / "all", small(), tmp_path / "other.safetensors")
    assert not torch.equal(
        load_checkpoint(done.backbone).state["register_tokens"], network.state_dict()["register_tokens"]
    )


# What it can be told


def test_the_preset_reads_its_keys_and_no_other(tmp_path: Path, many_photos: Path, tiny_backbone: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('preset = "views"\nsteps = 7\nview_share = 0.25\n')
    config = make_config(file=file, changes=["batch-size=6"])
    assert (config.method, config.steps, config.view_share, config.batch_size) == ("views", 7, 0.25, 6)
    assert config.scaled_rate == pytest.approx(config.rate * (6 / 1024) ** 0.5)
    for key in ("prototypes=64", "precision=bfloat16", "arch=vits14", "method=views", "local_size=56"):
        with pytest.raises(ConfigError, match=f"preset views does not read {key.split('=')[0]}; it reads steps"):
            make_config("views", changes=[key])
    for change in ("method=views", "view_share=0.1"):
        with pytest.raises(ConfigError, match="is for the preset views"):
            make_config("adapt", changes=[change])
    with pytest.raises(ConfigError, match=r"view_share is 1.5; it must be in \[0, 1\]"):
        make_config("views", changes=["view_share=1.5"])
    with pytest.raises(ConfigError, match="workers is 0"):
        run(many_photos, tmp_path / "out", small(workers=0), tiny_backbone)
    with pytest.raises(ConfigError, match="make_config"):
        run(many_photos, tmp_path / "out", make_config("adapt"), tiny_backbone)
    with pytest.raises(ConfigError, match="train_views"):
        train(many_photos, tmp_path / "out", small(), from_backbone=tiny_backbone, progress=False)
    assert set(VIEW_KEYS) <= set(Config.__dataclass_fields__)


def test_a_run_from_before_these_keys_can_be_resumed() -> None:
    config = make_config("tiny")
    older = {key: value for key, value in config_as_json(config).items() if key not in ("method", "view_share")}
    check_same_run(Snapshot(Path("x"), 1, older, {}, {}), config)
    with pytest.raises(ConfigError, match=r"was made with rate = 1\.0, not"):
        check_same_run(Snapshot(Path("x"), 1, older | {"rate": 1.0}, {}, {}), config)


def test_short_memory_is_told_in_its_own_terms() -> None:
    with pytest.raises(SeenitError, match="batch of 4 crops of 56 pixels"), telling_of_memory(small(), CPU):
        raise MemoryError


def test_it_does_not_run_under_torchrun(
    many_photos: Path, tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SeenitError, match="one process"):
        run(many_photos, tmp_path / "out", small(), tiny_backbone)


@pytest.mark.slow
def test_the_command_line(
    many_photos: Path,
    tmp_path: Path,
    tiny_backbone: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def train(words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["seenit", "train", str(many_photos), *words.split()])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, *capsys.readouterr()

    out, file = tmp_path / "out", tmp_path / "views.toml"
    file.write_text('preset = "views"\nsteps = 3\nbatch_size = 4\nglobal_size = 56\nworkers = 1\n')
    views = f"--config {file} --from {tiny_backbone}"
    code, said, told = train(f"--out {out} {views}")
    assert code == 0 and f"wrote {out / 'backbone.safetensors'}" in said and "3 steps, loss" in said, told
    for words, message in (
        ("--preset views", "name one by --from"),
        (f"{views} --preset views --resume", "views does not read --resume"),
        (f"{views} --labelled {out}", "views does not read --labelled"),
        (f"{views} --set local_size=56", "views does not read local_size"),
        ("--preset head --set steps=3", "head does not read --set"),
        (f"--preset head --config {file}", "head does not read --config"),
        (f"--preset head --labelled {out}", "head does not read --labelled"),
        ("--preset head --resume", "head does not read --resume"),
    ):
        code, said, told = train(f"--out {tmp_path / 'none'} {words}")
        assert code == 1 and message in told and told.count("\n") == 1 and not said, told
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_signal_ends_the_run_after_the_step(many_photos: Path, tmp_path: Path, tiny_backbone: Path) -> None:
    command = [sys.executable, "-c", "import cli; cli.main()", "train", str(many_photos), "--out", str(tmp_path)]
    command += ["--preset", "views", "--from", str(tiny_backbone)]
    for change in ("steps=100000", "batch_size=4", "global_size=56", "workers=1"):
        command += ["--set", change]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "learning from views" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(2)  # a step takes a hundredth of that
    process.terminate()
    said, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "what was learnt so far is compared and written" in told and "wrote" in said
    assert 0 < int(load_checkpoint(tmp_path / "backbone.safetensors").provenance["steps"]) < 100_000
