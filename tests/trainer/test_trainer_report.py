"""What a run shows: its report, and the images of what its features see."""

import io
import json
import re
import sys
import tarfile
import types
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from indexer.backbone.backbone import Backbone
from indexer.backbone.checkpoint import build_model, load_checkpoint
from indexer.backbone.vit import Block, TokenFeatures
from indexer.descriptor.patch_maps import cls_attention, patch_colours
from indexer.errors import SeenitError
from trainer.config import make_config
from trainer.data.sources import open_source
from trainer.evaluate.labelled import as_backbone
from trainer.run.report import curve, read_metrics, write_report
from trainer.run.show import Watched, feature_sheet, neighbour_sheet
from trainer.train import train


@pytest.fixture
def backbone(tiny_backbone: Path) -> Backbone:
    return Backbone.load(tiny_backbone, say=lambda line: None, dtype="float32")


def write_run(out: Path, steps: int = 50) -> None:
    rows = [{"step": n, "loss": 10 / (n + 1), "rate": 1e-3, "note": "text"} for n in range(steps)]
    (out / "images").mkdir(parents=True)
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (out / "config.json").write_text(json.dumps({"arch": "<tiny>", "steps": steps}))
    for step in range(0, 100, 10):
        Image.new("RGB", (4, 4), (step, 0, 0)).save(out / "images" / f"step_{step:07d}_features.png")


