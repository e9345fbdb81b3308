"""Backbones by name: the cache, imports, `auto` with and without a network; on tiny random networks."""

import http.server
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from indexer.backbone import cache as backbone_files
from indexer.backbone import resolve as backbone_choice
from indexer.backbone.backbone import Backbone
from indexer.backbone.cache import SHIPPED, backbone_path, cache_folder, local_path, official_url
from indexer.backbone.catalogue import list_backbones
from indexer.backbone.checkpoint import load_checkpoint, save_checkpoint
from indexer.backbone.import_weights import import_backbone
from indexer.backbone.layouts import Preprocessing
from indexer.backbone.load_once import LoadOnce
from indexer.backbone.patience import Patience
from indexer.backbone.resolve import PREFERRED
from indexer.backbone.vit import ARCHITECTURES, Architecture, VisionTransformer
from indexer.errors import CheckpointError, DownloadError, SeenitError

TINY = Architecture(embed_dim=64, depth=3, num_heads=1, image_size=56)
WIDE = Architecture(embed_dim=128, depth=2, num_heads=2, image_size=56)


def network(architecture: Architecture = TINY, seed: int = 0) -> VisionTransformer:
    torch.manual_seed(seed)
    model = VisionTransformer(architecture)
    for parameter in model.parameters():  # LayerScale and norms too, so that nothing is the identity
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def save_official(path: Path, model: VisionTransformer) -> Path:
    torch.save(model.state_dict(), path)
    return path


def save_own(path: Path, model: VisionTransformer, name: str = "mine", **more: Any) -> Path:
    save_checkpoint(path, model.state_dict(), model.architecture, name=name, **more)
    return path


@pytest.fixture(autouse=True)
def a_machine_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, tiny official networks, and an official address where nobody listens."""
    monkeypatch.setenv("SEENIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SEENIT_OFFLINE", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, architecture in ARCHITECTURES.items():
        tiny = replace(architecture, embed_dim=64, depth=3, num_heads=1, ffn="mlp", image_size=56)
        monkeypatch.setitem(ARCHITECTURES, name, tiny)
    monkeypatch.setenv("SEENIT_DOWNLOAD_BASE", f"http://127.0.0.1:{silent_port()}")
    quick = Patience(connect_s=1.0, stall_s=0.2, attempts=2, backoff_s=0.01)
    monkeypatch.setattr(backbone_choice, "AUTO_PATIENCE", quick)


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny network in the place of the one that ships."""
    path = save_own(tmp_path / "shipped.safetensors", network(seed=9), SHIPPED)
    monkeypatch.setattr(backbone_files, "_shipped_path", lambda: path)
    return path


