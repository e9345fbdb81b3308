"""What is kept of an image beside its vector as few bytes, and back: its patch tokens and its pooled features.

Tokens of one image are unit vectors whose directions matter and whose lengths do not, so that each number needs few
bits: 1 bit is its sign, 2 bits one of the four levels that lose least of a normal distribution (Max, 1960), 8 bits a
share of the largest. Where the patches lie is one bit for each cell of the grid.

    byte 0   format: 1 tokens alone, 2 tokens and parts, 3 tokens, colours and perhaps parts
    byte 1   bits of each number: 1, 2 or 8
    byte 2   rows of the grid
    byte 3   columns of the grid
    4, 5     numbers in a token, little-endian
    6 to 8   in formats 2 and 3: L parts, and D numbers in each, two bytes, little-endian
    then     a bit for each cell of the grid in raster order, 1 where a patch is kept; then the tokens in that order
    then     in format 3 only: two numbers of 8 bits for each token, its patch's mean colour (`mean_colours`)
    then     in formats 2 and 3: L * D numbers of 8 bits, each a share of its part's largest, part after part

The parts are an image's pooled features before any statistics (`PooledFeatures.parts`). From them its vector can be
made again by later statistics, and likeness of kind be measured, without the network. Their lengths are 1 and need no
bytes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..errors import SeenitError

# K tokens of T numbers, L parts of D channels

TOKENS, TOKENS_AND_PARTS, WITH_COLOURS = 1, 2, 3  # formats
HEADERS = {TOKENS: 6, TOKENS_AND_PARTS: 9, WITH_COLOURS: 9}  # their lengths
COLOUR = 2  # bytes of a patch's
LARGEST = 127  # of the codes of 8 bits
# Lloyd-Max quantisation of a standard normal number to four levels (Max, 1960): the least mean squared error
LEVELS = np.array([-1.51, -0.4528, 0.4528, 1.51], np.float32)
SPLIT = 0.9816  # between the two levels of either sign
BITS = (1, 2, 8)
DAMAGED = "the index holds damaged patches; rebuild the index"


@dataclass(frozen=True)
class PatchTokens:
    """Patches of one image.

    tokens     (K, T)  float32, L2-normalised
    positions  (K, 2)  uint8, row and column of each on the grid; in raster order
    grid       rows and columns of patches
    colours    (K, 2)  int8, see `mean_colours`; None where they are not kept
    """

    tokens: np.ndarray
    positions: np.ndarray
    grid: tuple[int, int]
    colours: np.ndarray | None = None


@dataclass(frozen=True)
class ManyPatches:
    """Patches of several images, those of one after those of the other.

    tokens     (K of all, T)  float32, L2-normalised
    positions  (K of all, 2)  uint8, row and column of each on its grid; in raster order
    counts     K of each image
    grids      rows and columns of patches of each image
    colours    (K of all, 2)  int8, see `mean_colours`; None where one of the images has none
    """

    tokens: np.ndarray
    positions: np.ndarray
    counts: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]
    colours: np.ndarray | None = None


@dataclass(frozen=True)
class PatchCodes:
    """Patches of several images as their bytes have them, those of one after those of the other.

    codes      (K of all, T * bits / 8)  uint8
    bits       of each number
    cells      bits of each image's grid
    counts, grids, colours  as in `ManyPatches`
    """

    codes: np.ndarray
    bits: int
    cells: tuple[bytes, ...]
    counts: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]
    colours: np.ndarray | None = None

    @cached_property
    def positions(self) -> np.ndarray:
        """As in `ManyPatches`."""
        ends = np.cumsum(self.counts, dtype=int)
        positions = np.empty((ends[-1] if len(ends) else 0, 2), np.uint8)
        by_shape: dict[tuple[tuple[int, int], int], list[int]] = {}
        for n, shape in enumerate(zip(self.grids, self.counts, strict=True)):
            by_shape.setdefault(shape, []).append(n)
        for ((rows, cols), count), places in by_shape.items():
            bits = np.frombuffer(b"".join([self.cells[n] for n in places]), np.uint8).reshape(len(places), -1)
            kept = np.unpackbits(bits, axis=1)[:, : rows * cols]
            cells = np.flatnonzero(np.ascontiguousarray(kept).view(bool)) % (rows * cols)
            where = (ends[places][:, None] + np.arange(-count, 0)).ravel()
            positions[where] = np.stack(np.divmod(cells, cols), axis=1)
        return positions

    def numbers(self, *, whole: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Tokens as they are multiplied, (K of all, T), and the step (K of all, 1) float32 from them to unit vectors.

        whole  int8; else float32
        """
        if self.bits == 8:
            numbers = self.codes.view(np.int8)
            numbers = numbers if whole else numbers.astype(np.float32)
        elif whole:
            numbers = _WHOLE_TABLES[self.bits].take(self.codes).view(np.int8)
        else:
            numbers = _TABLES[self.bits].take(self.codes, 0).reshape(len(self.codes), -1)
        return numbers, 1 / _lengths(numbers.astype(np.float32, copy=False))


