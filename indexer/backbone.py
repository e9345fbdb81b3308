"""A backbone by name or path: found, fetched or imported, then loaded and ready for pictures.

Names are the 8 official DINOv2 models, the one that ships with seenit, and those imported by the user. Official files
are kept in the cache folder under their official file names, imported ones as `NAME.safetensors` of our own layout.
`auto` prefers the official ViT-S/14 and must not keep anyone waiting: without a network it falls back to the shipped
backbone within seconds, and remembers that for a day.
"""

import difflib
import filecmp
import json
import os
import re
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import platformdirs
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .checkpoint import (
    EXTRA_PREFIX,
    Checkpoint,
    Preprocessing,
    best_dtype,
    build_model,
    load_checkpoint,
    save_checkpoint,
)
from .download import Patience, download, probe
from .errors import CheckpointError, DownloadError, SeenitError
from .vit import ARCHITECTURES, Architecture, TokenFeatures, VisionTransformer

SHIPPED = "seenit_vits14"
PREFERRED = "dinov2_vits14"  # what `auto` wants
OFFICIAL_ADDRESS = "https://dl.fbaipublicfiles.com/dinov2"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WEIGHT_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")

PROBE_S = 4.0  # `auto`, to decide whether the official address can be reached
ASKED_PATIENCE = Patience()
AUTO_PATIENCE = Patience(connect_s=3.0, stall_s=10.0, attempts=3)
RETRY_AFTER_S = 24 * 3600  # `auto`, to forget that the address could not be reached

Say = Callable[[str], object]