def silent_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class OfficialAddress(http.server.ThreadingHTTPServer):
    """Serves files by their names; `cut` bytes of each, where set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Asked)
        self.files: dict[str, bytes] = {}
        self.cut: int | None = None
        self.gets: list[str] = []


class Asked(http.server.BaseHTTPRequestHandler):
    server: OfficialAddress

    def do_GET(self) -> None:
        self.server.gets.append(self.path)
        self.do_HEAD()
        self.wfile.write(self.server.files.get(self.path, b"")[: self.server.cut])

    def do_HEAD(self) -> None:
        body = self.server.files.get(self.path)
        self.send_response(200 if body else 404)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[OfficialAddress]:
    """The official address with a tiny `dinov2_vits14`."""
    with OfficialAddress() as server:
        file = save_official(tmp_path / "official.pth", network(seed=1))
        server.files["/dinov2_vits14/dinov2_vits14_pretrain.pth"] = file.read_bytes()
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setenv("SEENIT_DOWNLOAD_BASE", f"http://127.0.0.1:{server.server_port}/")
        yield server
        server.shutdown()


def load(spec: str | Path, **options: Any) -> tuple[Backbone, str]:
    """The backbone, and the line that names it; one line before says what is fetched, where something is."""
    lines: list[str] = []
    loaded = Backbone.load(spec, device="cpu", say=lines.append, **options)
    *fetching, last = lines
    assert len(fetching) <= 1 and all(line.startswith("fetching backbone") for line in fetching)
    assert "\n" not in last and loaded.name in last
    return loaded, last


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# The network behind it


def test_intermediate_is_the_network_on_normalised_pixels(tmp_path: Path) -> None:
    model = network()
    preprocessing = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    loaded, _ = load(save_own(tmp_path / "mine.safetensors", model, preprocessing=preprocessing), dtype="float32")
    images = pixels(2, 28, 42, 3)
    by_hand = torch.tensor(images).permute(0, 3, 1, 2) / 255  # (B, 3, H, W)
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    by_hand = (by_hand - mean) / std
    with torch.no_grad():
        expected = model.intermediate(by_hand, [2, 0])
    for got in (loaded.intermediate(images, [2, 0]), loaded.intermediate(torch.tensor(images), [2, 0])):
        assert [features.grid for features in got] == [(2, 3), (2, 3)]
        for ours, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(ours.cls, theirs.cls)
            torch.testing.assert_close(ours.patches, theirs.patches)
    assert not torch.allclose(got[0].cls, got[1].cls)


def test_intermediate_takes_views_and_read_only_arrays(tmp_path: Path) -> None:
    loaded, _ = load(save_own(tmp_path / "mine.safetensors", network()))
    images = pixels(1, 28, 28, 3)
    mirrored = images[:, :, ::-1]
    frozen = mirrored.copy()
    frozen.flags.writeable = False
    torch.testing.assert_close(
        loaded.intermediate(mirrored, [2])[0].patches, loaded.intermediate(frozen, [2])[0].patches
    )


def test_half_precision_gives_float32_close_to_float32(tmp_path: Path) -> None:
    file = save_own(tmp_path / "mine.safetensors", network())
    images = pixels(3, 28, 28, 3)
    exact = load(file, dtype="float32")[0].intermediate(images, [2])[0].cls
    half = load(file, dtype="bfloat16")[0].intermediate(images, [2])[0].cls
    assert half.dtype == torch.float32
    assert not torch.equal(half, exact)
    assert torch.cosine_similarity(half, exact).min() > 0.99


def test_wrong_pixels_are_refused(tmp_path: Path) -> None:
    loaded, _ = load(save_own(tmp_path / "mine.safetensors", network()))
    for wrong in (pixels(28, 28, 3), pixels(1, 3, 28, 28), pixels(1, 28, 28, 3).astype(np.float32)):
        with pytest.raises(ValueError, match="uint8"):
            loaded.intermediate(wrong, [2])


def test_what_a_backbone_knows_of_itself(tmp_path: Path) -> None:
    prior = {"descriptor.mean": torch.arange(3.0)}
    file = save_own(tmp_path / "mine.safetensors", network(), provenance={"source": "a test"}, extra=prior)
    loaded, line = load(file)
    assert (loaded.name, loaded.spec) == ("mine", str(file.resolve())) and str(file.resolve()) in line
    assert (loaded.depth, loaded.embed_dim, loaded.patch_size) == (3, 64, 14)
    assert loaded.architecture == TINY and loaded.provenance == {"source": "a test"}
    assert loaded.prior is not None and torch.equal(loaded.prior["mean"], torch.arange(3.0))
    assert load(save_own(tmp_path / "bare.safetensors", network()))[0].prior is None
    assert load(loaded.spec)[0].hash == loaded.hash


def test_a_relative_path_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_own(tmp_path / "weights", network())
    monkeypatch.chdir(tmp_path)
    assert load("weights")[0].spec == str((tmp_path / "weights").resolve())


def test_devices_and_dtypes_that_do_not_exist(shipped: Path) -> None:
    for wrong in ("warp", "cuda:99"):
        with pytest.raises(SeenitError, match=r"^device .* choose auto or cpu$"):
            Backbone.load(SHIPPED, device=wrong)
    with pytest.raises(SeenitError, match="dtype"):
        Backbone.load(SHIPPED, dtype="int4")


# Names


def test_an_official_name_is_fetched_once(address: OfficialAddress) -> None:
    loaded, line = load(PREFERRED)
    assert loaded.name == loaded.spec == PREFERRED and "fetched" in line
    assert load(PREFERRED)[0].hash == loaded.hash
    assert len(address.gets) == 1
    assert backbone_path(PREFERRED, offline=True) == cache_folder() / "dinov2_vits14_pretrain.pth"


def test_official_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEENIT_DOWNLOAD_BASE")
    official = "https://dl.fbaipublicfiles.com/dinov2/"
    assert official_url("dinov2_vitg14") == official + "dinov2_vitg14/dinov2_vitg14_pretrain.pth"
    assert official_url("dinov2_vitb14_reg") == official + "dinov2_vitb14/dinov2_vitb14_reg4_pretrain.pth"


def test_other_weights_under_an_official_address_are_refused(address: OfficialAddress, tmp_path: Path) -> None:
    wrong = save_official(tmp_path / "wrong.pth", network(WIDE))
    ((path, right),) = address.files.items()
    for body in (wrong.read_bytes(), b"no weights at all", right[:-99]):
        address.files[path] = body
        with pytest.raises(DownloadError, match="seenit backbone import FILE") as caught:
            backbone_path(PREFERRED)
        assert "\n" not in str(caught.value)
    assert not list(cache_folder().glob("*.pth*[!k]"))


def test_unknown_names_and_paths() -> None:
    for wrong, expected in {
        "dinov2_vits41": "did you mean .*dinov2_vits14",
        "seenit_vits14_": "did you mean .*seenit_vits14",
        "zebra": "seenit backbone list",
        "nothing/here.pth": "no weights file at nothing",
        "here.safetensors": "no weights file at here",
    }.items():
        with pytest.raises(SeenitError, match=expected) as caught:
            Backbone.load(wrong)
        assert "\n" not in str(caught.value)


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "cat.pth").write_bytes(b"\xff\xd8 an image of a cat" * 100)
    for use in (Backbone.load, import_backbone):
        with pytest.raises(CheckpointError, match=r"cat\.pth"):
            use(tmp_path / "cat.pth")
        with pytest.raises(CheckpointError, match="folder without"):
            use(tmp_path)


def test_offline_fetches_nothing(address: OfficialAddress, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DownloadError, match="; fetch it with: seenit backbone fetch dinov2_vits14"):
        Backbone.load(PREFERRED, offline=True)
    monkeypatch.setenv("SEENIT_OFFLINE", "1")
    with pytest.raises(DownloadError, match=r"nothing may be fetched; bring http://127.*dinov2_vits14_pretrain\.pth"):
        backbone_path(PREFERRED)
    assert address.gets == []


# auto


def test_auto_takes_the_official_one_where_it_can(address: OfficialAddress, shipped: Path) -> None:
    assert load("auto")[0].name == PREFERRED
    address.files.clear()
    loaded, line = load("auto", offline=True)
    assert loaded.name == PREFERRED and "from the cache" in line


def test_auto_without_a_network_is_quick_and_remembers(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, line = load("auto")
    assert loaded.name == loaded.spec == SHIPPED and "cannot reach" in line
    monkeypatch.setattr(backbone_choice, "probe", lambda *_: pytest.fail("asked the network again"))
    assert "not asked again" in load("auto")[1]


def test_auto_where_names_never_resolve(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: hanging.wait(30))
    monkeypatch.setattr(backbone_choice, "PROBE_S", 0.2)
    began = time.monotonic()
    assert load("auto")[0].name == SHIPPED
    assert time.monotonic() - began < 20
    hanging.set()


@pytest.mark.slow
def test_auto_asks_an_address_once_and_another_one_again(
    shipped: Path, address: OfficialAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failed(url: str) -> None:
        cache_folder().mkdir(parents=True, exist_ok=True)
        (cache_folder() / "unreachable.json").write_text(json.dumps({"url": url, "why": "a test"}))

    failed(official_url(PREFERRED))
    loaded, line = load("auto")
    assert loaded.name == SHIPPED and "seenit backbone fetch dinov2_vits14" in line
    failed("http://elsewhere")
    assert load("auto")[0].name == PREFERRED
    backbone_path(PREFERRED).unlink()
    (cache_folder() / "unreachable.json").write_text("{")
    assert load("auto")[0].name == PREFERRED


def test_what_is_fetched_is_said_before(address: OfficialAddress) -> None:
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(f"{len(address.gets)} asked: {line}")

    backbone_path(PREFERRED, say=say)
    backbone_path(PREFERRED, say=say)
    (line,) = lines
    assert line.startswith(f"0 asked: fetching backbone {PREFERRED}, about 0.")
    assert official_url(PREFERRED) in line and str(cache_folder()) in line


def test_the_official_size_is_the_one_that_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()  # the real architectures
    monkeypatch.setenv("SEENIT_CACHE", str(tmp_path))
    monkeypatch.delenv("SEENIT_OFFLINE", raising=False)
    monkeypatch.setenv("SEENIT_DOWNLOAD_BASE", "no address")
    lines: list[str] = []
    with pytest.raises(DownloadError):
        backbone_path(PREFERRED, say=lines.append)
    assert "88.2 MB" in lines[0]  # 22,056,576 float32 numbers


def test_an_index_of_a_backbone_that_is_not_here_waits_for_no_network(address: OfficialAddress) -> None:
    with pytest.raises(DownloadError, match=f"; fetch it with: seenit backbone fetch {PREFERRED}$"):
        LoadOnce().load(PREFERRED)
    assert address.gets == []
    assert LoadOnce("auto").load(PREFERRED, fetch=True).name == PREFERRED


def test_auto_offline_does_not_ask(shipped: Path, address: OfficialAddress, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEENIT_OFFLINE", "1")
    loaded, line = load("auto")
    assert loaded.name == SHIPPED and "nothing may be fetched" in line
    assert address.gets == []


def test_auto_with_a_download_that_breaks_off(shipped: Path, address: OfficialAddress) -> None:
    address.cut = 1000
    loaded, line = load("auto")
    assert loaded.name == SHIPPED and "broke off" in line
    address.cut = None
    assert load("auto")[0].name == SHIPPED  # and it stays so
    assert load(PREFERRED)[0].name == PREFERRED  # asked for by name it is fetched
    assert load("auto")[0].name == PREFERRED  # and from then on it is here


def test_auto_with_a_cache_that_cannot_be_written(shipped: Path, address: OfficialAddress, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the way")
    assert "cannot write" in load("auto")[1]
    with pytest.raises(SeenitError, match="SEENIT_CACHE"):
        import_backbone(shipped, "other")


def test_the_shipped_backbone_is_whole() -> None:
    if local_path(SHIPPED) is None:
        pytest.skip("the shipped weights are not in this checkout")
    loaded, _ = load(SHIPPED)
    (features,) = loaded.intermediate(pixels(1, 56, 56, 3), [loaded.depth - 1])
    assert features.cls.shape == (1, 384) and features.cls.isfinite().all()
    assert loaded.provenance


# Imports and the list


def test_import_converts_and_loads_by_name(tmp_path: Path) -> None:
    model = network()
    file = save_official(tmp_path / "holiday-v2.pth", model)
    path = import_backbone(file)
    assert path == cache_folder() / "holiday-v2.safetensors"
    loaded, _ = load("holiday-v2")
    assert loaded.spec == "holiday-v2"
    imported = load_checkpoint(path).state
    for name, value in model.state_dict().items():
        assert torch.equal(imported[name], value)
    assert loaded.provenance["imported_from"] == load(file)[0].hash
    assert [path.name for path in cache_folder().glob(".*")] == []


def test_import_keeps_the_bytes_of_our_own_layout(tmp_path: Path) -> None:
    file = save_own(tmp_path / "x.safetensors", network(), "mine", dtype="int8")
    assert import_backbone(file).read_bytes() == file.read_bytes()
    assert import_backbone(file, "twin") == cache_folder() / "twin.safetensors"
    assert load("twin")[0].name == "twin"
    assert load("twin")[0].hash == load("mine")[0].hash


def test_an_official_file_brought_by_hand_is_the_official_backbone(address: OfficialAddress, tmp_path: Path) -> None:
    fetched = load(PREFERRED)[0].hash
    brought = shutil.copy(backbone_path(PREFERRED), tmp_path / "dinov2_vits14_pretrain.pth")
    backbone_path(PREFERRED).unlink()
    import_backbone(brought)
    loaded, _ = load("auto", offline=True)
    assert (loaded.name, loaded.hash) == (PREFERRED, fetched)
    registers = save_official(tmp_path / "dinov2_vits14_reg4_pretrain.pth", network(ARCHITECTURES["dinov2_vits14_reg"]))
    assert import_backbone(registers) == backbone_path("dinov2_vits14_reg", offline=True)


def test_import_again_is_nothing_and_other_weights_are_refused(tmp_path: Path) -> None:
    file = save_official(tmp_path / "mine.pth", network())
    first = import_backbone(file)
    before = first.read_bytes()
    assert import_backbone(file) == first
    with pytest.raises(SeenitError, match=r"the name mine is taken .*; choose another with --name"):
        import_backbone(save_official(tmp_path / "mine.pth", network(seed=5)))
    assert first.read_bytes() == before
    assert import_backbone(tmp_path / "mine.pth", "mine2").stem == "mine2"


@pytest.mark.parametrize(
    "name", ["../up", "a/b", "a\\b", ".hidden", "", "auto", "SEENIT_vits14", "nul", "Con.x", "x" * 65, "end.", "über"]
)
def test_names_that_cannot_be_files_everywhere(tmp_path: Path, name: str) -> None:
    file = save_official(tmp_path / f"{name}.pth" if name == ".hidden" else tmp_path / "..pth", network())
    with pytest.raises(SeenitError, match="--name"):
        import_backbone(file, name or "..")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_an_official_name_for_another_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="128 channels"):
        import_backbone(save_official(tmp_path / "x.pth", network(WIDE)), PREFERRED)


def test_the_list_tells_shipped_imported_cached_and_downloadable(
    shipped: Path, address: OfficialAddress, tmp_path: Path
) -> None:
    backbone_path(PREFERRED)
    import_backbone(save_official(tmp_path / "mine.pth", network(WIDE)))
    (cache_folder() / "broken.safetensors").write_bytes(b"oops")
    infos = {info.name: info for info in list_backbones()}
    assert {name: infos[name].where for name in (SHIPPED, "mine", "broken", PREFERRED, "dinov2_vitg14_reg")} == {
        SHIPPED: "shipped",
        "mine": "imported",
        "broken": "damaged",
        PREFERRED: "cached",
        "dinov2_vitg14_reg": "downloadable",
    }
    assert len(infos) == 3 + len(ARCHITECTURES)
    mine = infos["mine"]
    assert (mine.embed_dim, mine.patch_size, mine.registers) == (128, 14, 0)
    assert mine.parameters == sum(parameter.numel() for parameter in network(WIDE).parameters())
    assert mine.path is not None and mine.size == mine.path.stat().st_size
    assert infos["dinov2_vitg14_reg"].path is None and infos["dinov2_vitg14_reg"].registers == 4
