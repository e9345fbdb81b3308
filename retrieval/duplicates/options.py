"""What a search for duplicates can be asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from indexer.errors import SeenitError

from .candidates import NEIGHBOURS
from .keeper import KEEPS, Keep

Level = Literal["exact", "near", "scene"]
LEVELS: tuple[Level, ...] = get_args(Level)


@dataclass(frozen=True)
class DuplicateOptions:
    """What to look for, and what to keep.

    level       exact: the same bytes; near: and copies of the same photograph; scene: and other photographs of the
                same motif, which are only named
    keep        what decides on the image to keep, see `keeper.keeping_order`
    prefer      folders whose images are kept before all others, the most preferred first; a copy elsewhere that holds
                more detail stays
    reference   folders that nothing is given up from, and that are not looked through for copies of each other: what
                lies elsewhere is compared with them
    neighbours  images that each one is compared with at least
    """

    level: Level = "near"
    keep: Keep = "resolution"
    prefer: tuple[str | Path, ...] = ()
    reference: tuple[str | Path, ...] = ()
    neighbours: int = NEIGHBOURS

    def __post_init__(self) -> None:
        """SeenitError for what there is not."""
        if self.level not in LEVELS:
            raise SeenitError(f"unknown level {self.level!r}; take {', '.join(LEVELS)}")
        if self.keep not in KEEPS:
            raise SeenitError(f"unknown order of keeping {self.keep!r}; take {', '.join(KEEPS)}")
        if self.neighbours < 1:
            raise SeenitError(f"cannot compare an image with {self.neighbours} others; take 1 or more")