class _Tags(HTMLParser):
    """Counts tags, and holds that every opened one is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_report_holds_curves_images_and_settings_in_one_file(tmp_path: Path) -> None:
    write_run(tmp_path)
    text = write_report(tmp_path, title="run <1>", notes=["got worse & kept"]).read_text("utf-8")
    tags = _Tags()
    tags.feed(text)
    assert not tags.open
    assert tags.counts["svg"] == 2 and tags.counts["img"] == 6  # of 10 steps, first and last among them
    assert "step 0:" in text and "step 90:" in text
    assert "run &lt;1&gt;" in text and "got worse &amp; kept" in text and "&lt;tiny&gt;" in text
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_report_of_a_run_that_has_just_begun(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    assert "No step" in write_report(tmp_path).read_text("utf-8")
    with pytest.raises(SeenitError, match=r"metrics\.jsonl"):
        write_report(tmp_path / "elsewhere")


def test_metrics_of_a_killed_and_resumed_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n{"step": 2, "loss": 1.5, "knn": 0.5}\n{"step": 3, "lo'
    )
    assert read_metrics(path) == [{"step": 1, "loss": 3}, {"step": 2, "loss": 1.5, "knn": 0.5}]
    path.write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(SeenitError, match="line 1"):
        read_metrics(path)


def test_a_curve_spans_its_values_and_says_what_is_missing() -> None:
    drawn = curve("loss", [(0, 1.0), (5, float("nan")), (10, 3.0)])
    points = [tuple(map(float, point.split(","))) for point in drawn.points.split()]
    assert len(points) == 2 and points[0][0] < points[1][0] and points[0][1] > points[1][1]
    assert drawn.caption == "loss: 3 (1 not finite)"
    assert [number for _, number in drawn.y_ticks] == ["1", "1.5", "2", "2.5", "3"]
    assert [step for _, step in drawn.x_ticks] == ["0", "5", "10"]
    assert float(drawn.y_ticks[0][0]) == points[0][1] and float(drawn.x_ticks[-1][0]) == points[1][0]
    nothing = curve("loss", [(0, float("inf"))])
    assert "no finite value" in nothing.caption and not nothing.points
    assert len(curve("flat", [(1, 2.0)]).points.split()) == 1
    long = curve("long", [(n, float(n % 7)) for n in range(10_000)])
    assert len(long.points) < 20_000


@pytest.mark.parametrize(
    "low, high", [(1.0, 3.0), (-1.2e-5, 3.4e-5), (123_456.7, 123_456.9), (2.0, 2.0), (0.0, 1e9), (-7e5, 3)]
)
@pytest.mark.parametrize("steps", [(4, 8), (0, 1), (7, 7), (1, 625_000), (999_000, 1_000_000)])
def test_no_number_of_an_axis_is_cut_or_overlaps(low: float, high: float, steps: tuple[int, int]) -> None:
    drawn = curve("loss", [(steps[0], low), (steps[1], high)])
    assert 1 <= len(drawn.y_ticks) <= 6 and 1 <= len(drawn.x_ticks) <= 6
    assert len({number for _, number in drawn.y_ticks}) == len(drawn.y_ticks)
    for y, number in drawn.y_ticks:
        assert 6 * len(number) <= drawn.left - 6 and 6 <= float(y) <= drawn.height - 6
    assert all(re.fullmatch(r"[\d,]+", step) for _, step in drawn.x_ticks)  # whole steps
    ends = [float(x) for x, _ in drawn.x_ticks]
    widths = [6 * len(f"step {step}" if n == 0 else step) for n, (_, step) in enumerate(drawn.x_ticks)]
    starts = [
        x if n == 0 else x - (width if n == len(ends) - 1 else width / 2)
        for n, (x, width) in enumerate(zip(ends, widths, strict=True))
    ]
    for n in range(1, len(ends)):
        assert starts[n] >= starts[n - 1] + widths[n - 1]
    assert starts[-1] + widths[-1] <= drawn.width


def test_equal_patches_have_equal_colours() -> None:
    kinds = torch.tensor([[0, 0, 1, 1], [1, 1, 2, 2]])
    basis = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    colours = patch_colours(TokenFeatures(basis[:, 0], basis[:0, None], basis[kinds], (2, 2)))
    assert colours.shape == (2, 2, 2, 3) and colours.dtype == np.uint8
    flat = colours.reshape(8, 3).astype(int)
    assert (flat[0] == flat[1]).all() and (flat[2] == flat[4]).all() and (flat[6] == flat[7]).all()
    assert np.abs(flat[0] - flat[2]).max() > 50 and np.abs(flat[2] - flat[6]).max() > 50
    assert patch_colours(TokenFeatures(basis[:, 0], basis[:0, None], torch.zeros(2, 4, 8), (2, 2))).max() == 0


def test_attention_is_what_the_last_block_computes(backbone: Backbone, tiny_backbone: Path) -> None:
    """The softmax spelled out, of the plain network; the one rearranged for inference gives the same."""
    rearranged, backbone = backbone, as_backbone(build_model(load_checkpoint(tiny_backbone)))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 28, 42, 3), dtype=np.uint8)
    attention = cls_attention(backbone, pixels)
    assert attention.shape == (2, 2, 3) and (attention > 0).all()
    (before,) = backbone.intermediate(pixels, [backbone.depth - 2], norm=False)
    block, heads = backbone.model.blocks[-1], backbone.architecture.num_heads
    assert isinstance(block, Block)
    tokens = torch.cat([before.cls[:, None], before.patches], 1)[0]
    query, key, _ = block.attn.qkv(block.norm1(tokens)).chunk(3, 1)
    total = torch.zeros(7)
    for q, k in zip(query[0].chunk(heads), key.chunk(heads, 1), strict=True):
        total += (k @ q / len(q) ** 0.5).softmax(0) / heads
    assert np.allclose(attention[0].ravel(), total[1:].numpy(), atol=1e-5)
    assert np.allclose(cls_attention(rearranged, pixels), attention, atol=1e-4)


def test_sheets_have_a_cell_for_each_image(backbone: Backbone) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 56, 56, 3), dtype=np.uint8)
    features = feature_sheet(backbone, pixels)
    assert features.size == (4 * 172 - 4, 3 * 172 - 4)
    vectors = torch.tensor([[1.0, 0], [0, 1], [0.9, 0.1], [0.1, 0.9]])
    sheet = neighbour_sheet(pixels, vectors, [0, 1], count=2)
    cell = {
        (x, y): np.asarray(sheet)[y * 172 : y * 172 + 168, x * 172 : x * 172 + 168] for x in range(3) for y in range(2)
    }
    only = neighbour_sheet(pixels, vectors, [2, 3], count=1)
    assert (cell[1, 0] == np.asarray(only)[:168, :168]).all()  # what is nearest to 0 is 2
    assert (cell[1, 1] == np.asarray(only)[172:340, :168]).all()  # and 3 to 1


@pytest.mark.slow
def test_watched_photos_are_the_same_each_time(photos: Path, tmp_path: Path, backbone: Backbone) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for photo in sorted(photos.rglob("*.jpg")):
            entry = tarfile.TarInfo(photo.name)
            data = photo.read_bytes()
            entry.size = len(data)
            shard.addfile(entry, io.BytesIO(data))
    (photos / "a" / "0.jpg").write_bytes(b"\xff\xd8\xff" + bytes(50))
    watched, again = (Watched(open_source(photos), size_px=56, gallery=6) for _ in range(2))
    assert (watched.pixels == again.pixels).all() and watched.pixels.shape == (5, 56, 56, 3)
    assert Watched(open_source(tmp_path / "shard.tar"), size_px=56).pixels.shape == (8, 56, 56, 3)
    paths = watched.save(backbone, tmp_path / "out" / "images", 12)
    assert [path.name for path in paths] == ["step_0000012_features.png", "step_0000012_neighbours.png"]
    (tmp_path / "out" / "metrics.jsonl").write_text('{"step": 12, "loss": 1}\n')
    assert write_report(tmp_path / "out").read_text("utf-8").count("<img") == 2


@pytest.mark.slow
def test_metrics_go_to_tensorboard_where_it_is_installed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a writer that has the two methods used, in place of the package that is not needed here."""
    written: list[tuple[str, float, int]] = []

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path / "run" / "tensorboard")

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def close(self) -> None:
            written.append(("closed", 0, 0))

    module = types.ModuleType("torch.utils.tensorboard")
    monkeypatch.setattr(module, "SummaryWriter", SummaryWriter, raising=False)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    small = {"steps": 2, "batch_size": 4, "num_local": 1, "prototypes": 16, "ibot_prototypes": 16}
    train(photos, tmp_path / "run", make_config("tiny", changes=small), progress=False, say=lambda line: None)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    expected = [(name, value, line["step"]) for line in lines for name, value in line.items()]
    assert len(lines) == 2 and written == [*expected, ("closed", 0, 0)]
