"""When the Triton kernels are used on a CUDA device, and their tile sizes; plain arithmetic, no device needed.

The numbers come from sweeps on an H200 (docs/gpu.md has the figures). Less shared memory gives smaller tiles.

See docs/decisions/0042-two-triton-kernels-each-way.md and docs/decisions/0097-tiles-by-device.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from panther.nn.kernels.devices import Device

# columns, 2·num_terms·low_rank, up to which reading x and writing y dominate
FEW_COLUMNS = 64
# rows from which x and y are streamed once, in large tiles
MANY_ROWS = 4096
# rows up to which, with few columns, the kernels are fastest where launches cost nothing
FEW_ROWS = 64
# rows up to which casting the factors beforehand does not pay
FEW_BLOCKS_ROWS = 1024
# operations a second of our kernels, as measured, and the seconds of a forward pass up to which launches take longer
RATES = {"half": 300e12, "tf32": 55e12, "ieee": 20e12}
LAUNCHES_S = 0.4e-3
FORWARD_LAUNCHES_S = 0.2e-3
# operations and bytes a second of the library's products, and the device's seconds between two of their nine launches
PRODUCT_RATES = {"half": 700e12, "tf32": 330e12, "ieee": 45e12}
BYTES_RATE = 4e12
GAPS_S = 9 * 2.5e-6
# the device's seconds of a layer's products, forward and backward, above which a model keeps the device busy: then the
# device's time counts, below it the number of launches
BUSY_S = 100e-6
# bytes of split-K partial sums, which each panel of the consumer rereads, from which a reduction kernel is faster
SUM_BYTES = 64 << 20


def streams(rows: int, columns: int) -> bool:
    """Whether a 16-bit layer is memory-bound, so that each tensor is to be read once."""
    return rows >= MANY_ROWS and columns <= FEW_COLUMNS


def captured_by_kernels(rows: int, columns: int, precision: str) -> bool:
    """Whether our kernels win in a CUDA graph, where launches cost nothing."""
    if precision == "ieee":
        return rows <= 64 and columns <= 256
    return precision == "half" and (columns <= 32 or (columns <= 64 and (rows <= 128 or streams(rows, columns))))


@lru_cache(maxsize=4096)
def kernels_win(
    rows: int, d_in: int, d_out: int, columns: int, precision: str, *, learning: bool, captured: bool
) -> bool:
    """Whether our kernels are at least as fast as the library's products.

    Args:
        rows: N, of x.
        d_in, d_out: of the layer.
        columns: 2·num_terms·low_rank.
        precision: ``"half"`` for 16-bit types, ``"tf32"`` or ``"ieee"`` for float32.
        learning: whether a backward pass follows.
        captured: whether a CUDA graph is being captured, in which launches cost nothing.
    """
    if captured:
        return captured_by_kernels(rows, columns, precision)
    if precision == "half" and streams(rows, columns):
        return True
    if learning:
        return products_s(rows, d_in, d_out, columns, precision) <= BUSY_S
    launches_s = FORWARD_LAUNCHES_S if precision == "tf32" else LAUNCHES_S
    return 5 * rows * columns * (d_in + d_out) / RATES[precision] <= launches_s


def products_s(rows: int, d_in: int, d_out: int, columns: int, precision: str) -> float:
    """Seconds that the device needs for forward and backward by the library's products; arguments as for `kernels_win`.

    Products: two forward, two for the gradient of x, half a product each for those of S1s and S2s. Bytes: y is written
    and its gradient read three times, x is read twice and its gradient written, and H and its gradient twice each.
    """
    operations = 5 * rows * columns * (d_in + d_out)
    moved = rows * (3 * d_in + 4 * d_out + 4 * columns) * (2 if precision == "half" else 4)
    return operations / PRODUCT_RATES[precision] + moved / BYTES_RATE + GAPS_S


@dataclass(frozen=True)
class ShrinkTiles:
    """Tiles of x (rows, features) @ W (features, columns): BM rows, BF features and BC columns at a time.

    Attributes:
        splits: split-K factor: parts that the features are divided into, so that there is work for the whole device.
        split_size: features of each part, a multiple of BF.
        programs: to launch.
        full_features, full_columns: whether no tile reaches over the edge.
        reduced: whether a separate kernel reduces the partial sums, rather than each program of the consumer kernel.
    """

    BM: int
    BF: int
    BC: int
    warps: int
    stages: int
    splits: int
    split_size: int
    programs: int
    full_features: bool
    full_columns: bool
    reduced: bool


@dataclass(frozen=True)
class ExpandTiles:
    """Tiles of H (rows, columns) @ W (columns, features).

    Attributes:
        rows_each: rows that a program computes.
        one_tile: whether all columns fit in one tile, so that a program holds its panel of W.
        store: cache modifier of stores; ".cs" (streaming): the values are not read again soon.
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
    """Tiles of xᵀ (features, rows) @ H (rows, columns): BR rows at a time."""

    BR: int
    BF: int
    BC: int
    stages: int
    programs: int
    full_features: bool


