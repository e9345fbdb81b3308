"""A weights file of any layout taken into the cache under a name.

What is surprising: the file is converted to our own layout unless its bytes have to stay, because its hash names the
indexes that were made with it.
"""

import filecmp
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock

from ..atomic_file import atomic_path
from ..errors import CheckpointError, SeenitError
from .cache import SHIPPED, cache_folder, check_architecture, file_in, local_path, official_path, own_header
from .checkpoint import load_checkpoint, save_checkpoint
from .layouts import Checkpoint
from .vit import ARCHITECTURES


def import_backbone(file: str | Path, name: str | None = None) -> Path:
    """Copy a backbone of any layout that is read into the cache, and return its path there.

    name  how it is called from now on; default: as the file calls itself or is called

    It is kept in our own layout, with two exceptions that keep their bytes, and so their hash and every index made
    with them: files that are in our layout already, and torch files under an official name, which stand for that
    official backbone as if they had been fetched. A name that is taken by other weights is refused.
    """
    source = file_in(Path(file).expanduser())
    checkpoint = load_checkpoint(source)
    name = _safe_name(name or re.sub(r"_reg4$", "_reg", checkpoint.name))
    target = cache_folder() / f"{name}.safetensors"
    if name in ARCHITECTURES:
        check_architecture(checkpoint.architecture, name)
        target = official_path(name) if zipfile.is_zipfile(source) else target
    with (
        _cache_writes(),
        FileLock(cache_folder() / "import.lock"),
        suppress(_AlreadyThere),
        atomic_path(target) as temporary,
    ):
        if target.suffix == ".pth" or own_header(source):
            shutil.copyfile(source, temporary)
            if load_checkpoint(temporary).hash != checkpoint.hash:
                raise CheckpointError(f"{source} changed while it was read; import it again when it is complete")
        else:
            _convert(checkpoint, name, temporary)
        taken = local_path(name)
        if taken is not None:
            if taken != target or not filecmp.cmp(taken, temporary, shallow=False):
                raise SeenitError(f"the name {name} is taken by other weights at {taken}; choose another with --name")
            raise _AlreadyThere
    return target


class _AlreadyThere(Exception):
    """The same bytes are in the cache: nothing is to be replaced."""


def _safe_name(name: str) -> str:
    """The name, if it is a file name on every system and is not one of ours."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) or name.endswith("."):
        raise SeenitError(f"{name!r} cannot name a backbone; choose letters, digits, '-', '_' and '.' with --name")
    if name.lower() in ("auto", SHIPPED) or re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name):
        raise SeenitError(f"the name {name} is reserved; choose another with --name")
    return name


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