def pack_patches(patches: PatchTokens, bits: int, parts: np.ndarray | None = None) -> bytes:
    """The bytes of one image's tokens; K * T * bits / 8 of them, and the grid's.

    parts  (L, D) float32, L2-normalised, to be kept as well in L * D bytes; None: none
    """
    rows, cols = patches.grid
    count, dim = patches.tokens.shape
    assert bits in BITS and dim * bits % 8 == 0 and 0 < rows < 256 and 0 < cols < 256 and dim < 65536
    kept = np.zeros(rows * cols, bool)
    kept[patches.positions[:, 0].astype(int) * cols + patches.positions[:, 1]] = True
    assert kept.sum() == count, "positions are apart and in raster order"
    colours = patches.colours
    assert colours is None or (colours.shape == (count, COLOUR) and colours.dtype == np.int8)
    format = WITH_COLOURS if colours is not None else TOKENS if parts is None else TOKENS_AND_PARTS
    header = bytes([format, bits, rows, cols]) + dim.to_bytes(2, "little")
    of_tokens = np.packbits(kept).tobytes() + _codes(patches.tokens, bits).tobytes()
    if colours is not None:
        of_tokens += colours.tobytes()
    if format == TOKENS:
        return header + of_tokens
    if parts is None:
        return header + bytes(3) + of_tokens
    count, dim = parts.shape
    assert 0 < count < 256 and 0 < dim < 65536
    return header + bytes([count]) + dim.to_bytes(2, "little") + of_tokens + _codes(parts, 8).tobytes()


def unpack_patches(packed: Sequence[bytes]) -> ManyPatches:
    """The tokens of several images of one index, each as near to the packed ones as its bits allow.

    Raises SeenitError for bytes that `pack_patches` has not written, or not alike.
    """
    found = read_codes(packed)
    if not packed:
        return ManyPatches(np.empty((0, 0), np.float32), found.positions, (), ())
    tokens, _ = found.numbers(whole=False)
    tokens /= _lengths(tokens)
    return ManyPatches(tokens, found.positions, found.counts, found.grids, found.colours)


def read_codes(packed: Sequence[bytes]) -> PatchCodes:
    """The tokens of several images of one index, not unpacked; errors as of `unpack_patches`."""
    if not packed:
        return PatchCodes(np.empty((0, 0), np.uint8), 8, (), (), ())
    layouts = _layouts(packed)
    if len({(layout.bits, layout.width) for layout in set(layouts)}) > 1:
        raise SeenitError("the index holds patches of several kinds; rebuild the index")
    images = list(zip(packed, layouts, strict=True))
    cells = tuple(data[layout.header : layout.cells] for data, layout in images)
    counts, grids = tuple(layout.count for layout in layouts), tuple(layout.grid for layout in layouts)
    if counts != tuple(_num_kept(bits, *grid) for bits, grid in zip(cells, grids, strict=True)):
        raise SeenitError(DAMAGED)
    codes = _joined([data[layout.cells : layout.end] for data, layout in images]).reshape(-1, layouts[0].width)
    colours = None
    if all(layout.colours_end > layout.end for layout in layouts):
        colours = _joined([data[layout.end : layout.colours_end] for data, layout in images]).view(np.int8)
        colours = colours.reshape(-1, COLOUR)
    return PatchCodes(codes, layouts[0].bits, cells, counts, grids, colours)


def unpack_parts(packed: Sequence[bytes], most: int | None = None) -> np.ndarray | None:
    """The parts of several images of one index, (B, L, D) float32, L2-normalised; None where one of them has none.

    most  the first so many of them only; None: all
    Raises SeenitError as `unpack_patches` does.
    """
    if not packed or any(not data or data[0] not in (TOKENS_AND_PARTS, WITH_COLOURS) for data in packed):
        return None
    layouts = _layouts(packed)
    shapes = {(layout.num_parts, layout.part_dim) for layout in layouts}
    if any(not count for count, _ in shapes):
        return None
    if len(shapes) > 1:
        raise SeenitError("the index holds features of several kinds; rebuild the index")
    ((count, dim),) = shapes
    wanted = count if most is None else min(most, count)
    codes = _joined(
        [data[end : end + wanted * dim] for data, end in ((data, len(data) - count * dim) for data in packed)]
    )
    parts = codes.view(np.int8).reshape(len(packed), wanted, dim).astype(np.float32)
    parts /= np.maximum(np.linalg.norm(parts, axis=2, keepdims=True), 1e-12)
    return parts


