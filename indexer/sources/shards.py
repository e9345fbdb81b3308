"""Tar shards: a name that stands for many, what lies where in one, and compressed ones.

A plain shard is indexed and never unpacked. The middle of a compressed one cannot be reached, so it is unpacked to a
temporary file that goes when the process ends; every process of a run unpacks its own. This module does not import
torch: the decoder processes import it.
"""

import atexit
import bz2
import gzip
import itertools
import math
import os
import re
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

from ..errors import SeenitError, os_reason
from .place import is_address

MAX_NAMES = 100_000  # that one name with braces stands for
MAX_EXPANSION = 10  # unpacked over packed size: photos are compressed already, so what grows more is no shard of photos
SMALL_BYTES = 1_000_000_000  # what a shard of any size may grow to
CHUNK_BYTES = 1 << 20

OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open}
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2")
UNKNOWN = (".tar.xz", ".tar.zst")  # one may ask for gigabytes to unpack, the other has no reader in the library


class Member(NamedTuple):
    """An image in a tar file."""

    tar: str  # path or address of the plain tar file
    start: int  # bytes
    size: int
    name: str
    mtime_s: float  # as the tar file has it


@dataclass(frozen=True)
class Shard:
    """The images in a tar file, told by their first bytes, in their order.

    stat  tells one state of a tar file at an address from another; None for one on a disk
    """

    members: tuple[Member, ...]
    stat: object = None


def expand_braces(name: str) -> list[str]:
    """The names that one stands for, as WebDataset and shells have it: `a-{000..002}.tar` or `{train,val}.tar`.

    Several pairs of braces stand for all their combinations; braces around anything else are left alone.
    """
    parts = re.split(r"(\{\d+\.\.\d+\}|\{[^{},]*(?:,[^{},]*)+\})", name)
    choices = [_choices(part) if number % 2 else [part] for number, part in enumerate(parts)]
    if math.prod(map(len, choices)) > MAX_NAMES:
        raise SeenitError(f"{name} stands for too many names; give {MAX_NAMES:,} or fewer at a time")
    return ["".join(parts) for parts in itertools.product(*choices)]


def is_shard(path: str) -> bool:
    """Whether a file is a tar file by its name, plain or compressed."""
    return path.lower().endswith((".tar", *COMPRESSED, *UNKNOWN))


def index_shard(path: str, *, allow_private: bool = False) -> Shard:
    """What images a tar file holds; it may lie at an address.

    Only regular members that lie in the file whole count: links, devices and sparse files are left out.
    SeenitError where it cannot be read to its end.
    """
    if path.lower().endswith(UNKNOWN):
        raise SeenitError(f"{path} is compressed in a way that is not read here; unpack it to a plain .tar")
    packed = path.lower().endswith(COMPRESSED)
    if packed and is_address(path):
        raise SeenitError(f"{path} is compressed, and its middle cannot be reached; download it, or unpack it there")
    plain = _unpack(path) if packed else path
    try:
        if is_address(plain):
            from .remote import RemoteFile, open_remote

            with open_remote(plain, allow_private=allow_private) as far:
                raw = far.raw
                assert isinstance(raw, RemoteFile)
                return Shard(_members(plain, far), raw.stat)
        with open(plain, "rb") as file:
            return Shard(_members(plain, file))
    except (OSError, tarfile.TarError) as error:
        raise SeenitError(f"cannot read the shard {path}: {error}; fetch it again or leave it out") from error


def _members(plain: str, raw: IO[bytes]) -> tuple[Member, ...]:
    """tarfile reads headers only; a size that lies leads beyond the end, which is an error."""
    from ..images.decode import (
        SNIFF_BYTES,
        sniff,
    )  # here, since it brings Pillow, and whoever asks for facts needs none

    raw.seek(0, os.SEEK_END)
    length = raw.tell()
    raw.seek(0)
    members = []
    with tarfile.open(fileobj=raw, mode="r:") as shard:
        for member in shard:
            if not member.isreg() or member.issparse():
                continue
            if member.size < 0 or member.offset_data + member.size > length:
                raise tarfile.ReadError("unexpected end of data")
            raw.seek(member.offset_data)
            if sniff(raw.read(min(SNIFF_BYTES, member.size))) is not None:
                members.append(Member(plain, member.offset_data, member.size, member.name, float(member.mtime)))
    return tuple(members)


def _choices(braces: str) -> list[str]:
    numbers = re.fullmatch(r"\{(\d+)\.\.(\d+)\}", braces)
    if numbers is None:
        return braces[1:-1].split(",")
    first, last = numbers.groups()
    width = max(map(len, numbers.groups())) if "0" in (first[0], last[0]) else 0
    return [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)[: MAX_NAMES + 1]]


def _unpack(path: str) -> str:
    """The path of a plain copy."""
    limit = max(SMALL_BYTES, MAX_EXPANSION * os.path.getsize(path))
    folder = tempfile.TemporaryDirectory(prefix="seenit_shard_", ignore_cleanup_errors=True)
    atexit.register(folder.cleanup)
    target = os.path.join(folder.name, os.path.basename(path))  # messages name it
    opener = OPENERS[os.path.splitext(path.lower())[1]]
    try:
        with opener(path, "rb") as packed, open(target, "wb") as plain:
            _copy(packed, plain, limit, path)
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            what = f"{os_reason(error)}; make room there, or name another folder by TMPDIR"
        else:
            what = f"{error}; fetch it again or leave it out"
        raise SeenitError(f"cannot unpack {path} to {folder.name}: {what}") from error
    return target


def _copy(packed: IO[bytes], plain: IO[bytes], limit: int, path: str) -> None:
    size = 0
    while chunk := packed.read(CHUNK_BYTES):
        size += len(chunk)
        if size > limit:
            raise SeenitError(f"{path} unpacks to more than {limit / 1e9:.0f} GB, unlike photos; unpack it yourself")
        plain.write(chunk)