def shrink_tiles(
    rows: int,
    features: int,
    columns: int,
    x_bytes: int,
    W_bytes: int,
    device: Device,
    *,
    precision: str = "half",
    readers: int = 0,
    learning: bool = True,
) -> ShrinkTiles:
    """Tiles of x @ W.

    Args:
        rows, features, columns: of the product.
        x_bytes, W_bytes: an entry's size in memory.
        device: that the tiles are for.
        precision, learning: as for `kernels_win`.
        readers: output features of the consumer kernel, each panel of which reads the whole result.
    """
    streamed, few, ieee = streams(rows, columns), rows <= FEW_ROWS, precision == "ieee"
    BM, BC = _tile(rows, 64), _tile(columns, 64)
    if ieee and (few or columns <= FEW_COLUMNS):
        side = 16 if few and columns <= FEW_COLUMNS else 32
        BM, BC = _tile(rows, side), _tile(columns, side)
    if precision == "half":
        BF = _tile(features, 128 if max(x_bytes, W_bytes) == 2 else 64)
    else:
        BF = _tile(features, 64 if few else 32)
    if streamed:
        most = 1
    elif few:
        # the consumer kernel reduces the partial sums, so they must be few
        most = min(16, max(1, (8192 if ieee else 2048) // columns))
    elif columns > FEW_COLUMNS and (precision == "half" or (precision == "tf32" and learning)):
        # so few that no separate reduction is needed: launches dominate in forward and backward
        most = 4
    else:
        most = 8
    large = _cdiv(rows, 128) * _cdiv(columns, BC) * (1 if W_bytes == 2 else most)
    if streamed or (rows > 64 and not ieee and 10 * large >= 9 * device.processors):
        BM = 128
    budget = device.tiles_bytes if streamed else device.half_tiles_bytes
    while BF > 16 and 2 * (BM * BF * x_bytes + BF * BC * W_bytes) > budget:
        BF //= 2
    tiles = _cdiv(rows, BM) * _cdiv(columns, BC)
    # programs that multiply entry by entry leave room for another beside them
    splits = max(1, min((2 if ieee else 1) * device.processors // tiles, features // (4 * BF), most))
    split_size = _cdiv(_cdiv(features, splits), BF) * BF
    splits = _cdiv(features, split_size)
    return ShrinkTiles(
        BM=BM,
        BF=BF,
        BC=BC,
        warps=8 if streamed else 4,
        stages=min(
            3 if precision == "tf32" and not few else 5,
            _stages(budget, BM * BF * x_bytes + BF * BC * W_bytes, device.spare_stages),
        ),
        splits=splits,
        split_size=split_size,
        programs=tiles * splits,
        full_features=features % BF == 0,
        full_columns=columns % BC == 0,
        reduced=splits > 1 and _cdiv(readers, 128) * rows * columns * 4 * (splits - 1) >= SUM_BYTES,
    )


def expand_tiles(
    rows: int,
    features: int,
    columns: int,
    H_bytes: int,
    W_bytes: int,
    device: Device,
    *,
    precision: str = "half",
    beside: bool = False,
) -> ExpandTiles:
    """Tiles of H @ W.

    Args:
        H_bytes: an entry's size in memory, times the partial sums to reduce.
        rows, features, columns, W_bytes, device, precision: as for `shrink_tiles`.
        beside: whether programs of another product run in the same launch, so both must fit in shared memory.
    """
    one_tile, streamed, ieee = columns <= FEW_COLUMNS, streams(rows, columns), precision == "ieee"
    large = rows > 64 and not one_tile and not ieee
    BM = _tile(rows, 128 if large else 16 if ieee and rows <= FEW_ROWS else 64)
    BF = _tile(features, 128 if rows > 64 and not ieee else 64)
    BC = _tile(columns, 32 if ieee and rows > FEW_ROWS and not one_tile else FEW_COLUMNS)
    warps, budget = (8, device.tiles_bytes) if large else (4, device.half_tiles_bytes)
    added_up = large and precision == "tf32" and H_bytes == 4
    if added_up:
        # two programs side by side, in two stages
        warps, budget, BF = 4, device.half_tiles_bytes, _tile(features, 64)
    W_stage = 0 if one_tile else BF * BC * W_bytes
    while BM > 16 and BM * BC * H_bytes + W_stage > budget:
        BM //= 2
    # the last stage needs no separate memory for sums, or for products without a descriptor
    spared = not added_up and (large or not (one_tile or beside or precision == "half"))
    stages = min(3, _stages(budget, BM * BC * H_bytes + W_stage, spared or device.spare_stages))
    panels, blocks = _cdiv(features, BF), _cdiv(rows, BM)
    if one_tile:
        blocks = max(1, min(blocks, 2 * device.processors // panels))
    rows_each = _cdiv(_cdiv(rows, blocks), BM) * BM
    return ExpandTiles(
        BM=BM,
        BF=BF,
        BC=BC,
        warps=warps,
        stages=stages,
        rows_each=rows_each,
        programs=panels * _cdiv(rows, rows_each),
        full_features=features % BF == 0,
        full_columns=columns % BC == 0,
        one_tile=one_tile,
        store=".cs" if streamed else "",
    )


def reduce_tiles(
    rows: int, features: int, columns: int, x_bytes: int, H_bytes: int, device: Device, *, precision: str = "half"
) -> ReduceTiles:
    """Tiles of xᵀ @ H; arguments as for `expand_tiles`."""
    BR = 128 if rows >= MANY_ROWS and x_bytes == 2 else _tile(rows, 32 if precision == "ieee" else 64)
    BF = _tile(features, 64)
    BC = _tile(columns, 64)
    # partial sums are added up in registers, whatever the tile
    while H_bytes <= 4 and BR > 16 and 2 * BR * (BF * x_bytes + BC * H_bytes) > device.half_tiles_bytes:
        BR //= 2
    return ReduceTiles(
        BR=BR,
        BF=BF,
        BC=BC,
        stages=_stages(device.half_tiles_bytes, BR * (BF * x_bytes + BC * H_bytes), device.spare_stages),
        programs=_cdiv(features, BF) * _cdiv(columns, BC),
        full_features=features % BF == 0,
    )


def _tile(size: int, most: int) -> int:
    """A power of two, at least 16 (what matrix units take), at most ``most``, not twice the size."""
    return min(most, max(16, 1 << (size - 1).bit_length()))


def _stages(budget: int, a_stage: int, spared: int) -> int:
    """Stages that a loop reads ahead, of which ``spared`` take no memory."""
    return max(1, min(5, budget // a_stage + spared))


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)
