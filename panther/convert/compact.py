"""Candidates without their calibration sums.

See docs/decisions/0083-statistics-on-the-smaller-side.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from panther.convert.candidates import (
    DAMPING_FOR_FEW_ROWS,
    INPUT_DAMPING,
    OUTPUT_DAMPING,
    Candidate,
    Weighing,
)
from panther.convert.layers import Unit
from panther.convert.spill import Keeper
from panther.convert.statistics import WIDER, Statistics
from panther.linalg.gram import times, weight_gram
from panther.linalg.triangular import sums_of_pairs
from panther.linalg.whitening import Spectrum, spectrum_from_gram

_TINY = torch.finfo(torch.float64).tiny
# inputs with a smaller share of the damping as variance hold only rounding errors
_ROUNDING = 1e-9


@dataclass(eq=False)
class CompactCandidate(Candidate):
    """A decomposed linear layer; its factors are truncated to the largest rank that saves parameters.

    Attributes:
        weighing: only the mean and the largest rows.
        spectrum: all energies; factors in float32, or float64 where the weight is, which may lie elsewhere than it.
        squared_errors: (largest rank + 1,) each: the squared relative errors in the weight and on the data, by rank.
        on_data: ‖X Wᵀ‖² over the rows of the calibration, which the second of them are relative to; 0 if it is zero.
        damping: of the inputs.
        narrow: (min(d_in, d_out), largest rank), in the type of the factors, for a layer with one side much wider than
            the other: left is Wᵀ narrow where the inputs are wider, right is narrowᵀ Wᵀ where the outputs are.
    """

    squared_errors: tuple[Tensor, Tensor]
    on_data: float
    damping: float
    narrow: Tensor | None

    @property
    def narrow_inputs(self) -> bool:
        """Whether the layer has fewer inputs than outputs."""
        return self.unit.in_features < self.unit.out_features

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """(d_in, rank) and (rank, d_out), float64."""
        device = self.unit.weight.device
        left, right = self.spectrum.left[:, :rank], self.spectrum.right[:rank]
        return left.to(device).double(), right.to(device).double()

    def bias(self, bias: Tensor, rank: int) -> Tensor:
        """The bias that keeps the mean of the outputs: b + (W - Ŵ) μ."""
        mean = None if self.weighing is None else self.weighing.mean
        if mean is None:
            return bias.detach()
        left, right = self.factors(rank)
        dense = times(mean.unsqueeze(0), self.unit.weight.t()).squeeze(0)
        return (bias.detach().double() + dense - right.t() @ (left.t() @ mean)).to(bias.dtype)

    def errors(self, rank: int) -> tuple[float, float | None]:
        """The relative errors in the weight and on the data."""
        in_weight, on_data = (errors[rank].clamp_min(0).item() ** 0.5 for errors in self.squared_errors)
        return in_weight, on_data


def take_apart(unit: Unit, seen: Statistics, ranks: Sequence[int], keeper: Keeper) -> CompactCandidate:
    """Decompose a linear layer by its statistics, as `weigh` and `weighed_spectrum` do with moments."""
    W, most = unit.weight, ranks[-1]
    d_out, d_in = W.shape
    dtype = torch.float64 if W.dtype == torch.float64 else torch.float32
    mean = seen.mean if _takes_up_the_mean(unit) else None
    few = DAMPING_FOR_FEW_ROWS / seen.rows
    mean_square = _squares(seen) / seen.rows / d_in
    variance = mean_square if mean is None else mean_square - mean.square().sum() / d_in
    added_in = float(INPUT_DAMPING * variance + few * d_in * mean_square)
    outer = None
    if seen.outputs_squares is not None:
        outer = float((OUTPUT_DAMPING + few * d_out) * seen.outputs_squares / d_out)
    # if all inputs are zero, every direction counts the same, as without calibration
    damping = _Damping(added_in if added_in > 0 else 1.0, outer if outer is not None and outer > 0 else None)
    if d_out <= d_in:
        spectrum, P, *errors = _wide(W, seen, mean, damping, most, dtype)
    else:
        spectrum, P, *errors = _tall(W, seen, mean, damping, most, dtype)
    energies = spectrum.energies
    if damping.outputs is None:
        energies = energies / energies.sum().clamp_min(_TINY)
    kept = Spectrum(keeper.keep(spectrum.left.to(dtype)), keeper.keep(spectrum.right.to(dtype)), energies)
    weighing = Weighing(seen.extreme.new_empty(0), mean, None, None, seen.extreme) if seen.extreme is not None else None
    narrow = keeper.keep(P.to(dtype)) if max(W.shape) >= WIDER * min(W.shape) else None
    squared = errors[0], errors[1]
    return CompactCandidate(unit, weighing, kept, tuple(ranks), squared, errors[2].item(), damping.inputs, narrow)


@dataclass(frozen=True)
class _Damping:
    """Damping of each direction of the inputs' covariance and of the sensitivity; None if it is zero."""

    inputs: float
    outputs: float | None


def _takes_up_the_mean(unit: Unit) -> bool:
    """Whether the bias can: one of every module, and of no other."""
    own_biases = all(place.module.bias is not None for place in unit.places) and not unit.bias_is_shared
    return len(unit.biases) > 0 and own_biases


