"""The numbers that the entries of a quantized weight can take: a step and a range of integers for each block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from panther.nn.quantized.blocks import in_blocks

# AVX2's vpmaddubsw adds two products of an unsigned and a signed byte in 16 bits: 255 * 128 = 32,640 fits
PAIR_LIMIT = 128


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

    def straight_through(self, W: Tensor) -> Tensor:
        """(d_out, d_in), the rounded weight, with the gradient of one that is only clipped."""
        step, low, high = (self.each(tensor, W.shape[1]) for tensor in (self.step, self.low, self.high))
        clipped = (W / step).clamp(low, high)
        with torch.no_grad():
            lost = self.nearest(W) - clipped
        return (clipped + lost) * step


def within_pair(second: Tensor, first: Tensor) -> Tensor:
    """The second integers of pairs, clipped so that both stay within `PAIR_LIMIT`."""
    return torch.minimum(torch.maximum(second, -PAIR_LIMIT - first.clamp_max(0)), PAIR_LIMIT - first.clamp_min(0))
