"""Weights in blocks of 4 or 8 bits: format, layer and cost.

See docs/decisions/0069-weights-in-blocks.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from panther.linalg.whitening import damped, whitened_svd
from panther.nn.quantized import BlockLinear, CorrectedLinear, FactoredLinear
from panther.nn.quantized.blocks import BITS, BLOCK_SIZES, block_bytes, round_in_blocks
from panther.nn.quantized.grid import Grid
from panther.quantize.feedback import INPUT_DAMPING, OUTPUT_DAMPING, compensated
from panther.quantize.grid import block_grid
from panther.quantize.loss import weighed_loss

# of the factors of a low-rank correction
_FACTOR_BITS = 8
# iterations; more change the third digit of the error
_ROUNDS = 2


@dataclass(frozen=True)
class Blocks:
    """How weights are stored: in few bits, with a scale and a zero point for each block of a row.

    Attributes:
        bits: 4 or 8.
        block_size: entries of a row in a block at most: 16, 32, 64, 128 or 256. Smaller blocks are more accurate
            and take more bytes, unless a row is not a whole number of blocks.
        correction_rank: of a low-rank correction in 8 bits that is added to each layer; 0 for none.
        activation_bits: 8 rounds activations to 8 bits, a scale for each block of a row, which is faster; None leaves
            them as they are.
    """

    bits: int = 4
    block_size: int = 128
    correction_rank: int = 0
    activation_bits: int | None = 8

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("bits", self.bits, BITS),
            ("block_size", self.block_size, BLOCK_SIZES),
            ("activation_bits", self.activation_bits, (8, None)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} ({value!r}) must be one of {list(allowed)}")
        rank = self.correction_rank
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 0:
            raise ValueError(f"correction_rank ({rank!r}) must be an integer of at least 0")

    @property
    def precision(self) -> str:
        """Name in reports."""
        return f"int{self.bits}"

    def rank(self, d_out: int, d_in: int) -> int:
        """Rank of the correction for a weight of these sizes; 0 if it is too small for one."""
        return self.correction_rank if self.correction_rank < min(d_out, d_in) else 0

    def weight_bytes(self, d_out: int, d_in: int) -> int:
        """Bytes of a weight of these sizes, its scales, zero points and correction."""
        found = block_bytes(d_out, d_in, bits=self.bits, block_size=self.size(d_in))
        rank = self.rank(d_out, d_in)
        if rank:
            found += block_bytes(rank, d_in, bits=_FACTOR_BITS, block_size=self.size(d_in))
            found += block_bytes(d_out, rank, bits=_FACTOR_BITS, block_size=self.size(rank))
        return found

    def size(self, d_in: int) -> int:
        """Size of the blocks of a weight: up to block_size, the one of the fewest bytes, since rows are padded."""
        sizes = [size for size in BLOCK_SIZES if size <= self.block_size]
        return min(reversed(sizes), key=lambda size: block_bytes(1, d_in, bits=self.bits, block_size=size))


@dataclass(frozen=True)
class Known:
    """Calibration statistics of a layer.

    Attributes:
        second: (d_in, d_in), the mean of x xᵀ.
        sensitivity: (d_out, d_out), or its diagonal (d_out,): eᵀ G e is the relative squared error of the model's
            outputs where e is the layer's.
        mean: (d_in,), of x; None leaves the bias as it is.
        rows: (n, d_in), a sample of x, for the error of rounded activations; None leaves it out.
    """

    second: Tensor
    sensitivity: Tensor
    mean: Tensor | None = None
    rows: Tensor | None = None


@dataclass(frozen=True)
class Made:
    """A layer in blocks.

    Attributes:
        layer: on the CPU or the weight's device, in evaluation.
        weight_bytes: without the bias.
        error: the predicted relative squared error of the model's outputs.
    """

    layer: BlockLinear | CorrectedLinear
    weight_bytes: int
    error: float


@dataclass(frozen=True)
class MadeFactors:
    """Two factors in blocks; the attributes are those of `Made`, the error without that of the activations."""

    layer: FactoredLinear
    weight_bytes: int
    error: float


def quantize_weight(W: Tensor, blocks: Blocks, known: Known, bias: Tensor | None = None) -> Made:
    """The layer in blocks with the least effect on the model's outputs.

    Args:
        W: (d_out, d_in).
        blocks: the format.
        known: calibration statistics of the layer.
        bias: (d_out,); the mean output error is added to it.
    """
    W = W.double()
    rank = blocks.rank(*W.shape)
    base = round_to_blocks(W, blocks, known.second, known.sensitivity)
    layer = _corrected(W, base, rank, blocks, known) if rank else base
    lost = W - layer.weight.double()
    error = weighed_loss(lost, known.sensitivity, known.second) + _activation_error(layer.weight, blocks, known)
    return Made(with_bias(layer, W, known, bias).eval(), blocks.weight_bytes(*W.shape), error)


def with_bias(
    layer: BlockLinear | CorrectedLinear, W: Tensor, known: Known, bias: Tensor | None
) -> BlockLinear | CorrectedLinear:
    """A layer of W with a bias, corrected by the mean output error; it shares the weight."""
    return layer.with_bias(mean_shift(W.double() - layer.weight.double(), known, bias))


def mean_shift(lost: Tensor, known: Known, bias: Tensor | None) -> Tensor | None:
    """A bias (d_out,) plus the mean output error for an error (d_out, d_in) of the weight; None for None."""
    if bias is None or known.mean is None:
        return bias
    return bias.detach().float() + (lost @ known.mean.double()).float()


def round_to_blocks(W: Tensor, blocks: Blocks, second: Tensor, sensitivity: Tensor | None) -> BlockLinear:
    """A weight (d_out, d_in) in blocks, without a correction or a bias; both moments as of `compensated`."""
    grid = block_grid(W.double(), second.diagonal(), bits=blocks.bits, block_size=blocks.size(W.shape[1]))
    return _layer(compensated(W, grid, second, sensitivity), grid, blocks)


def estimate(W: Tensor, blocks: Blocks, known: Known) -> float:
    """Predict the error of rounding to the nearest; larger than that of `quantize_weight`, and faster to compute."""
    grid = block_grid(W.float(), known.second.diagonal(), bits=blocks.bits, block_size=blocks.size(W.shape[1]))
    lost = W.float() - grid.dense(grid.nearest(W.float()))
    return weighed_loss(lost, known.sensitivity, known.second) + _activation_error(W, blocks, known)


def _layer(integers: Tensor, grid: Grid, blocks: Blocks) -> BlockLinear:
    zero = -grid.low
    levels = (integers + grid.each(zero, integers.shape[1])).to(torch.uint8)
    return BlockLinear(
        levels,
        grid.step,
        zero.to(torch.uint8),
        bits=blocks.bits,
        block_size=grid.block_size,
        activation_bits=blocks.activation_bits,
    )


def _corrected(W: Tensor, base: BlockLinear, rank: int, blocks: Blocks, known: Known) -> CorrectedLinear:
    """A rounded weight with its low-rank correction: each is computed again for what the other leaves, by turns."""
    correction = _correction(W - base.weight.double(), rank, blocks, known)
    for _ in range(_ROUNDS - 1):
        base = round_to_blocks(W - correction.weight.double(), blocks, known.second, known.sensitivity)
        correction = _correction(W - base.weight.double(), rank, blocks, known)
    return CorrectedLinear(base, correction)


def _correction(lost: Tensor, rank: int, blocks: Blocks, known: Known) -> FactoredLinear:
    """The low-rank part of an error, weighed on both sides, as two factors in 8 bits.

    (Zhang et al., "QERA", 2024, whiten by the inputs; Saha et al., "CALDERA", 2024, alternate with the rounding.)
    """
    whitened = whitened_svd(lost, damped(known.second, INPUT_DAMPING), damped(known.sensitivity, OUTPUT_DAMPING))
    left, right = whitened.left[:, :rank].t(), whitened.right[:rank].t()
    # balance both factors of a component
    sizes = (right.norm(dim=0) / left.norm(dim=1).clamp_min(torch.finfo(left.dtype).tiny)).sqrt()
    sizes = torch.where(sizes > 0, sizes, 1.0)
    down = _nearest(left * sizes.unsqueeze(1), known.second.diagonal(), blocks)
    ones = torch.ones(rank, dtype=right.dtype, device=right.device)
    return FactoredLinear(down, _nearest(right / sizes, ones, blocks))


def _nearest(W: Tensor, variance: Tensor, blocks: Blocks) -> BlockLinear:
    # float activations: onnxruntime multiplies thin matrices faster so
    factor = Blocks(_FACTOR_BITS, blocks.block_size, activation_bits=None)
    grid = block_grid(W, variance, bits=_FACTOR_BITS, block_size=blocks.size(W.shape[1]))
    return _layer(grid.nearest(W), grid, factor)


def _activation_error(W: Tensor, blocks: Blocks, known: Known) -> float:
    """The part of the error that comes from rounding the activations to 8 bits."""
    if blocks.activation_bits is None or known.rows is None or not len(known.rows):
        return 0.0
    X = known.rows.to(W.device).float()
    lost = X - round_in_blocks(X, blocks.size(W.shape[1]))
    moment = (lost.t() @ lost).double() / len(X)
    return weighed_loss(W, known.sensitivity, moment)
