"""Named tensors out of a file that may be broken or hostile.

Two containers are read: safetensors, and the zip files of torch.save. Nothing in them is executed, and nothing is
allocated on their word alone: every claim about sizes is held against the file's own size first.
"""

import hashlib
import pickletools
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError, on_one_line

SHARD = (
    "it is one process's share of a training run sharded by FSDP, whose pieces only that run can join;"
    " give the whole weights, which DINOv2 writes as eval/training_N/teacher_checkpoint.pth"
)
_MAX_HEADER_BYTES = 16_000_000  # the largest official network needs 100 kB


def read_tensors(path: Path) -> tuple[str, dict[str, Tensor], dict[str, str]]:
    """The hash, the named tensors and the text metadata of a weights file; its kind is told by content.

    The hash is the first 128 bits of BLAKE2b of the file's bytes, in hex. Tensors may be views of the file on disk.
    """
    if path.suffix == ".distcp" or (path.is_dir() and any(path.glob("*.distcp"))):
        raise CheckpointError(f"{path} is a distributed checkpoint; give the whole weights, saved by torch.save")
    if not path.is_file():
        raise CheckpointError(f"no weights file at {path}; give the path of a .pth or .safetensors file")
    try:
        with open(path, "rb") as file:
            head = file.read(9)
        if head.startswith(b"PK\x03\x04"):
            tensors, metadata = _read_torch_zip(path)
        elif len(head) == 9 and head[8:] == b"{":
            tensors, metadata = _read_safetensors(path, int.from_bytes(head[:8], "little"))
        elif head[:1] == b"\x80":
            raise CheckpointError(f"{path} is a bare pickle; load it where you trust it and save it as safetensors")
        else:
            raise CheckpointError(f"{path} is neither a safetensors nor a torch file; is the download complete?")
        return _file_hash(path), tensors, metadata
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


def _file_hash(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _read_safetensors(path: Path, header_bytes: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    if header_bytes > min(_MAX_HEADER_BYTES, path.stat().st_size):
        raise CheckpointError(f"{path} is damaged: it claims a header of {header_bytes} bytes; fetch it again")
    try:
        with safe_open(path, framework="pt") as file:  # checks that shapes and offsets fit the file exactly
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError, MemoryError) as error:
        raise CheckpointError(f"{path} is damaged or incomplete: {on_one_line(error)}; fetch it again") from error


# All that torch.save writes for a dict of tensors. Even weights_only lets a few more callables through, for instance
# bytearray(10**12), and this check comes before any of them could run.
_PICKLE_GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "torch FloatStorage",
    "torch HalfStorage",
    "torch BFloat16Storage",
    "torch DoubleStorage",
}


def _read_torch_zip(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    file_bytes = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(member.compress_type for member in members) or sum(m.file_size for m in members) > file_bytes:
                raise CheckpointError(f"{path} is not a torch file: it unpacks to more than it holds")
            pickles = [m for m in members if m.filename.endswith("data.pkl") and m.file_size < _MAX_HEADER_BYTES]
            if len(pickles) != 1:
                raise CheckpointError(f"{path} is a zip file without the data.pkl of torch.save")
            for opcode, argument, _ in pickletools.genops(archive.read(pickles[0])):
                if opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4") or (
                    opcode.name == "GLOBAL" and argument not in _PICKLE_GLOBALS
                ):
                    what = on_one_line(str(argument or opcode.name))
                    if "distributed" in what and "shard" in what.lower():
                        raise CheckpointError(f"{path} cannot be used: {SHARD}")
                    raise CheckpointError(f"{path} holds more than tensors ({what}) and is refused")
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (CheckpointError, OSError):
        raise
    except Exception as error:  # a damaged pickle can fail in any way at all
        raise CheckpointError(f"{path} is damaged or incomplete: {on_one_line(error)}; fetch it again") from error
    tensors = _flatten(tensors)
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in tensors.items()
    ):
        raise CheckpointError(f"{path} is not a plain state dict; save model.state_dict() and import that")
    if sum(value.numel() * value.element_size() for value in tensors.values()) > file_bytes:
        raise CheckpointError(f"{path} is damaged: its tensors claim more values than the file holds")
    return {name: value.detach() for name, value in tensors.items()}, {}  # this container has no text


def _flatten(tensors: object) -> object:
    """{"teacher": {"a": tensor}} as {"teacher.a": tensor}, as training runs save their networks; one level deep."""
    if not isinstance(tensors, dict) or not any(isinstance(value, dict) for value in tensors.values()):
        return tensors
    flat: dict[object, object] = {}
    for name, value in tensors.items():
        flat |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    return flat
