"""Small grey squares of the images that are to be compared, each decoded once and kept on disk, not in memory."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from indexer.images.jobs import Changed, Decoded, Job, Outcome, Vanished
from indexer.images.pool import DecodePool

from .mapped import mapped
from .proof import COARSE, SIDE, SMALL, Squares

GREY = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue, ITU-R BT.601


class Thumbnails:
    """Grey squares by row; `missing` says of the images that gave none why."""

    def __init__(self, most: int, side: int = SIDE, workers: int | None = None) -> None:
        """most  images at most; side  of the squares, in pixels"""
        self.missing: dict[int, str] = {}
        self._at: dict[int, int] = {}  # row -> place in the file
        self._side = side
        self._workers = workers
        self._pixels = mapped(np.uint8, most, side, side)
        self._small = np.zeros(most, bool)
        self._coarse = mapped(np.float32, most if side > COARSE else 0, COARSE, COARSE)  # so that none is shrunk twice

    def read(self, wanted: Iterable[tuple[int, str, str]]) -> Iterator[int]:
        """Decode what is not there yet; yields how many are done.

        wanted  row, path and id of each image; a file whose bytes no longer have that id counts as changed
        """
        todo = {path: (row, id) for row, path, id in wanted if row not in self._at and row not in self.missing}
        if not todo:
            return
        with DecodePool(self._workers, resolution=self._side, patch_size=1, mode="squash") as pool:
            for done, outcome in enumerate(pool.run(Job(path) for path in todo), start=1):
                row, id = todo[outcome.path]
                if isinstance(outcome, Decoded) and outcome.id == id:
                    pixels = (outcome.pixels @ GREY).round()
                    self._pixels[len(self._at)] = pixels
                    self._small[len(self._at)] = outcome.metadata.width * outcome.metadata.height <= SMALL
                    if self._side > COARSE:
                        self._coarse[len(self._at)] = _shrunk(pixels)
                    self._at[row] = len(self._at)
                else:
                    self.missing[row] = _why(outcome)
                yield done

    def has(self, row: int) -> bool:
        return row in self._at

    def of(self, rows: Sequence[int]) -> Tensor:
        """(B, S, S) float32 in [0, 255]"""
        return torch.from_numpy(self._pixels[[self._at[row] for row in rows]].astype(np.float32))

    def are_small(self, rows: Sequence[int]) -> Tensor:
        """Whether each image has so few pixels that its square shows less than others; see `proof.SMALL`.  (B,) bool"""
        return torch.from_numpy(self._small[[self._at[row] for row in rows]])

    def squares(self, rows: Sequence[int]) -> Squares:
        """Those of some rows, of several sizes, for the proof in pixels."""
        places = np.array([self._at[row] for row in rows], np.int64)

        def of_side(at: Tensor, side: int) -> Tensor:
            if side == COARSE:
                return torch.from_numpy(self._coarse[places[at.numpy()]])
            full = torch.from_numpy(self._pixels[places[at.numpy()]].astype(np.float32))
            return full if side == self._side else avg_pool2d(full[:, None], self._side // side)[:, 0]

        return of_side


def _shrunk(pixels: np.ndarray) -> np.ndarray:
    """By numpy: a plane is small, and threads of torch that spin would wait for a core beside the decoders."""
    cells = len(pixels) // COARSE
    return pixels.reshape(COARSE, cells, COARSE, cells).mean((1, 3))


def _why(outcome: Outcome) -> str:
    if isinstance(outcome, Vanished):
        return "it is gone"
    if isinstance(outcome, (Changed, Decoded)):
        return "it has changed since it was indexed"
    return str(getattr(outcome, "reason", "it is no image any more"))
