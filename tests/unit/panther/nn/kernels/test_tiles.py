"""Tiles by device: each fits the shared memory of its own, and those of an H200 are the ones that were measured."""

import hashlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from panther.nn.kernels import tiles
from panther.nn.kernels.devices import Device

DEVICES = {
    "A100": Device(108, 163 << 10, 8),
    "A10": Device(72, 99 << 10, 8),
    "L4": Device(58, 99 << 10, 8),
    "4090": Device(128, 99 << 10, 8),
    "5090": Device(170, 99 << 10, 12),
    "H200": Device(132, 227 << 10, 9),
}
ROWS = (1, 17, 32, 64, 65, 512, 1000, 4095, 4096, 8192, 32768)
SIZES = ((17, 100), (100, 17), (3200, 3200), (4096, 8192), (8192, 1024))
COLUMNS = (2, 30, 32, 64, 66, 256, 1024)
TYPES = (("half", 2, 2), ("half", 2, 4), ("half", 4, 4), ("tf32", 4, 4), ("ieee", 4, 4))
# of the tiles for an H200 before there were others
MEASURED = "ce20afa2b5f0ca1ec609acb5e4fdb8b0a7f2d86682eb8b0efb85d993741575c2"


def plans(device: Device):
    """The tiles of layers of many sizes, with the bytes of an entry of both operands."""
    for rows, (d_in, d_out), columns, (precision, x_bytes, W_bytes), learning in itertools.product(
        ROWS, SIZES, COLUMNS, TYPES, (False, True)
    ):
        how = {"precision": precision}
        shrink = tiles.shrink_tiles(
            rows, d_in, columns, x_bytes, W_bytes, device, readers=d_out, learning=learning, **how
        )
        yield shrink, x_bytes, W_bytes
        H_bytes = 4 * (1 if shrink.reduced else shrink.splits)
        for beside in (False, True):
            expand = tiles.expand_tiles(rows, d_out, columns, H_bytes, W_bytes, device, beside=beside, **how)
            yield expand, H_bytes, W_bytes
        yield tiles.reduce_tiles(rows, d_out, columns // 2, x_bytes, H_bytes, device, **how), x_bytes, H_bytes


def stage_bytes(tile, first_bytes: int, second_bytes: int) -> int:
    """Shared memory of what one turn of a product's loop reads."""
    if isinstance(tile, tiles.ShrinkTiles):
        return tile.BF * (tile.BM * first_bytes + tile.BC * second_bytes)
    if isinstance(tile, tiles.ExpandTiles):
        return tile.BC * (tile.BM * first_bytes + (0 if tile.one_tile else tile.BF * second_bytes))
    return tile.BR * (tile.BF * first_bytes + tile.BC * second_bytes)


def result_bytes(tile) -> int:
    """Shared memory that a program's sums pass through on their way out."""
    sides = (tile.BF, tile.BC) if isinstance(tile, tiles.ReduceTiles) else (tile.BM, tile.BC)
    return 4 * sides[0] * (tile.BF if isinstance(tile, tiles.ExpandTiles) else sides[1])


def test_an_h200_keeps_the_tiles_that_were_measured():
    digest = hashlib.sha256()
    for tile, *_ in plans(DEVICES["H200"]):
        digest.update(repr(tile).encode())
    assert digest.hexdigest() == MEASURED, "measure again (docs/gpu.md), then write the new digest here"


@pytest.mark.parametrize("name", DEVICES)
def test_tiles_fit_the_shared_memory_of_the_device(name):
    device = DEVICES[name]
    for tile, *entry_bytes in plans(device):
        sides = [getattr(tile, side) for side in ("BM", "BR", "BF", "BC") if hasattr(tile, side)]
        assert all(side >= 16 and side & (side - 1) == 0 for side in sides), tile
        # a loop of one stage reads nothing ahead; the last stage of another may take no memory
        taken = (tile.stages - 1) * stage_bytes(tile, *entry_bytes)
        assert max(taken, result_bytes(tile)) <= device.shared_bytes, tile
        if not isinstance(tile, tiles.ExpandTiles):
            taken = (tile.stages - device.spare_stages) * stage_bytes(tile, *entry_bytes)
            assert tile.stages == 1 or taken <= device.tiles_bytes, tile


@pytest.mark.parametrize("name", DEVICES)
def test_loops_over_features_read_ahead_on_every_device(name):
    shrinks = [tile for tile, *_ in plans(DEVICES[name]) if isinstance(tile, tiles.ShrinkTiles)]
    assert min(tile.stages for tile in shrinks) >= 2 + DEVICES[name].spare_stages
    assert all(tile.split_size % tile.BF == 0 for tile in shrinks)


def test_less_shared_memory_gives_smaller_tiles():
    def taken(name):
        device = DEVICES[name]
        return max(
            tile.stages * stage_bytes(tile, *entry_bytes)
            for tile, *entry_bytes in plans(device)
            if isinstance(tile, tiles.ShrinkTiles)
        )

    assert taken("5090") < taken("H200")


def test_kernels_compile_within_the_limit_of_the_smallest_device(tmp_path):
    pytest.importorskip("triton", reason="compiling the kernels needs the package triton")
    root = Path(__file__).parents[5]
    environment = {
        **os.environ,
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(root), *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu/compile_tiles.py", "--quick", "--devices", "L4"],
        cwd=root, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"over_the_limit": 0' in done.stdout