def unpack_colours(packed: Sequence[bytes]) -> list[np.ndarray] | None:
    """The mean colours of the patches of several images, (K, 2) int8 each; None where one of them has none.

    Raises SeenitError as `unpack_patches` does.
    """
    if not packed or any(not data or data[0] != WITH_COLOURS for data in packed):
        return None
    return [
        np.frombuffer(data, np.int8, layout.colours_end - layout.end, layout.end).reshape(-1, COLOUR)
        for data, layout in zip(packed, _layouts(packed), strict=True)
    ]


@dataclass(frozen=True, eq=False)  # a key by what it is, which takes a tenth of hashing its numbers
class _Layout:
    """What an image's header says, where its parts lie, and how many tokens there are room for."""

    bits: int
    grid: tuple[int, int]
    width: int  # bytes of a token
    num_parts: int
    part_dim: int
    header: int  # bytes
    cells: int  # where the tokens begin
    end: int  # and where they end
    count: int  # tokens
    colours_end: int  # where their colours end, which follow them; `end` where there are none


def _layout(data: bytes) -> _Layout:
    if not data or len(data) < HEADERS.get(data[0], len(data) + 1) or data[1] not in BITS:
        raise SeenitError("the index holds patches in a form that is unknown here; rebuild the index")
    bits, rows, cols, dim = data[1], data[2], data[3], int.from_bytes(data[4:6], "little")
    has_parts, header, width = data[0] != TOKENS, HEADERS[data[0]], dim * bits // 8
    colour = COLOUR if data[0] == WITH_COLOURS else 0
    num_parts, part_dim = (data[6], int.from_bytes(data[7:9], "little")) if has_parts else (0, 0)
    cells, end = header + math.ceil(rows * cols / 8), len(data) - num_parts * part_dim
    count, left_over = divmod(end - cells, width + colour) if width else (0, 1)
    if left_over or count < 0 or (not num_parts * part_dim and (num_parts or part_dim or data[0] == TOKENS_AND_PARTS)):
        raise SeenitError(DAMAGED)
    tokens_end = end - count * colour
    return _Layout(bits, (rows, cols), width, num_parts, part_dim, header, cells, tokens_end, count, end)


def _layouts(packed: Sequence[bytes]) -> list[_Layout]:
    """Of each image; as a rule those of an index have few."""
    keys = [(data[: HEADERS.get(data[0], 1) if data else 0], len(data)) for data in packed]
    known = {key: _layout(data) for key, data in dict(zip(keys, packed, strict=True)).items()}
    return [known[key] for key in keys]


def _num_kept(cells: bytes, rows: int, cols: int) -> int:
    return (int.from_bytes(cells, "big") >> (8 * len(cells) - rows * cols)).bit_count()


def _joined(parts: Sequence[bytes]) -> np.ndarray:
    """Bytes one after the other, (N,) uint8, which can be written, as tensors want to be."""
    return np.frombuffer(bytearray().join(parts), np.uint8)


def _lengths(tokens: np.ndarray) -> np.ndarray:
    """(K, T) float32 -> (K, 1), never 0."""
    return np.maximum(np.sqrt(np.einsum("kt,kt->k", tokens, tokens)), np.float32(1e-12))[:, None]


def _codes(tokens: np.ndarray, bits: int) -> np.ndarray:
    """(K, T) float32 -> (K, T * bits / 8) uint8."""
    if bits == 1:
        return np.packbits(tokens >= 0, axis=1)
    if bits == 2:
        scaled = tokens * math.sqrt(tokens.shape[1])
        codes = np.digitize(scaled, (-SPLIT, 0, SPLIT)).astype(np.uint8)  # 0..3, an index into LEVELS
        four = codes.reshape(len(codes), -1, 4)
        return four[..., 0] | four[..., 1] << 2 | four[..., 2] << 4 | four[..., 3] << 6
    largest = np.maximum(np.abs(tokens).max(1, keepdims=True), 1e-12)
    return np.rint(tokens / largest * LARGEST).astype(np.int8).view(np.uint8)


def _tables() -> dict[int, np.ndarray]:
    """What each byte stands for: (256, 8) signs or (256, 4) levels."""
    byte = np.arange(256, dtype=np.uint8)
    signs = np.unpackbits(byte[:, None], axis=1).astype(np.float32) * 2 - 1
    levels = LEVELS[np.stack([byte >> shift & 3 for shift in (0, 2, 4, 6)], axis=1)]
    return {1: signs, 2: levels}


def _whole_tables() -> dict[int, np.ndarray]:
    """The same in whole numbers of 8 bits, those of a byte as one number: (256,) uint64 of 8, or uint32 of 4."""
    levels = np.rint(_TABLES[2] / LEVELS[-1] * 127).astype(np.int8)
    return {1: _TABLES[1].astype(np.int8).view(np.uint64)[:, 0], 2: levels.view(np.uint32)[:, 0]}


_TABLES = _tables()
_WHOLE_TABLES = _whole_tables()