def say_to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True, eq=False)
class Backbone:
    """A loaded network with what it needs to know of pixels."""

    name: str
    spec: str  # loads the same backbone again: its name, or an absolute path
    hash: str  # 32 hex digits, of the weights file's bytes
    architecture: Architecture
    preprocessing: Preprocessing
    provenance: dict[str, str]
    prior: dict[str, Tensor] | None  # the descriptor's statistics that came with the weights, if any did
    model: VisionTransformer  # for inference only, see cpu_fusion
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def load(
        cls,
        spec: str | Path = "auto",
        *,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
        say: Say = say_to_stderr,
    ) -> "Backbone":
        """Load a backbone, fetching an official one that is not in the cache.

        spec     `auto`, a name of `list_backbones`, or the path of a weights file (or of a folder with one)
        device   `auto` (cuda, else mps, else cpu) or a name that torch knows
        dtype    `auto` (the device's fastest) or float32, bfloat16, float16; results are float32 in any case
        offline  fetch nothing; SEENIT_OFFLINE=1 in the environment says the same
        say      gets one line on which backbone was taken and why
        """
        where = _choose_device(device)
        if dtype != "auto" and dtype not in DTYPES:
            raise SeenitError(f"unknown dtype {dtype!r}; choose auto, {', '.join(DTYPES)}")
        chosen = _choose(spec, offline or _offline_by_environment())
        checkpoint = load_checkpoint(chosen.path)
        number_format = best_dtype(where) if dtype == "auto" else DTYPES[dtype]
        if where.type == "cpu":
            _bound_threads()
        name = chosen.name or checkpoint.name
        backbone = cls(
            name=name,
            spec=chosen.name or str(chosen.path),
            hash=checkpoint.hash,
            architecture=checkpoint.architecture,
            preprocessing=checkpoint.preprocessing,
            provenance=checkpoint.provenance,
            prior={key.removeprefix(EXTRA_PREFIX): value.clone() for key, value in checkpoint.extra.items()} or None,
            model=build_model(checkpoint, number_format, where, fused=True),
            device=where,
            dtype=number_format,
        )
        say(f"backbone {name} on {where} in {str(number_format).removeprefix('torch.')}: {chosen.why}")
        return backbone

    @property
    def depth(self) -> int:
        return self.architecture.depth

    @property
    def embed_dim(self) -> int:
        return self.architecture.embed_dim

    @property
    def patch_size(self) -> int:
        return self.architecture.patch_size

    def intermediate(
        self, pixels: np.ndarray | Tensor, layers: Sequence[int], *, norm: bool = True
    ) -> list[TokenFeatures]:
        """The tokens after chosen blocks.

        pixels   (B, H, W, 3) uint8 RGB; H and W multiples of the patch size
        layers   indices of blocks, the first is 0, the last depth - 1; blocks after the last one asked do not run
        norm     apply the network's final norm to each
        returns  one TokenFeatures for each layer in the order asked, float32, on the backbone's device
        """
        if isinstance(pixels, np.ndarray):
            pixels = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise ValueError(f"pixels are {pixels.dtype} {tuple(pixels.shape)}; uint8 (B, H, W, 3) is needed")
        with torch.inference_mode():
            outputs = self.model.intermediate(self._normalised(pixels), layers, norm)
            return [
                replace(o, cls=o.cls.float(), registers=o.registers.float(), patches=o.patches.float()) for o in outputs
            ]

    def _normalised(self, pixels: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 -> (B, 3, H, W) with mean and deviation taken out."""
        mean, std = (torch.tensor(v, device=self.device) for v in (self.preprocessing.mean, self.preprocessing.std))
        values = pixels.to(self.device).float() * (1 / (255 * std)) - mean / std  # (B, H, W, 3)
        return values.to(self.dtype).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class BackboneInfo:
    """What can be said of a backbone without loading it."""

    name: str
    where: Literal["shipped", "cached", "imported", "downloadable", "damaged"]
    path: Path | None  # None where it has to be fetched
    size: int  # bytes on disk; of a downloadable one about that
    parameters: int
    embed_dim: int
    patch_size: int
    registers: int


def list_backbones() -> list[BackboneInfo]:
    """Every backbone that has a name here: shipped, imported, official."""
    infos = [_inspect(SHIPPED, "shipped", _shipped_path())] if _shipped_path().is_file() else []
    imported = _imported()
    infos += [_inspect(name, "imported", path) for name, path in imported.items()]
    for name, architecture in ARCHITECTURES.items():
        path = _official_path(name)
        if path.is_file():
            infos.append(_info(name, "cached", path, path.stat().st_size, architecture))
        elif name not in imported:
            infos.append(_info(name, "downloadable", None, 4 * _count_parameters(architecture), architecture))
    return infos


def backbone_path(name: str, *, offline: bool = False, patience: Patience = ASKED_PATIENCE) -> Path:
    """The weights file of a name; an official one is fetched unless it is here.

    Raises SeenitError for an unknown name, DownloadError where it cannot be fetched.
    """
    path = _local_path(name)
    if path is not None:
        return path
    if name not in ARCHITECTURES:
        raise _unknown(name)
    url = official_url(name)
    by_hand = f"bring {url} here by other means and: seenit backbone import FILE"
    if offline or _offline_by_environment():
        raise DownloadError(f"backbone {name} is not in {cache_folder()} and nothing may be fetched; {by_hand}")
    architecture = ARCHITECTURES[name]

    def check(path: Path) -> None:
        _check_architecture(load_checkpoint(path).architecture, name)

    expected = 4 * _count_parameters(architecture)  # bytes, in float32
    try:
        return download(
            url, _official_path(name), max_size=expected * 11 // 10 + 10_000_000, check=check, patience=patience
        )
    except DownloadError as error:
        raise DownloadError(f"{error}; or {by_hand}") from error


def import_backbone(file: str | Path, name: str | None = None) -> Path:
    """Copy a backbone of any layout that is read into the cache, and return its path there.

    name  how it is called from now on; default: as the file calls itself or is called

    It is kept in our own layout, with two exceptions that keep their bytes, and so their hash and every index made
    with them: files that are in our layout already, and torch files under an official name, which stand for that
    official backbone as if they had been fetched. A name that is taken by other weights is refused.
    """
    source = _file_in(Path(file).expanduser())
    checkpoint = load_checkpoint(source)
    name = _safe_name(name or re.sub(r"_reg4$", "_reg", checkpoint.name))
    target = cache_folder() / f"{name}.safetensors"
    if name in ARCHITECTURES:
        _check_architecture(checkpoint.architecture, name)
        target = _official_path(name) if zipfile.is_zipfile(source) else target
    with _cache_writes(), FileLock(cache_folder() / "import.lock"):
        temporary = target.with_name(f".{target.name}.import")
        try:
            if target.suffix == ".pth" or _own_header(source):
                shutil.copyfile(source, temporary)
                if load_checkpoint(temporary).hash != checkpoint.hash:
                    raise CheckpointError(f"{source} changed while it was read; import it again when it is complete")
            else:
                _convert(checkpoint, name, temporary)
            taken = _local_path(name)
            if taken is None:
                os.replace(temporary, target)
            elif taken != target or not filecmp.cmp(taken, temporary, shallow=False):
                raise SeenitError(f"the name {name} is taken by other weights at {taken}; choose another with --name")
        finally:
            temporary.unlink(missing_ok=True)
    return target


def cache_folder() -> Path:
    """Where backbones are kept: SEENIT_CACHE/backbones, else in the user's cache folder of this system."""
    root = os.environ.get("SEENIT_CACHE") or platformdirs.user_cache_dir("seenit", appauthor=False)
    return Path(root) / "backbones"


def official_url(name: str) -> str:
    """The address of an official backbone; SEENIT_DOWNLOAD_BASE in the environment names a mirror."""
    base = os.environ.get("SEENIT_DOWNLOAD_BASE", OFFICIAL_ADDRESS).rstrip("/")
    return f"{base}/{name.removesuffix('_reg')}/{_official_path(name).name}"


@dataclass(frozen=True)
class _Choice:
    path: Path
    name: str | None  # None for a path
    why: str


def _choose(spec: str | Path, offline: bool) -> _Choice:
    text = str(spec)
    if text == "auto":
        return _choose_automatically(offline)
    if isinstance(spec, str) and (text in ARCHITECTURES or _local_path(text) is not None):
        here = _local_path(text) is not None
        path = backbone_path(text, offline=offline)
        return _Choice(path, text, f"as asked, {'from' if here else 'fetched to'} {path}")
    path = Path(text).expanduser()
    looks_like_path = isinstance(spec, Path) or re.search(r"[/\\]", text) or text.endswith(WEIGHT_SUFFIXES)
    if not looks_like_path and not path.exists():
        raise _unknown(text)
    path = _file_in(path).resolve()
    return _Choice(path, None, f"as asked, from {path}")


def _choose_automatically(offline: bool) -> _Choice:
    """The official ViT-S/14 if it is here or can be fetched now, else the shipped backbone."""
    path = _local_path(PREFERRED)
    if path is not None:
        return _Choice(path, PREFERRED, "the official one, from the cache")
    if offline:
        why = "nothing may be fetched"
    else:
        failed = _recent_failure()
        try:
            if failed is None:
                probe(official_url(PREFERRED), PROBE_S)
                return _Choice(backbone_path(PREFERRED, patience=AUTO_PATIENCE), PREFERRED, "the official one, fetched")
            why = f"{failed} (asked again after a day, or now by: seenit backbone path {PREFERRED})"
        except DownloadError as error:
            why = str(error).split(";")[0]
            _remember_failure(why)
    path = _shipped_path()
    if not path.is_file():
        raise SeenitError(f"no backbone is here: {why}, and the shipped {path} is missing; install seenit again")
    return _Choice(path, SHIPPED, f"it ships with seenit; the official {PREFERRED} is not here: {why}")


def _failure_note() -> Path:
    return cache_folder() / "unreachable.json"


def _recent_failure() -> str | None:
    """Why the official address failed within the last day, None if it did not."""
    try:
        note = json.loads(_failure_note().read_text("utf-8"))
        recent = 0 <= time.time() - float(note["at"]) < RETRY_AFTER_S
        return str(note["why"]) if recent and note["url"] == official_url(PREFERRED) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no note, or a damaged one: ask the network


def _remember_failure(why: str) -> None:
    note = {"url": official_url(PREFERRED), "at": time.time(), "why": why}
    with suppress(OSError):  # a cache that cannot be written costs the next run a few seconds, no more
        cache_folder().mkdir(parents=True, exist_ok=True)
        _failure_note().write_text(json.dumps(note), "utf-8")


def _local_path(name: str) -> Path | None:
    """The file of a name that needs no fetching."""
    if not re.fullmatch(r"[\w.-]+", name):
        return None
    if name == SHIPPED:
        places = [_shipped_path()]
    else:
        places = [_official_path(name)] if name in ARCHITECTURES else []
        places.append(cache_folder() / f"{name}.safetensors")
    return next((path for path in places if path.is_file()), None)


def _shipped_path() -> Path:
    return Path(str(resources.files(__package__))) / "assets" / f"{SHIPPED}.safetensors"


def _official_path(name: str) -> Path:
    stem = re.sub(r"_reg$", "_reg4", name)
    return cache_folder() / f"{stem}_pretrain.pth"


def _imported() -> dict[str, Path]:
    return {path.stem: path for path in sorted(cache_folder().glob("*.safetensors")) if not path.name.startswith(".")}


def _file_in(path: Path) -> Path:
    """The weights file itself; of a folder in Hugging Face's manner the file in it."""
    if path.is_dir():
        inside = [path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()]
        if not inside:
            raise CheckpointError(f"{path} is a folder without model.safetensors; give the path of a weights file")
        return inside[0]
    if not path.exists():
        raise CheckpointError(f"no weights file at {path}; check the path, or see the names by: seenit backbone list")
    return path


def _unknown(name: str) -> SeenitError:
    names = ["auto", SHIPPED, *ARCHITECTURES, *_imported()]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "see them all by: seenit backbone list"
    return SeenitError(f"no backbone is called {name!r} and no such file is here; {hint}")


def _safe_name(name: str) -> str:
    """The name, if it is a file name on every system and is not one of ours."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) or name.endswith("."):
        raise SeenitError(f"{name!r} cannot name a backbone; choose letters, digits, '-', '_' and '.' with --name")
    if name.lower() in ("auto", SHIPPED) or re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name):
        raise SeenitError(f"the name {name} is reserved; choose another with --name")
    return name


def _check_architecture(architecture: Architecture, name: str) -> None:
    if architecture != ARCHITECTURES[name]:
        raise CheckpointError(
            f"these are not the weights of {name}: {architecture.embed_dim} channels, {architecture.depth} blocks,"
            f" {architecture.num_registers} registers; choose another name with --name"
        )


def _convert(checkpoint: Checkpoint, name: str, path: Path) -> None:
    all_half = all(value.dtype == torch.float16 for value in checkpoint.state.values())
    save_checkpoint(
        path,
        checkpoint.state,
        checkpoint.architecture,
        name=name,
        preprocessing=checkpoint.preprocessing,
        provenance={**checkpoint.provenance, "imported_from": checkpoint.hash},
        extra=checkpoint.extra,
        dtype="float16" if all_half else "float32",
    )


def _own_header(path: Path) -> dict[str, Any] | None:
    """What a file of our own layout says of itself, its tensors left unread; None for any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["seenit"])
        return header if isinstance(header, dict) else None
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def _inspect(name: str, where: Literal["shipped", "imported"], path: Path) -> BackboneInfo:
    size = path.stat().st_size
    try:
        return _info(name, where, path, size, Architecture(**(_own_header(path) or {})["architecture"]))
    except (KeyError, TypeError, ValueError):
        return BackboneInfo(name, "damaged", path, size, 0, 0, 0, 0)


