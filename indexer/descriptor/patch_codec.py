"""What is kept of an image beside its vector as few bytes, and back: its patch tokens and its pooled features.

Tokens of one image are unit vectors whose directions matter and whose lengths do not, so that each number needs few
bits: 1 bit is its sign, 2 bits one of the four levels that lose least of a normal distribution (Max, 1960), 8 bits a
share of the largest. Where the patches lie is one bit for each cell of the grid.

    byte 0   format: 1 tokens alone, 2 tokens and parts
    byte 1   bits of each number: 1, 2 or 8
    byte 2   rows of the grid
    byte 3   columns of the grid
    4, 5     numbers in a token, little-endian
    6 to 8   in format 2 only: L parts, and D numbers in each, two bytes, little-endian
    then     a bit for each cell of the grid in raster order, 1 where a patch is kept; then the tokens in that order
    then     in format 2 only: L * D numbers of 8 bits, each a share of its part's largest, part after part

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

TOKENS, TOKENS_AND_PARTS = 1, 2  # formats
HEADERS = {TOKENS: 6, TOKENS_AND_PARTS: 9}  # their lengths
LARGEST = 127  # of the codes of 8 bits
# Lloyd-Max quantisation of a standard normal number to four levels (Max, 1960): the least mean squared error
LEVELS = np.array([-1.51, -0.4528, 0.4528, 1.51], np.float32)
SPLIT = 0.9816  # between the two levels of either sign
BITS = (1, 2, 8)


@dataclass(frozen=True)
class PatchTokens:
    """Patches of one image.

    tokens     (K, T)  float32, L2-normalised
    positions  (K, 2)  uint8, row and column of each on the grid; in raster order
    grid       rows and columns of patches
    """

    tokens: np.ndarray
    positions: np.ndarray
    grid: tuple[int, int]


@dataclass(frozen=True)
class ManyPatches:
    """Patches of several images, those of one after those of the other.

    tokens     (K of all, T)  float32, L2-normalised
    positions  (K of all, 2)  uint8, row and column of each on its grid; in raster order
    counts     K of each image
    grids      rows and columns of patches of each image
    """

    tokens: np.ndarray
    positions: np.ndarray
    counts: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]


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
    format = TOKENS if parts is None else TOKENS_AND_PARTS
    header = bytes([format, bits, rows, cols]) + dim.to_bytes(2, "little")
    of_tokens = np.packbits(kept).tobytes() + _codes(patches.tokens, bits).tobytes()
    if parts is None:
        return header + of_tokens
    count, dim = parts.shape
    assert 0 < count < 256 and 0 < dim < 65536
    return header + bytes([count]) + dim.to_bytes(2, "little") + of_tokens + _codes(parts, 8).tobytes()


def unpack_patches(packed: Sequence[bytes]) -> ManyPatches:
    """The tokens of several images of one index, each as near to the packed ones as its bits allow.

    Raises SeenitError for bytes that `pack_patches` has not written, or not alike.
    """
    if not packed:
        return ManyPatches(np.empty((0, 0), np.float32), np.empty((0, 2), np.uint8), (), ())
    positions, grids, codes = zip(*(_take_apart(data) for data in packed), strict=True)
    bits, dim = packed[0][1], packed[0][4:6]
    if any(data[1] != bits or data[4:6] != dim for data in packed):
        raise SeenitError("the index holds patches of several kinds; rebuild the index")
    all_codes = np.concatenate(codes)  # for one lookup
    numbers = all_codes.view(np.int8).astype(np.float32) if bits == 8 else _TABLES[bits].take(all_codes, 0)
    tokens = numbers.reshape(-1, int.from_bytes(dim, "little"))
    tokens /= np.maximum(np.sqrt(np.einsum("kt,kt->k", tokens, tokens)), 1e-12)[:, None]
    return ManyPatches(tokens, np.concatenate(positions), tuple(map(len, positions)), grids)


def unpack_parts(packed: Sequence[bytes]) -> np.ndarray | None:
    """The parts of several images of one index, (B, L, D) float32, L2-normalised; None where one of them has none.

    Raises SeenitError as `unpack_patches` does.
    """
    if not packed or any(data[:1] != bytes([TOKENS_AND_PARTS]) for data in packed):
        return None
    shapes = {data[6:9] for data in packed}
    for data in packed:
        _take_apart(data)  # which checks its length
    if len(shapes) > 1:
        raise SeenitError("the index holds features of several kinds; rebuild the index")
    count, dim = _parts_shape(packed[0])
    codes = np.stack([np.frombuffer(data, np.int8)[-count * dim :] for data in packed])
    parts = codes.reshape(len(packed), count, dim).astype(np.float32)
    parts /= np.maximum(np.linalg.norm(parts, axis=2, keepdims=True), 1e-12)
    return parts


def _parts_shape(data: bytes) -> tuple[int, int]:
    """L and D; L is 0 without parts."""
    return (data[6], int.from_bytes(data[7:9], "little")) if data[0] == TOKENS_AND_PARTS else (0, 0)


def _take_apart(data: bytes) -> tuple[np.ndarray, tuple[int, int], np.ndarray]:
    """Positions (K, 2), grid and the tokens' codes."""
    if not data or len(data) < HEADERS.get(data[0], len(data) + 1) or data[1] not in BITS:
        raise SeenitError("the index holds patches in a form that is unknown here; rebuild the index")
    bits, rows, cols, dim = data[1], data[2], data[3], int.from_bytes(data[4:6], "little")
    header = HEADERS[data[0]]
    cells = header + math.ceil(rows * cols / 8)
    kept = np.unpackbits(np.frombuffer(data[header:cells], np.uint8))[: rows * cols].nonzero()[0]
    num_parts, part_dim = _parts_shape(data)
    codes = np.frombuffer(data[cells : max(len(data) - num_parts * part_dim, cells)], np.uint8)
    if data[0] == TOKENS_AND_PARTS and not num_parts * part_dim:
        raise SeenitError("the index holds damaged patches; rebuild the index")
    if codes.size != len(kept) * dim * bits // 8 or not dim:
        raise SeenitError("the index holds damaged patches; rebuild the index")
    positions = np.empty((len(kept), 2), np.uint8)
    np.divmod(kept, cols, out=(positions[:, 0], positions[:, 1]), casting="unsafe")
    return positions, (rows, cols), codes


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


_TABLES = _tables()
