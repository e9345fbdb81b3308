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
    positions, counts, grids, colours  as in `ManyPatches`
    """

    codes: np.ndarray
    bits: int
    positions: np.ndarray
    counts: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]
    colours: np.ndarray | None = None

    def numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens as whole numbers (K of all, T) int8, and the step (K of all, 1) float32 to unit vectors."""
        if self.bits == 8:
            numbers = self.codes.view(np.int8)
        else:
            numbers = _WHOLE_TABLES[self.bits].take(self.codes).view(np.int8)
        return numbers, 1 / _lengths(numbers.astype(np.float32))


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
    codes, bits = found.codes, found.bits
    tokens = codes.view(np.int8).astype(np.float32) if bits == 8 else _TABLES[bits].take(codes, 0)
    tokens = tokens.reshape(len(codes), -1)  # (K of all, T)
    tokens /= _lengths(tokens)
    return ManyPatches(tokens, found.positions, found.counts, found.grids, found.colours)


def read_codes(packed: Sequence[bytes]) -> PatchCodes:
    """The tokens of several images of one index, not unpacked; errors as of `unpack_patches`."""
    if not packed:
        return PatchCodes(np.empty((0, 0), np.uint8), 8, np.empty((0, 2), np.uint8), (), ())
    by_shape: dict[tuple[bytes, int], list[int]] = {}  # as a rule all images of an index are alike
    for n, data in enumerate(packed):
        by_shape.setdefault((data[: HEADERS.get(data[0], 1) if data else 0], len(data)), []).append(n)
    parts = [_of_one_shape([packed[n] for n in places]) for places in by_shape.values()]
    if len({(part.bits, part.codes.shape[1]) for part in parts}) > 1:
        raise SeenitError("the index holds patches of several kinds; rebuild the index")
    return parts[0] if len(parts) == 1 else _in_order(parts, list(by_shape.values()))


def unpack_parts(packed: Sequence[bytes], most: int | None = None) -> np.ndarray | None:
    """The parts of several images of one index, (B, L, D) float32, L2-normalised; None where one of them has none.

    most  the first so many of them only; None: all
    Raises SeenitError as `unpack_patches` does.
    """
    if not packed or any(not data or data[0] not in (TOKENS_AND_PARTS, WITH_COLOURS) for data in packed):
        return None
    layouts = [_layout(data) for data in packed]
    count, dim = layouts[0].num_parts, layouts[0].part_dim
    if any(not layout.num_parts for layout in layouts):
        return None
    if any((layout.num_parts, layout.part_dim) != (count, dim) for layout in layouts):
        raise SeenitError("the index holds features of several kinds; rebuild the index")
    codes = np.stack([np.frombuffer(data, np.int8)[-count * dim :] for data in packed])
    parts = codes.reshape(len(packed), count, dim)[:, :most].astype(np.float32)
    parts /= np.maximum(np.linalg.norm(parts, axis=2, keepdims=True), 1e-12)
    return parts


def unpack_colours(packed: Sequence[bytes]) -> list[np.ndarray] | None:
    """The mean colours of the patches of several images, (K, 2) int8 each; None where one of them has none.

    Raises SeenitError as `unpack_patches` does.
    """
    if not packed or any(not data or data[0] != WITH_COLOURS for data in packed):
        return None
    layouts = [_layout(data) for data in packed]
    return [
        np.frombuffer(data, np.int8, layout.colours_end - layout.end, layout.end).reshape(-1, COLOUR)
        for data, layout in zip(packed, layouts, strict=True)
    ]


@dataclass(frozen=True)
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


def _of_one_shape(packed: Sequence[bytes]) -> PatchCodes:
    """The tokens of images with one header and one length."""
    layout = _layout(packed[0])
    rows, cols = layout.grid
    everything = np.frombuffer(b"".join(packed), np.uint8).reshape(len(packed), -1)
    kept = np.unpackbits(everything[:, layout.header : layout.cells], axis=1)[:, : rows * cols]
    if (kept.sum(1, dtype=int) != layout.count).any():
        raise SeenitError(DAMAGED)
    positions = np.empty((len(packed) * layout.count, 2), np.uint8)
    np.divmod(kept.nonzero()[1], cols, out=(positions[:, 0], positions[:, 1]), casting="unsafe")
    codes = everything[:, layout.cells : layout.end].copy()  # bytes cannot be written, which tensors want to be
    codes = codes.reshape(len(packed) * layout.count, layout.width)
    colours = None
    if layout.colours_end > layout.end:
        colours = everything[:, layout.end : layout.colours_end].copy().view(np.int8).reshape(-1, COLOUR)
    grids = (layout.grid,) * len(packed)
    return PatchCodes(codes, layout.bits, positions, (layout.count,) * len(packed), grids, colours)


def _in_order(parts: Sequence[PatchCodes], places: Sequence[Sequence[int]]) -> PatchCodes:
    """Images of several shapes as one; `places` says for each part where its images belong."""
    order = np.argsort([place for some in places for place in some])
    counts = np.array([count for part in parts for count in part.counts])
    grids = [grid for part in parts for grid in part.grids]
    ends = np.cumsum(counts)
    rows = np.concatenate([np.arange(ends[n] - counts[n], ends[n]) for n in order])
    codes, positions = (np.concatenate([getattr(part, name) for part in parts]) for name in ("codes", "positions"))
    in_order = tuple(int(counts[n]) for n in order)
    some = [part.colours for part in parts if part.colours is not None]
    colours = np.concatenate(some)[rows] if len(some) == len(parts) else None
    return PatchCodes(codes[rows], parts[0].bits, positions[rows], in_order, tuple(grids[n] for n in order), colours)


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
