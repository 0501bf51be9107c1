"""The numbers that the entries of a quantized weight can take: a step and a range of integers for each block."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from panther.nn.quantized.blocks import in_blocks

# AVX2's vpmaddubsw adds two products of an unsigned and a signed byte in 16 bits: 255 * 128 = 32,640 fits
PAIR_LIMIT = 128
# shares of a block's range from smallest to largest entry
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)


@dataclass(frozen=True)
class Grid:
    """Integers times a step for each block of a row of a weight (d_out, d_in).

    Attributes:
        step, low, high: (d_out, blocks): an entry is an integer from low to high, times the step.
        block_size: entries of a row in a block; the last may have fewer.
        paired: whether entries 2i and 2i + 1 of a row may add up to at most `PAIR_LIMIT` where they share their sign.
    """

    step: Tensor
    low: Tensor
    high: Tensor
    block_size: int
    paired: bool = False

    def each(self, tensor: Tensor, d_in: int) -> Tensor:
        """(d_out, d_in): the value of its block for each entry."""
        return tensor.repeat_interleave(self.block_size, dim=1)[:, :d_in]

    def nearest(self, W: Tensor) -> Tensor:
        """(d_out, d_in), the nearest integers."""
        step, low, high = (self.each(tensor, W.shape[1]).to(W.dtype) for tensor in (self.step, self.low, self.high))
        Q = torch.round(W / step).clamp(low, high)
        if self.paired:
            even, odd = Q[:, 0::2], Q[:, 1::2]
            Q[:, 1::2] = within_pair(odd, even[:, : odd.shape[1]])
        return Q

    def dense(self, integers: Tensor) -> Tensor:
        """(d_out, d_in), the dequantized weight."""
        return integers * self.each(self.step, integers.shape[1]).to(integers.dtype)

    def loss(self, W: Tensor, variance: Tensor) -> Tensor:
        """(d_out, blocks), loss of rounding to the nearest, weighed by the variance (d_in,) of each input."""
        lost = (W - self.dense(self.nearest(W))).square() * variance.to(W.dtype)
        return in_blocks(lost, self.block_size).sum(2)


def within_pair(second: Tensor, first: Tensor) -> Tensor:
    """The second integers of pairs, clipped so that both stay within `PAIR_LIMIT`."""
    return torch.minimum(torch.maximum(second, -PAIR_LIMIT - first.clamp_max(0)), PAIR_LIMIT - first.clamp_min(0))


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
