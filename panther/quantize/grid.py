"""The choice of a grid for each block of a weight."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from panther.nn.quantized.blocks import in_blocks
from panther.nn.quantized.grid import Grid

# shares of a block's range from smallest to largest entry
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)


def best(W: Tensor, grids: Iterable[Grid], variance: Tensor) -> Grid:
    """The best grid of each block; all grids have the same blocks."""
    found, least = None, torch.tensor(torch.inf)
    for grid in grids:
        loss = grid.loss(W, variance)
        if found is None:
            found, least = grid, loss
            continue
        parts = ((grid.step, found.step), (grid.low, found.low), (grid.high, found.high))
        step, low, high = (torch.where(loss < least, new, old) for new, old in parts)
        found, least = Grid(step, low, high, grid.block_size, grid.paired), torch.minimum(loss, least)
    if found is None:
        raise ValueError("grids must hold at least one grid")
    return found


def block_grid(W: Tensor, variance: Tensor, *, bits: int, block_size: int) -> Grid:
    """Unsigned integers minus a zero point, with the range of each block that has the least loss.

    Args:
        W: (d_out, d_in).
        variance: (d_in,), of the inputs.
        bits: of the integers.
        block_size: entries in a block.
    """
    blocks = in_blocks(W, block_size)
    lowest, highest = blocks.amin(2).clamp_max(0), blocks.amax(2).clamp_min(0)
    levels = 2**bits - 1

    def grid(share: float) -> Grid:
        # a float32 step, as stored in the file
        step = ((highest - lowest) * (share / levels)).float().clamp_min(torch.finfo(torch.float32).tiny).to(W.dtype)
        zero = torch.round(-lowest * share / step).clamp(0, levels)
        return Grid(step, -zero, levels - zero, block_size)

    return best(W, map(grid, _SHARES), variance)
