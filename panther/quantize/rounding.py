"""Weights rounded to 8 bits, a scale an output channel: scales by error, GPTQ rounding, and no overflow on AVX2."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from panther.nn.quantized.grid import Grid
from panther.quantize.feedback import compensated
from panther.quantize.grid import best

LARGEST = 127
# multiples of the scale that covers the largest entry; larger scales where many pairs would exceed the limit
_FACTORS = (2.0, 1.7, 1.4, 1.2, 1.1, 1.0, 0.9, 0.8)


@dataclass(frozen=True)
class Rounded:
    """A weight in 8 bits.

    Attributes:
        weight: (d_out, d_in), int8; adjacent entries of a row, 2i and 2i + 1, add up to at most `PAIR_LIMIT`.
        scale: (d_out,), float64.
    """

    weight: Tensor
    scale: Tensor

    def dense(self) -> Tensor:
        """(d_out, d_in), float64, the rounded weight."""
        return self.weight.double() * self.scale.unsqueeze(1)


def round_weight(W: Tensor, C: Tensor, G: Tensor | None = None) -> Rounded:
    """Round a weight so that its outputs change least on inputs of a second moment.

    Entries not yet rounded compensate for errors of rounded ones (`compensated`). The scale of a row is the one with
    the least error, weighted by the variance of each input.

    CPUs with AVX2 but no VNNI add pairs of products in 16 bits and saturate. Entries 2i and 2i + 1 of a row, which such
    a pair multiplies, are kept from adding up to more than 128, with activations of 0 to 255. Few pairs of trained
    weights exceed it, so less precision is lost than with 7-bit weights, the usual way out.

    Args:
        W: (d_out, d_in).
        C: (d_in, d_in), positive semidefinite.
        G: (d_out, d_out), positive semidefinite, what an error of the outputs costs; each weighs the same when None.
    """
    grid = _grid(W.double(), C.diagonal())
    return Rounded(compensated(W, grid, C, G).to(torch.int8), grid.step[:, 0])


def round_nearest(W: Tensor, C: Tensor) -> Rounded:
    """Round to the nearest with the same scales and limits: a fast estimate of the rounding error."""
    grid = _grid(W.float(), C.diagonal())
    return Rounded(grid.nearest(W.float()).to(torch.int8), grid.step[:, 0].double())


def _grid(W: Tensor, variance: Tensor) -> Grid:
    """For each row the scale that loses least, among those that cover all of it or a little less."""
    full = W.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / LARGEST
    ends = torch.full_like(full, LARGEST)
    return best(W, (Grid(full * factor, -ends, ends, W.shape[1], paired=True) for factor in _FACTORS), variance)
