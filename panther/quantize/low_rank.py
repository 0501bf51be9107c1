"""Low rank in 8 bits: factors rounded one after the other, the second refitted on the outputs of the first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from panther.convert.layers import Place, Unit, bias_of
from panther.linalg.whitening import damped
from panther.nn.hooks import take_hooks
from panther.nn.low_rank import Int8LowRank
from panther.nn.quantized import Int8Linear
from panther.quantize.rounding import Rounded, round_nearest, round_weight
from panther.quantize.smoothing import Activation, Sight, choices

_DAMPING = 1e-4


@dataclass(frozen=True)
class Layer:
    """Statistics of a layer that is to become two factors in 8 bits.

    Attributes:
        unit: the layer.
        sight: calibration statistics of the tensor that it reads.
        index: of the layer among those that read it.
        choice: how the tensor is rounded.
        covariance: (d_in, d_in), of the tensor; about its mean if the bias corrects the mean error.
        extreme: (n, d_in), rows with the largest entries.
    """

    unit: Unit
    sight: Sight
    index: int
    choice: Activation
    covariance: Tensor
    extreme: Tensor

    @property
    def weight(self) -> Tensor:
        """(d_out, d_in), float64."""
        return self.sight.weights[self.index]


@dataclass(frozen=True)
class Factors:
    """The two factors of a layer.

    Attributes:
        first: (rank, d_in), of the tensor after smoothing.
        second: (d_out, rank).
        middle: how the tensor between them is rounded.
    """

    first: Rounded
    second: Rounded
    middle: Activation


def factorize(layer: Layer, left: Tensor, *, compensate: bool) -> Factors:
    """Round the first factor, refit the second to its outputs, and round that.

    With ẑ = Â (x + n), n being the error of the rounded input, the least-squares second factor is
    B = E[W x ẑᵀ] E[ẑ ẑᵀ]⁻¹ = W C Âᵀ (Â (C + s²/12) Âᵀ)⁻¹, independent of the sensitivity of the outputs.

    Args:
        layer: the layer.
        left: (d_in, rank), float64, the first factor.
        compensate: round by GPTQ; to the nearest when False, which takes a fraction of the time.
    """
    rounded = round_weight if compensate else round_nearest
    choice, noise = layer.choice, layer.choice.scale**2 / 12
    # second moments of the first factor's inputs: smoothed, with the variance of rounding
    noisy, about_mean = choice.moment(layer.sight.second), choice.moment(layer.covariance)
    first = rounded(choice.smoothed(left.t()), noisy)
    A = first.dense()
    cross = choice.smoothed(layer.weight) @ (about_mean @ A.t() - noise * A.t())
    gram = damped(A @ about_mean @ A.t(), _DAMPING)
    B = torch.zeros_like(cross)
    if gram is not None:
        B = torch.cholesky_solve(cross.t(), torch.linalg.cholesky(gram)).t()
    middle = _middle(layer, first, B)
    return Factors(first, rounded(B, middle.moment(A @ noisy @ A.t())), middle)


def modules(layer: Layer, factors: Factors) -> list[tuple[Place, Int8LowRank]]:
    """A module for each place of the layer; those of one weight share their factors."""
    found: list[tuple[Place, Int8LowRank]] = []
    shift: Tensor | None = None
    for place in layer.unit.places:
        bias = bias_of(place.module)
        second = Int8Linear(
            factors.second.weight, factors.second.scale, factors.middle.scale, factors.middle.zero_point, None, bias
        )
        made = Int8LowRank(_first(layer.choice, factors.first), second)
        if second.bias is not None:
            if shift is None:
                shift = mean_error(layer, made, bias)
            second.bias.data += shift
        take_hooks(made, place.module)
        found.append((place, made.to(layer.unit.weight.device).train(place.module.training)))
    return found


@torch.no_grad()
def mean_error(layer: Layer, made: Int8LowRank, bias: Tensor | None) -> Tensor:
    """(d_out,), mean output error over the sampled rows."""
    X = layer.sight.rows
    expected = nn.functional.linear(X.mean(0), layer.weight.float(), None if bias is None else bias.float())
    missing: Tensor = expected - made(X).mean(0)
    return missing


def _first(choice: Activation, factor: Rounded) -> Int8Linear:
    return Int8Linear(factor.weight, factor.scale, choice.scale, choice.zero_point, choice.smoothing)


@torch.no_grad()
def _middle(layer: Layer, first: Rounded, B: Tensor) -> Activation:
    """How the tensor between the factors is rounded; its range covers the rows of the largest entries too."""
    product = _first(layer.choice, first)
    Z = product(layer.sight.rows)
    every = torch.cat([Z, product(layer.extreme.float())])
    second = (Z.t() @ Z).double() / max(len(Z), 1)
    G = layer.sight.sensitivities[layer.index]
    sight = Sight(Z, every.amin(0), every.amax(0), second, [B], [G])
    return choices(sight, (0.0,))[0]