def _squares(seen: Statistics) -> Tensor:
    if seen.inputs.squares is None:
        raise ValueError(f"{seen.unit.name} saw no rows")
    return seen.inputs.squares


def _covariance(seen: Statistics, mean: Tensor | None) -> Tensor:
    """(d_in, d_in), about the mean where it is given."""
    if seen.inputs.second is None:
        raise ValueError(f"{seen.unit.name} has no second moment of its inputs")
    C = seen.inputs.second / seen.rows
    return C if mean is None else C.addr_(mean, mean, alpha=-1)


def _root(C: Tensor, added: float) -> Tensor:
    """The Cholesky factor of C with added on its diagonal; C is overwritten."""
    C.diagonal().add_(added)
    root: Tensor = torch.linalg.cholesky(C)
    return root


def _wide(
    W: Tensor, seen: Statistics, mean: Tensor | None, damping: _Damping, rank: int, dtype: torch.dtype
) -> tuple[Spectrum, Tensor, Tensor, Tensor, Tensor]:
    """For d_out ≤ d_in, by the covariance of W x; with P and what `_errors` returns."""
    if seen.response is not None and seen.response_total is not None:
        moved = seen.response / seen.rows
        if mean is not None:
            y = seen.response_total / seen.rows
            moved.addr_(y, y, alpha=-1)
    else:
        moved = _around(W, _covariance(seen, mean))
    root = None
    if damping.outputs is not None and seen.sensitivity is not None:
        root = _root(seen.sensitivity.clone(), damping.outputs)
    weights = weight_gram(W, of_rows=True)
    gram = torch.add(moved, weights, alpha=damping.inputs) if damping.inputs > 0 else moved
    spectrum, P = spectrum_from_gram(W, gram, root, rank, dtype)
    del gram, root
    # as left = Wᵀ P, leftᵀ left = Pᵀ W Wᵀ P
    right, through = spectrum.right, weights @ P
    in_weight = _left_over(weights.diagonal().sum(), (right * through.t()).sum(1), through, P, right)
    return spectrum, P, *_errors(in_weight, moved.diagonal().sum(), right.square().sum(1), damping.inputs)


def _tall(
    W: Tensor, seen: Statistics, mean: Tensor | None, damping: _Damping, rank: int, dtype: torch.dtype
) -> tuple[Spectrum, Tensor, Tensor, Tensor, Tensor]:
    """For d_out > d_in, by the sensitivity to Wᵀ g; with P and what `_errors` returns."""
    covariance = _covariance(seen, mean)
    weights = weight_gram(W, of_rows=False)
    gram = weights
    if damping.outputs is not None and seen.sensitivity is not None:
        gram = seen.sensitivity if seen.tall else _around(W.t(), seen.sensitivity)
        gram = torch.add(gram, weights, alpha=damping.outputs)
    root = _root(covariance.clone(), damping.inputs) if damping.inputs > 0 else None
    spectrum, P = spectrum_from_gram(W, gram, root, rank, dtype)
    del gram, root
    # as right = Pᵀ Wᵀ, right rightᵀ = Pᵀ (WᵀW) P
    left, through = spectrum.left, weights @ P
    cross, lengths = (through * left).sum(0), (through * P).sum(0)
    in_weight = _left_over(weights.diagonal().sum(), cross, P, through, left.t())
    return spectrum, P, *_errors(in_weight, (weights * covariance).sum(), lengths, damping.inputs)


def _around(W: Tensor, C: Tensor) -> Tensor:
    """W C Wᵀ, float64, with no copy of W in float64."""
    return times(times(C, W.t()).t(), W.t())


def _left_over(whole: Tensor, cross: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The squared error of the weight at every rank, ‖W - Ŵ‖².

    Args:
        whole: ‖W‖².
        cross: (r,), rightᵢ W leftᵢ.
        A, B, C: AᵀB and C Cᵀ are leftᵀ left and right rightᵀ, (r, r), one or the other.
    """
    pairs, diagonal = sums_of_pairs(A, B, C)
    added = 2 * pairs - diagonal - 2 * cross
    return whole + torch.cat([added.new_zeros(1), added.cumsum(0)])


def _errors(in_weight: Tensor, whole: Tensor, lengths: Tensor, damping: float) -> tuple[Tensor, Tensor, Tensor]:
    """The relative squared errors at every rank, in the weight and on the data; and ‖X Wᵀ‖², 0 within rounding.

    leftᵀ (C + damping · I) left = I, so that ‖X (W - Ŵ)ᵀ‖² + damping · ‖W - Ŵ‖² falls by ‖rightᵢ‖² with each rank.

    Args:
        in_weight: (r + 1,), ‖W - Ŵ‖².
        whole: ‖X Wᵀ‖², XᵀX = C.
        lengths: (r,), ‖rightᵢ‖².
        damping: of the inputs.
    """
    damped = whole + damping * in_weight[0] - torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    on_data = damped - damping * in_weight
    least = _ROUNDING * damping * in_weight[0]
    whole = torch.where(on_data[0] > least, on_data[0], 0.0)
    return _relative(in_weight, whole.new_zeros(())), _relative(on_data, least), whole


def _relative(errors: Tensor, least: Tensor) -> Tensor:
    return errors / errors[0].clamp_min(_TINY) if errors[0] > least else torch.zeros_like(errors)
