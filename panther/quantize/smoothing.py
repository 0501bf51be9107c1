"""Activation ranges and smoothing, chosen by their predicted effect on the model's outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from panther.linalg.whitening import weighted
from panther.nn.quantized import LEVELS
from panther.quantize.loss import weighed_loss
from panther.quantize.rounding import round_nearest

# quantiles of the inputs that a range covers
_COVERED = (1.0, 0.85, 0.7, 0.55, 0.4, 0.3)
# rows of the sample on which ranges are compared
_ROWS = 256


@dataclass(frozen=True)
class Sight:
    """Statistics of the layers that read one tensor.

    Attributes:
        rows: (n, d_in) float32, a sample of it.
        lowest, highest: (d_in,), over all rows.
        second: (d_in, d_in), float64, the mean of x xᵀ.
        weights: (d_out, d_in), float64, of each layer.
        sensitivities: (d_out, d_out), or the diagonal (d_out,), float64, of each: eᵀ G e is the relative squared error
            of the model's outputs where e is the layer's.
    """

    rows: Tensor
    lowest: Tensor
    highest: Tensor
    second: Tensor
    weights: Sequence[Tensor]
    sensitivities: Sequence[Tensor]


@dataclass(frozen=True)
class Activation:
    """How a tensor is rounded to 8 bits.

    Attributes:
        alpha: of the smoothing; 0 for none.
        smoothing: (d_in,), float64, factors that multiply the input first; None if alpha is 0.
        scale, zero_point: of the 8 bits.
        errors: the predicted relative squared error of the model's outputs from each layer that reads it, of the
            rounding of its activations and of its weight together.
    """

    alpha: float
    smoothing: Tensor | None
    scale: float
    zero_point: int
    errors: tuple[float, ...] = ()

    @property
    def error(self) -> float:
        """Error of all its layers."""
        return sum(self.errors)

    def smoothed(self, W: Tensor) -> Tensor:
        """The weight (d_out, d_in) that takes the smoothed tensor."""
        return W if self.smoothing is None else W / self.smoothing

    def moment(self, second: Tensor) -> Tensor:
        """(d_in, d_in), the second moment of the rounded tensor: smoothed, with the variance of rounding."""
        s = self.smoothing
        C = second.clone() if s is None else (second * s).mul_(s.unsqueeze(1))
        C.diagonal().add_(self.scale**2 / 12)
        return C


def choices(sight: Sight, alphas: Sequence[float]) -> list[Activation]:
    """The best range for each alpha, with its predicted error.

    Smoothing moves outliers from activations into weights: x_j is divided, and column j of W multiplied, by
    max|x_j|^alpha / max|W_j|^(1 - alpha) (Xiao et al., "SmoothQuant", 2022); layers that read the same tensor share it.
    """
    # eᵀ M e is the cost of an error e of the tensor, through a layer
    Ms, total, rank = list[Tensor](), torch.zeros_like(sight.second), 0
    for W, G in zip(sight.weights, sight.sensitivities, strict=True):
        Ms.append(W.t() @ weighted(G, W))
        total += Ms[-1]
        rank += len(W)
    F = _factor(total, rank)
    del total
    return [_choice(sight, Ms, F, alpha) for alpha in alphas]


def _choice(sight: Sight, Ms: Sequence[Tensor], F: Tensor, alpha: float) -> Activation:
    smoothing = _smoothing(sight, alpha) if alpha else None
    X, low, high = sight.rows, sight.lowest, sight.highest
    if smoothing is not None:
        X, low, high = X * smoothing.float(), low * smoothing.float(), high * smoothing.float()
        F = F / smoothing.unsqueeze(1)
    # a range must hold zero, the value of padding and ReLU
    low_end, high_end = min(float(low.min()), 0.0), max(float(high.max()), 0.0)
    scale, zero_point = _range(X[:: max(1, len(X) // _ROWS)], low_end, high_end, F.float())
    chosen = Activation(alpha, smoothing, scale, zero_point)
    lost_X = X - _rounded(X, scale, zero_point)
    lost_X = lost_X if smoothing is None else lost_X / smoothing.float()
    moment = (lost_X.t() @ lost_X).double() / max(len(X), 1)
    C = chosen.moment(sight.second)
    errors = []
    for W, G, M in zip(sight.weights, sight.sensitivities, Ms, strict=True):
        smoothed = chosen.smoothed(W)
        lost = smoothed - round_nearest(smoothed, C).dense()
        # eᵀ M e for the error of the tensor before it is smoothed
        errors.append(float((M * moment).sum()) + weighed_loss(lost, G, C))
    return dataclasses.replace(chosen, errors=tuple(errors))


def _smoothing(sight: Sight, alpha: float) -> Tensor:
    """Smoothing factors (d_in,), scaled to a geometric mean of 1."""
    largest = torch.maximum(sight.lowest.abs(), sight.highest.abs()).double()
    columns = torch.stack([W.abs().amax(0) for W in sight.weights]).amax(0)
    used = (largest > 0) & (columns > 0)
    if not bool(used.any()):
        return torch.ones_like(columns)
    logs = torch.where(used, (1 - alpha) * columns.log() - alpha * largest.log(), 0.0)
    logs = torch.where(used, logs - logs[used].mean(), 0.0)
    return logs.clamp(-12, 12).exp()


def _factor(M: Tensor, rank: int) -> Tensor:
    """(d_in, r): M = F Fᵀ, where M has at most the rank; narrower than M where that is smaller."""
    values, vectors = torch.linalg.eigh(M)
    kept = min(rank, len(M))
    F: Tensor = vectors[:, -kept:] * values[-kept:].clamp_min(0).sqrt()
    return F


def _range(X: Tensor, low: float, high: float, F: Tensor) -> tuple[float, int]:
    """The scale and zero point with the least cost on the sample: the upper end of the range is searched first."""
    if low == high:
        return 1.0, 0
    best = (1.0, 1.0)
    found = {best: _cost(X, low, high, F)}
    for end in (1, 0):
        for share in _COVERED[1:]:
            tried = (best[0], share) if end else (share, best[1])
            if tried not in found:
                found[tried] = _cost(X, low * tried[0], high * tried[1], F)
        best = min(found, key=lambda key: found[key])
    return affine(low * best[0], high * best[1])


def affine(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point of 8 bits from low to high, which lie on either side of zero."""
    scale = float(torch.tensor((high - low) / LEVELS, dtype=torch.float32).clamp_min(torch.finfo(torch.float32).tiny))
    return scale, min(max(round(-low / scale), 0), LEVELS)


def _rounded(X: Tensor, scale: float, zero_point: int) -> Tensor:
    return ((torch.round(X / scale) + zero_point).clamp(0, LEVELS) - zero_point) * scale


def _cost(X: Tensor, low: float, high: float, F: Tensor) -> float:
    lost = X - _rounded(X, *affine(low, high))
    return float((lost @ F).square().sum(dtype=torch.float64) / max(len(X), 1))
