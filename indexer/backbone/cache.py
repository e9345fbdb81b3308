"""Where a backbone's weights lie: names, the cache folder, the file that ships with seenit, and fetching.

Names are the 8 official DINOv2 models, the one that ships with seenit, and those imported by the user. Official files
are kept in the cache folder under their official file names, imported ones as `NAME.safetensors` of our own layout.
What is surprising: an imported file under an official name stands for that official backbone.
"""

import difflib
import json
import os
import re
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import platformdirs
import torch
from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError, DownloadError, SeenitError
from ..messages import Say, say_nothing
from ..printable import megabytes
from .checkpoint import load_checkpoint
from .patience import Patience
from .vit import ARCHITECTURES, Architecture, VisionTransformer

SHIPPED = "seenit_vits14"
OFFICIAL_ADDRESS = "https://dl.fbaipublicfiles.com/dinov2"
DEFAULT_PATIENCE = Patience()


def backbone_path(
    name: str, *, offline: bool = False, patience: Patience = DEFAULT_PATIENCE, say: Say = say_nothing
) -> Path:
    """The weights file of a name; an official one is fetched unless it is here.

    say  told before anything is fetched: what, how much, whence and where to
    Raises SeenitError for an unknown name, DownloadError where it cannot or may not be fetched.
    """
    path = local_path(name)
    if path is not None:
        return path
    if name not in ARCHITECTURES:
        raise unknown_name(name)
    url = official_url(name)
    by_hand = f"bring {url} here by other means and: seenit backbone import FILE"
    if offline_by_environment():
        raise DownloadError(f"backbone {name} is not in {cache_folder()} and nothing may be fetched; {by_hand}")
    if offline:
        raise DownloadError(f"backbone {name} is not in {cache_folder()}; fetch it with: seenit backbone fetch {name}")
    architecture = ARCHITECTURES[name]

    def check(path: Path) -> None:
        check_architecture(load_checkpoint(path).architecture, name)

    from .download import Download  # here, since weights that are on the disk need no network

    expected = 4 * count_parameters(architecture)  # bytes, in float32
    say(f"fetching backbone {name}, about {megabytes(expected)}, from {url} to {cache_folder()}; this is done once")
    most = expected * 11 // 10 + 10_000_000
    try:
        return Download(url, official_path(name), max_size=most, check=check, patience=patience).run()
    except DownloadError as error:
        raise DownloadError(f"{error}; or {by_hand}") from error


def cache_folder() -> Path:
    """Where backbones are kept: SEENIT_CACHE/backbones, else in the user's cache folder of this system."""
    root = os.environ.get("SEENIT_CACHE") or platformdirs.user_cache_dir("seenit", appauthor=False)
    return Path(root) / "backbones"


def official_url(name: str) -> str:
    """The address of an official backbone; SEENIT_DOWNLOAD_BASE in the environment names a mirror."""
    base = os.environ.get("SEENIT_DOWNLOAD_BASE", OFFICIAL_ADDRESS).rstrip("/")
    return f"{base}/{name.removesuffix('_reg')}/{official_path(name).name}"


def local_path(name: str) -> Path | None:
    """The file of a name that needs no fetching."""
    if not re.fullmatch(r"[\w.-]+", name):
        return None
    if name == SHIPPED:
        places = [_shipped_path()]
    else:
        places = [official_path(name)] if name in ARCHITECTURES else []
        places.append(cache_folder() / f"{name}.safetensors")
    return next((path for path in places if path.is_file()), None)


def _shipped_path() -> Path:
    return Path(str(resources.files("indexer"))) / "assets" / f"{SHIPPED}.safetensors"


def official_path(name: str) -> Path:
    stem = re.sub(r"_reg$", "_reg4", name)
    return cache_folder() / f"{stem}_pretrain.pth"


def imported_files() -> dict[str, Path]:
    """By name."""
    return {path.stem: path for path in sorted(cache_folder().glob("*.safetensors")) if not path.name.startswith(".")}


def file_in(path: Path) -> Path:
    """The weights file itself; of a folder in Hugging Face's manner the file in it."""
    if path.is_dir():
        inside = [path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()]
        if not inside:
            raise CheckpointError(f"{path} is a folder without model.safetensors; give the path of a weights file")
        return inside[0]
    if not path.exists():
        raise CheckpointError(f"no weights file at {path}; check the path, or see the names by: seenit backbone list")
    return path


def unknown_name(name: str) -> SeenitError:
    """The error to raise; it names what was perhaps meant."""
    names = ["auto", SHIPPED, *ARCHITECTURES, *imported_files()]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "see them all by: seenit backbone list"
    return SeenitError(f"no backbone is called {name!r} and no such file is here; {hint}")


def check_architecture(architecture: Architecture, name: str) -> None:
    """CheckpointError unless this is the network of that official name."""
    if architecture != ARCHITECTURES[name]:
        raise CheckpointError(
            f"these are not the weights of {name}: {architecture.embed_dim} channels, {architecture.depth} blocks,"
            f" {architecture.num_registers} registers; choose another name with --name"
        )


def own_header(path: Path) -> dict[str, Any] | None:
    """The description in a file of our own layout, its tensors left unread; None for any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["seenit"])
        return header if isinstance(header, dict) else None
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


@lru_cache(maxsize=64)
def count_parameters(architecture: Architecture) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in VisionTransformer(architecture).parameters())


def offline_by_environment() -> bool:
    return os.environ.get("SEENIT_OFFLINE", "").lower() not in ("", "0", "false", "no")
