"""Low-rank factors in few bits: the first is rounded, the second refitted to the rounded first, and rounded."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from panther.linalg.whitening import damped, weighted
from panther.nn.quantized import FactoredLinear
from panther.nn.quantized.blocks import block_bytes
from panther.quantize.blocks import Blocks, Known, MadeFactors, mean_shift, round_to_blocks
from panther.quantize.feedback import INPUT_DAMPING
from panther.quantize.loss import weighed_loss

# share of the second moment between the factors that is added as damping: float64 needs no more
_FIT_DAMPING = 1e-9


def quantize_factors(
    left: Tensor, right: Tensor, blocks: Blocks, known: Known, bias: Tensor | None = None, W: Tensor | None = None
) -> MadeFactors:
    """Two quantized factors whose product approximates a weight, weighted by the moments of its inputs and outputs.

    A is rounded first; its errors cost Bᵀ G B, since the second factor multiplies them. With the outputs h = Â x of the
    rounded one, B = W C Âᵀ (Â C Âᵀ)⁻¹ is the best second factor; it is rounded with the moment of h. The low-rank
    correction of `blocks` is not added: a larger rank has the same effect.

    Args:
        left: (d_in, rank), right: (rank, d_out): xᵀ left right is the layer's output.
        blocks: the format of both.
        known: calibration statistics of the layer.
        bias: (d_out,); the mean output error is added to it.
        W: (d_out, d_in), what the product is to be close to; the product of left and right when None.
    """
    A, B = left.t().double(), right.t().double()
    target = B @ A if W is None else W.double()
    C, G = known.second.double(), known.sensitivity.double()
    blocks = dataclasses.replace(blocks, correction_rank=0)
    down = round_to_blocks(A, blocks, C, B.t() @ weighted(G, B))
    rounded = down.weight.double()
    # same damping as the rounding, so that directions unseen in calibration are not fitted
    C = C if (found := damped(C, INPUT_DAMPING)) is None else found
    hidden = rounded @ C @ rounded.t()
    steady = damped(hidden, _FIT_DAMPING)
    fitted = B if steady is None else torch.linalg.solve(steady, rounded @ C @ target.t()).t()
    up = round_to_blocks(fitted, blocks, hidden, G)
    layer = FactoredLinear(down, up)
    lost = target - layer.weight.double()
    layer = FactoredLinear(down, up.with_bias(mean_shift(lost, known, bias)))
    size = factor_bytes(len(target), target.shape[1], len(A), blocks)
    return MadeFactors(layer.eval(), size, weighed_loss(lost, G, known.second))


def factor_bytes(d_out: int, d_in: int, rank: int, blocks: Blocks) -> int:
    """Bytes of two factors in blocks, without a bias."""
    sizes = ((rank, d_in), (d_out, rank))
    return sum(block_bytes(n, k, bits=blocks.bits, block_size=blocks.size(k)) for n, k in sizes)