def _info(
    name: str,
    where: Literal["shipped", "cached", "imported", "downloadable"],
    path: Path | None,
    size: int,
    architecture: Architecture,
) -> BackboneInfo:
    return BackboneInfo(
        name,
        where,
        path,
        size,
        parameters=_count_parameters(architecture),
        embed_dim=architecture.embed_dim,
        patch_size=architecture.patch_size,
        registers=architecture.num_registers,
    )


@lru_cache(maxsize=64)
def _count_parameters(architecture: Architecture) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in VisionTransformer(architecture).parameters())


def _offline_by_environment() -> bool:
    return os.environ.get("SEENIT_OFFLINE", "").lower() not in ("", "0", "false", "no")


def _choose_device(device: str) -> torch.device:
    if device == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
        return chosen
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SeenitError(f"device {device!r} cannot be used: {reason}; choose auto or cpu") from error


def _bound_threads() -> None:
    """No more threads than this process may use processors: a container's torch counts the whole machine's."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # Linux's limit on a container, "QUOTA PERIOD" or "max PERIOD"
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        allowed = min(allowed, max(1, round(int(quota) / int(period))))
    if torch.get_num_threads() > allowed:
        torch.set_num_threads(allowed)


@contextmanager
def _cache_writes() -> Iterator[None]:
    """The cache folder made, and an OSError while writing in it told in one line."""
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise SeenitError(
            f"cannot write in {cache_folder()}: {error.strerror or error};"
            " make it writable, or choose another place by SEENIT_CACHE"
        ) from error
