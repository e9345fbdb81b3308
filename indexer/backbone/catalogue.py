"""Every backbone that has a name here, told without loading any.

What is surprising: of a file in our own layout only the header is read; an official file is taken for what its name
says, since it was checked when it was fetched.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .cache import SHIPPED, count_parameters, imported_files, local_path, official_path, own_header
from .vit import ARCHITECTURES, Architecture


@dataclass(frozen=True)
class BackboneInfo:
    """What is known of a backbone without loading it."""

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
    shipped, imported = local_path(SHIPPED), imported_files()
    infos = [] if shipped is None else [_inspect(SHIPPED, "shipped", shipped)]
    infos += [_inspect(name, "imported", path) for name, path in imported.items()]
    for name, architecture in ARCHITECTURES.items():
        path = official_path(name)
        if path.is_file():
            infos.append(_info(name, "cached", path, path.stat().st_size, architecture))
        elif name not in imported:
            infos.append(_info(name, "downloadable", None, 4 * count_parameters(architecture), architecture))
    return infos


def _inspect(name: str, where: Literal["shipped", "imported"], path: Path) -> BackboneInfo:
    size = path.stat().st_size
    try:
        return _info(name, where, path, size, Architecture(**(own_header(path) or {})["architecture"]))
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
        parameters=count_parameters(architecture),
        embed_dim=architecture.embed_dim,
        patch_size=architecture.patch_size,
        registers=architecture.num_registers,
    )
