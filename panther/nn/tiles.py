"""When a CUDA device computes a sketched layer by our kernels, and in what tiles; plain arithmetic, no device needed.

The numbers come from sweeps on an H200 (docs/gpu.md has the figures).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

# columns, 2·num_terms·low_rank, up to which a layer is bound by the reading of x and the writing of y
FEW_COLUMNS = 64
# rows from which those pass by once, in large tiles
MANY_ROWS = 4096
# rows up to which, with few columns, the kernels are the fastest where launches cost nothing
FEW_ROWS = 64
# rows up to which casting the factors beforehand does not pay
FEW_BLOCKS_ROWS = 1024
# operations a second of forward and backward by our kernels, as measured, and the seconds up to which the launches
# take longer: ours are four, the library's a dozen; forward alone, in tf32, two and four
RATES = {"half": 300e12, "tf32": 45e12}
LAUNCHES_S = 0.4e-3
FORWARD_LAUNCHES_S = 0.2e-3
# bytes of shared memory that the tiles of a program may take, and that leave room for a second program beside it
SHARED_BYTES = 210_000
HALF_SHARED_BYTES = 100_000


def streams(rows: int, columns: int) -> bool:
    """Whether a layer of 16 bits is bound by memory, so that what is read and written is to pass by once."""
    return rows >= MANY_ROWS and columns <= FEW_COLUMNS


def captured_by_kernels(rows: int, columns: int) -> bool:
    """Whether our kernels, in 16 bits, win in a CUDA graph, where launches cost nothing."""
    return streams(rows, columns) or (rows <= FEW_ROWS and columns <= FEW_COLUMNS)


@lru_cache(maxsize=4096)
def kernels_win(
    rows: int, d_in: int, d_out: int, columns: int, precision: str, *, learning: bool, captured: bool
) -> bool:
    """Whether our kernels are at least as fast as the library's products.

    Args:
        rows: N, of x.
        d_in, d_out: of the layer.
        columns: 2·num_terms·low_rank.
        precision: ``"half"``, a type of 16 bits, or ``"tf32"``.
        learning: whether there is a way back.
        captured: whether a CUDA graph is being captured, in which launches cost nothing.
    """
    half = precision == "half"
    if half and streams(rows, columns):
        return True
    if captured:
        return half and captured_by_kernels(rows, columns)
    launches_s = LAUNCHES_S if half or learning else FORWARD_LAUNCHES_S
    return 5 * rows * columns * (d_in + d_out) / RATES[precision] <= launches_s


@dataclass(frozen=True)
class ShrinkTiles:
    """Of x (rows, features) @ W (features, columns): BM rows, BF features and BC columns at a time.

    Attributes:
        splits: shares that the features are dealt into, so that there is work for the whole device.
        share: features of each, a multiple of BF.
        programs: to launch.
        full_features, full_columns: whether no tile reaches over the edge.
    """

    BM: int
    BF: int
    BC: int
    warps: int
    stages: int
    splits: int
    share: int
    programs: int
    full_features: bool
    full_columns: bool


@dataclass(frozen=True)
class ExpandTiles:
    """Of H (rows, columns) @ W (columns, features).

    Attributes:
        rows_each: rows that a program passes over.
        one_tile: whether all columns fit in one tile, so that a program holds its panel of W.
        store: how the cache is to take what is written; ".cs": it is not read again soon.
    """

    BM: int
    BF: int
    BC: int
    warps: int
    stages: int
    rows_each: int
    programs: int
    full_features: bool
    full_columns: bool
    one_tile: bool
    store: str


@dataclass(frozen=True)
class ReduceTiles:
    """Of xᵀ (features, rows) @ H (rows, columns): BR rows at a time."""

    BR: int
    BF: int
    BC: int
    stages: int
    programs: int
    full_features: bool


def shrink_tiles(rows: int, features: int, columns: int, x_bytes: int, W_bytes: int, processors: int) -> ShrinkTiles:
    """Tiles of x @ W.

    Args:
        rows, features, columns: of the product.
        x_bytes, W_bytes: an entry's size in memory.
        processors: multiprocessors of the device.
    """
    streamed = streams(rows, columns)
    BM = 128 if streamed else _tile(rows, 64)
    BF = _tile(features, 128 if max(x_bytes, W_bytes) == 2 else 64)
    BC = _tile(columns, 64)
    tiles = _cdiv(rows, BM) * _cdiv(columns, BC)
    # who reads H adds the shares up, so they must not be many
    most = 1 if streamed else min(16, max(1, (2048 if rows <= 64 else 512) // columns))
    splits = max(1, min(processors // tiles, features // (4 * BF), most))
    share = _cdiv(_cdiv(features, splits), BF) * BF
    return ShrinkTiles(
        BM=BM,
        BF=BF,
        BC=BC,
        warps=8 if streamed else 4,
        stages=_stages(SHARED_BYTES if streamed else HALF_SHARED_BYTES, BM * BF * x_bytes + BF * BC * W_bytes),
        splits=_cdiv(features, share),
        share=share,
        programs=tiles * _cdiv(features, share),
        full_features=features % BF == 0,
        full_columns=columns % BC == 0,
    )


def expand_tiles(rows: int, features: int, columns: int, H_bytes: int, W_bytes: int, processors: int) -> ExpandTiles:
    """Tiles of H @ W.

    Args:
        H_bytes: an entry's size in memory, times the shares to add up.
        rows, features, columns, W_bytes, processors: as for `shrink_tiles`.
    """
    one_tile, streamed = columns <= FEW_COLUMNS, streams(rows, columns)
    BM = _tile(rows, 64)
    BF = _tile(features, 128 if rows > 64 else 64)
    BC = _tile(columns, FEW_COLUMNS)
    panels, blocks = _cdiv(features, BF), _cdiv(rows, BM)
    if one_tile:
        blocks = max(1, min(blocks, 2 * processors // panels))
    rows_each = _cdiv(_cdiv(rows, blocks), BM) * BM
    return ExpandTiles(
        BM=BM,
        BF=BF,
        BC=BC,
        warps=4,
        stages=min(3, _stages(HALF_SHARED_BYTES, BM * BC * H_bytes + (0 if one_tile else BF * BC * W_bytes))),
        rows_each=rows_each,
        programs=panels * _cdiv(rows, rows_each),
        full_features=features % BF == 0,
        full_columns=columns % BC == 0,
        one_tile=one_tile,
        store=".cs" if streamed else "",
    )


def reduce_tiles(rows: int, features: int, columns: int, x_bytes: int, H_bytes: int) -> ReduceTiles:
    """Tiles of xᵀ @ H; arguments as for `expand_tiles`."""
    BR = 128 if rows >= MANY_ROWS and x_bytes == 2 else _tile(rows, 64)
    BF = _tile(features, 64)
    BC = _tile(columns, 64)
    return ReduceTiles(
        BR=BR,
        BF=BF,
        BC=BC,
        stages=_stages(HALF_SHARED_BYTES, BR * (BF * x_bytes + BC * H_bytes)),
        programs=_cdiv(features, BF) * _cdiv(columns, BC),
        full_features=features % BF == 0,
    )


def _tile(size: int, most: int) -> int:
    """A power of two, at least 16 (what matrix units take), at most ``most``, not twice the size."""
    return min(most, max(16, 1 << (size - 1).bit_length()))


def _stages(budget: int, a_stage: int) -> int:
    return max(1, min(5, budget // a_stage))


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)
