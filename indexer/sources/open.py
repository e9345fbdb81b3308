"""Which source a user's words mean."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from ..errors import AwayError, SeenitError
from .entry import Source
from .lists import SUFFIXES as LIST_SUFFIXES
from .lists import ListSource, folder_of
from .place import is_address
from .shards import expand_braces, is_shard
from .tables import Columns, TableSource, is_table
from .tars import TarSource

Kind = Literal["list", "table", "tar", "remote"]
STEP = "give a folder, a list (.txt), a table (.csv, .parquet), tar shards, or an address"


@dataclass(frozen=True)
class SourceSpec:
    """A source that is no folder, as an index remembers it.

    address      an absolute path, with braces for many tar files, or an address
    path_column  of a table; empty: found by name
    key_column   likewise; empty: none, or found by name
    keyed        whether a table's rows have keys of their own
    """

    kind: Kind
    address: str
    path_column: str = ""
    key_column: str = ""
    keyed: bool = False

    @property
    def base(self) -> str:
        """What the keys' paths begin with, as people see them; empty where a key is a whole path or address."""
        if self.kind == "tar":
            return folder_of(self.address)
        if self.kind == "remote" or self.keyed:
            return self.address.rstrip("/")
        return ""

    def as_json(self) -> dict[str, object]:
        return {name: value for name, value in asdict(self).items() if value}

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> "SourceSpec":
        """ValueError or TypeError for what `as_json` does not write."""
        spec = cls(**values)  # type: ignore[arg-type]
        texts = (spec.kind, spec.address, spec.path_column, spec.key_column)
        if spec.kind not in get_args(Kind) or not all(type(text) is str for text in texts) or not spec.address:
            raise ValueError("no source")
        return spec


def spec_of(given: str | Path, *, path_column: str = "", key_column: str = "") -> SourceSpec | None:
    """What a user's words mean where they name no folder; None where they do, or nothing that is there.

    SeenitError for columns of what is no table.
    """
    text = os.fspath(given)
    if is_address(text):
        address = text.rstrip("/")
    else:
        address = os.path.abspath(os.path.expanduser(text))
        if os.path.isdir(address):
            return None
    kind = _kind(address)
    if kind is None:
        return None
    if kind != "table" and (path_column or key_column):
        raise SeenitError(f"{text} is no table, and has no columns; leave --path-column and --key-column out")
    return SourceSpec(kind, address, path_column, key_column)


def open_spec(spec: SourceSpec, *, allow_private: bool = False) -> Source:
    """The source that a spec means; AwayError where its file is not there."""
    if not is_address(spec.address) and spec.kind != "tar" and not os.path.isfile(spec.address):
        raise AwayError(f"there is no file at {spec.address}; {STEP}")
    if spec.kind == "list":
        return ListSource(spec.address, allow_private=allow_private)
    if spec.kind == "table":
        return TableSource(spec.address, Columns(spec.path_column, spec.key_column), allow_private=allow_private)
    if spec.kind == "tar":
        return TarSource(spec.address, allow_private=allow_private)
    from .remote import is_http
    from .remote_source import RemoteSource

    if is_http(spec.address):
        raise SeenitError(
            f"{spec.address} is no list, table or tar file, and web servers list no folders; name its images in a list"
        )
    return RemoteSource(spec.address)


def settled(spec: SourceSpec, *, allow_private: bool = False) -> SourceSpec:
    """The spec of a table with what only its header tells; SeenitError where a column is missing."""
    if spec.kind != "table":
        return spec
    table = open_spec(spec, allow_private=allow_private)
    assert isinstance(table, TableSource)
    return SourceSpec(spec.kind, spec.address, spec.path_column, spec.key_column, table.has_keys)


def _kind(address: str) -> Kind | None:
    plain = address.partition("?")[0].lower() if is_address(address) else address.lower()
    if plain.endswith(LIST_SUFFIXES):
        return "list"
    if is_table(plain):
        return "table"
    names = [plain] if os.path.exists(address) else expand_braces(plain)
    if all(map(is_shard, names)):
        return "tar"
    return "remote" if is_address(address) else None
