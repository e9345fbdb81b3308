"""The files of results gathered in a folder, as copies or links; nothing there is overwritten."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from indexer.errors import SeenitError, os_reason

from ..results import Result


def collect_results(results: Sequence[Result], folder: Path, *, link: bool = False, prefix: str = "") -> list[Path]:
    """Copy the results' files into a folder, or link them there, named by rank: `001_photo.jpg`.

    prefix  before each name, for a batch of queries
    A name that is taken gets a number; so does one of an earlier run, whatever it holds.
    Raises SeenitError where a file cannot be read or the folder cannot be written.
    """
    made = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for result in results:
            source = Path(result.path)
            made.append(_place(source, folder, f"{prefix}{result.rank:03}_{source.stem}", source.suffix, link))
    except OSError as error:
        place = error.filename or folder
        raise SeenitError(
            f"cannot collect results in {folder}: {place}: {os_reason(error)}; name another folder"
        ) from None
    return made


def _place(source: Path, folder: Path, stem: str, suffix: str, link: bool) -> Path:
    number = 1
    while True:
        target = folder / (f"{stem}{suffix}" if number == 1 else f"{stem} ({number}){suffix}")
        try:
            if link:
                os.symlink(source, target)
            else:
                with open(source, "rb") as read, open(target, "xb") as written:
                    shutil.copyfileobj(read, written)
                shutil.copystat(source, target)
            return target
        except FileExistsError:
            number += 1
