"""What a run of `seenit index` can be asked for; the command line's defaults are these."""

from dataclasses import dataclass
from typing import Literal

from ..errors import WAIT_S, SeenitError

RESOLUTIONS = (56, 1036)  # pixels, the least and the most


@dataclass(frozen=True)
class SyncOptions:
    """How an index is brought in line with its folders.

    resolution    pixels, 56 to 1036: an image is seen at about resolution x resolution pixels in its own aspect; None:
                  the index's own, for a new index 224
    tokens        how much of its patches an image keeps: compact (1 kB), balanced (3 kB) or full (49 kB); None: the
                  index's own, for a new index balanced
    workers       decoding processes; None: as many as cores
    dry_run       change nothing, say what would be done (files are compared; new ones are not opened as images)
    allow_empty   accept that a folder with indexed images is now empty
    follow_links  also index what links to files and folders outside of the indexed folders lead to
    exclude       patterns as in a .gitignore of what to leave out: `*.tif`, `private/`. The index remembers them, and
                  later runs leave the same out
    no_exclude    patterns that the index remembers and is to forget
    retry         try again what is remembered as damaged or too large
    verify        read files again whose size and time are unchanged
    path_column   of a table: which column holds the paths or addresses; empty: found by name
    key_column    of a table: which one holds each image's own key; empty: found by name, or the path is the key
    ray           a Ray cluster to decode and embed on: its address, `auto` for the one that this machine belongs to, or
                  `local`. The statistics are then fitted on a random sample first, and stay fixed
    actors        processes that embed there; None: one for each share of GPUs, or for each four cores
    gpus_per_actor  GPUs, or the share of one, that each of them is given
    allow_private  also fetch from addresses of this machine and its own network
    wait_s        seconds to wait for another process that writes this index
    """

    resolution: int | None = None
    tokens: Literal["compact", "balanced", "full"] | None = None
    workers: int | None = None
    dry_run: bool = False
    allow_empty: bool = False
    follow_links: bool = False
    exclude: tuple[str, ...] = ()
    no_exclude: tuple[str, ...] = ()
    retry: bool = False
    verify: bool = False
    path_column: str = ""
    key_column: str = ""
    allow_private: bool = False
    ray: str | None = None
    actors: int | None = None
    gpus_per_actor: float = 0.0
    wait_s: float = WAIT_S

    def __post_init__(self) -> None:
        for name in ("exclude", "no_exclude"):  # one text is one pattern, not its letters
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))


def check_resolution(resolution: int | None) -> None:
    """SeenitError for pixels that no network here sees; None is whatever is usual."""
    least, most = RESOLUTIONS
    if resolution is not None and not least <= resolution <= most:
        raise SeenitError(
            f"a resolution of {resolution} pixels makes no sense; take one from {least} to {most} with --resolution"
        )
