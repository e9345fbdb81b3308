"""Files that a step leaves behind, written whole or not at all: a killed run leaves no half ones."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from indexer.atomic_file import make_folder, whole_file
from indexer.errors import SeenitError

NEXT_STEP = "make room or choose another place, then run it again to go on"


@contextmanager
def step_file(path: str | Path) -> Iterator[BinaryIO]:
    """`whole_file` in a folder that is made where it is missing."""
    make_folder(Path(path).parent, NEXT_STEP)
    with whole_file(path, NEXT_STEP) as file:
        yield file


def write_array(path: str | Path, array: np.ndarray) -> None:
    """An .npy file, for `np.load(path, mmap_mode="r")`."""
    with step_file(path) as file:
        array = np.ascontiguousarray(array)
        assert not array.dtype.hasobject
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.tobytes())  # unlike np.save, this says why where it fails


def write_text(path: str | Path, text: str) -> None:
    """UTF-8; bytes of file names that are none come back out as they were."""
    with step_file(path) as file:
        file.write(text.encode("utf-8", errors="surrogateescape"))


def read_array(path: Path) -> np.ndarray:
    """The array at `path`, mapped into memory."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise SeenitError(f"{path} is damaged: {error}; remove it and run the same again") from error


def claim_work_folder(folder: Path, made_from: str) -> None:
    """Make a folder for results of `made_from` (a text that names all inputs); those of other inputs are removed."""
    label = folder / "made_from"
    if label.is_file() and label.read_text("utf-8", errors="replace") == made_from:
        return
    if folder.exists() and not label.is_file() and any(folder.iterdir()):
        raise SeenitError(f"{folder} holds files of something else; name an empty or new folder by --work")
    shutil.rmtree(folder, ignore_errors=True)
    write_text(label, made_from)
