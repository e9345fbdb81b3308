"""Tiny real things that many tests need: a random backbone, a few drawn photos, a cache and state of their own."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from PIL import Image

from indexer.backbone.checkpoint import save_checkpoint
from indexer.backbone.vit import Architecture, VisionTransformer

if TYPE_CHECKING:  # imported where used: most tests need none of it
    from qdrant_grpc_peer import QdrantGrpcPeer
    from qdrant_peer import QdrantPeer

    from indexer.store.protocol import Store

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands that tests start: several run at once, on few cores
TINY = Architecture(patch_size=14, embed_dim=32, depth=4, num_heads=2, image_size=112)


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each test gets places of its own: pytest's numbered folders list all others, and there are thousands."""
    return tmp_path_factory.mktemp("places")


@pytest.fixture(autouse=True)
def own_places(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own cache and state, or reaches for the network."""
    own = Path(tempfile.mkdtemp(dir=places))
    for name in ("cache", "state", "items", "config"):
        (own / name).mkdir()
    for name in ("cache", "state", "items"):
        monkeypatch.setenv(f"SEENIT_{name.upper()}", str(own / name))
    monkeypatch.setenv("SEENIT_OFFLINE", "1")
    monkeypatch.setenv("SEENIT_CONFIG", str(own / "config" / "config.toml"))
    monkeypatch.delenv("SEENIT_INDEX", raising=False)


def save_tiny(path: Path, seed: int = 0) -> Path:
    """A random backbone whose features differ from image to image."""
    torch.manual_seed(seed)
    model = VisionTransformer(TINY)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    save_checkpoint(path, model.state_dict(), TINY, name=f"tiny{seed}", dtype="float16")
    return path


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("backbone") / "tiny.safetensors")


def draw_photo(path: Path, seed: int, size: tuple[int, int] = (96, 72), **save: object) -> Path:
    """An image of coloured blocks, different for each seed; width before height, as Pillow has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC).save(path, **save)  # type: ignore[arg-type]
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight photos in two folders."""
    folder = tmp_path / "photos"
    for n in range(8):
        draw_photo(folder / ("a" if n < 4 else "b") / f"{n}.jpg", n, (96, 72) if n % 2 else (72, 96))
    return folder


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Path:
    """Twelve photos in two folders, two of them the same bytes, with dates and a camera; and their index."""
    from retrieval.build import build_index

    folder = tmp_path_factory.mktemp("served") / "photos"
    for n in range(11):
        exif = Image.Exif()
        exif[0x010F], exif[0x0110] = "Canon", "Canon EOS 5D"
        exif.get_ifd(0x8769)[0x9003] = f"202{n % 3}:06:1{n % 5} 12:00:00"
        exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 51.0, 30.0), 3: "E", 4: (2.0, 17.0, 40.0)})
        draw_photo(folder / ("a" if n < 5 else "b/c") / f"{n}.jpg", n, (120, 90) if n % 2 else (90, 120), exif=exif)
    shutil.copy(folder / "a" / "0.jpg", folder / "copy.jpg")
    (folder / "broken.jpg").write_bytes((folder / "a" / "1.jpg").read_bytes()[:700])
    build_index(folder, backbone=tiny_backbone)
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real photos with ground truth, where they are at hand."""
    folder = Path(os.environ.get("SEENIT_SHARED") or Path(__file__).parents[2] / "shared")
    if not (folder / "data").is_dir():
        pytest.skip("real photos are not at hand (SEENIT_SHARED names their folder)")
    return folder


# Stores


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """A folder in memory where the system offers that: stores wait for the disk at each of their many small steps."""
    shared_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="stores.", dir=shared_memory) as folder:
        yield Path(folder).resolve()


@pytest.fixture(scope="module")
def module_peer() -> Iterator["QdrantPeer"]:
    from qdrant_peer import QdrantPeer

    with QdrantPeer() as peer:
        yield peer


@pytest.fixture(scope="module")
def module_grpc_peer(module_peer: "QdrantPeer") -> Iterator["QdrantGrpcPeer"]:
    from qdrant_grpc_peer import QdrantGrpcPeer

    with QdrantGrpcPeer(module_peer) as grpc_peer:
        yield grpc_peer


@pytest.fixture(params=["folder", "memory", "http", "grpc"])
def empty(
    request: pytest.FixtureRequest,
    memory_path: Path,
    module_grpc_peer: "QdrantGrpcPeer",
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator["Store"]:
    """A store of each kind before `ensure`."""
    from store_kinds import open_kind

    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_, **__: str(memory_path / "cache"))
    store = open_kind(request.param, memory_path, module_grpc_peer.peer, module_grpc_peer.port)
    yield store
    store.close()
    store.close()  # twice is allowed


@pytest.fixture
def store(empty: "Store") -> "Store":
    """A store of each kind that holds RECORDS."""
    from stored_records import RECORDS, SCHEMA

    empty.ensure(SCHEMA)
    empty.upsert(RECORDS)
    return empty


@pytest.fixture
def peer(memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["QdrantPeer"]:
    """A server of its own for one test, whose failures are repeated after short pauses."""
    from qdrant_peer import QdrantPeer

    from indexer.store import qdrant_connection
    from indexer.store.qdrant_address import KEY_VARIABLES

    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_, **__: str(memory_path / "cache"))
    monkeypatch.setattr(qdrant_connection, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(qdrant_connection, "TIMEOUT_S", 1)
    for name in KEY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with QdrantPeer() as peer:
        yield peer


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ten drawn photos, which runs of the trainer are tried on."""
    folder = tmp_path_factory.mktemp("images")
    for n in range(10):
        draw_photo(folder / f"{n}.jpg", n)
    return folder


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket `photos` in a server of S3 on this machine, and a client of it."""
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
    server = pytest.importorskip("moto.server", reason="moto is not installed").ThreadedMotoServer(port=0)
    import boto3

    server.start()
    host, port = server.get_host_and_port()
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    client = boto3.client("s3")
    client.create_bucket(Bucket="photos")
    yield client
    s3fs.S3FileSystem.clear_instance_cache()  # its clients know this server
    urlopen(f"http://{host}:{port}/moto-api/reset", data=b"").close()  # what it holds is the process's, not its own
    server.stop()
