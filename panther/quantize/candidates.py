"""Static int8 candidates: groups of layers that read one tensor, their choices, the layers made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import overload

import torch
from torch import Tensor, nn

from panther.convert.layers import Place, Unit, bias_of
from panther.convert.moments import Moments, keeps_diagonal
from panther.linalg.whitening import damped
from panther.nn.hooks import take_hooks
from panther.nn.quantized import Int8Linear
from panther.quantize.observe import Observed
from panther.quantize.rounding import Rounded, round_nearest, round_weight
from panther.quantize.smoothing import Activation, Sight, choices

_OUTPUT_DAMPING = 1e-2
# share of the predicted squared error that may be added to save multiplications by smoothing factors
_SAVED_SMOOTHING = 0.05


@dataclass
class Candidate:
    """Layers that read the same tensor.

    Attributes:
        units: the layers.
        read: computes their calibration statistics from the kept moments.
        choices: one for each alpha.
    """

    units: list[Unit]
    read: Callable[[], Sight] = field(repr=False)
    choices: list[Activation]
    _rounded: dict[tuple[int, float], Rounded] = field(default_factory=dict, repr=False)

    @property
    def sight(self) -> Sight:
        """The calibration statistics of the layers, computed at every access."""
        return self.read()

    @property
    def best(self) -> Activation:
        """The choice of the least predicted error; of equals the one with least smoothing."""
        return min(self.choices, key=lambda choice: (choice.error, choice.alpha))

    def layers(self, index: int, choice: Activation, *, compensate: bool) -> list[tuple[Place, nn.Module]]:
        """A quantized layer for each module of a unit.

        Args:
            index: of the unit.
            choice: how its input is rounded.
            compensate: round with error feedback; to the nearest if False, which takes a fraction of the time.
        """
        unit, sight = self.units[index], self.sight
        rounded = self._round(sight, index, choice, compensate=compensate)
        shift: Tensor | None = None
        found = list[tuple[Place, nn.Module]]()
        for place in unit.places:
            bias = bias_of(place.module)
            layer = Int8Linear(rounded.weight, rounded.scale, choice.scale, choice.zero_point, choice.smoothing, bias)
            if layer.bias is not None:
                if shift is None:
                    shift = _mean_error(layer, sight, index)
                layer.bias.data += shift
            take_hooks(layer, place.module)
            found.append((place, layer.to(unit.device).train(place.module.training)))
        return found

    def _round(self, sight: Sight, index: int, choice: Activation, *, compensate: bool) -> Rounded:
        """A rounded weight; only those that take long are kept."""
        key = (index, choice.alpha)
        if compensate and key in self._rounded:
            return self._rounded[key]
        W, C = choice.smoothed(sight.weights[index]), choice.moment(sight.second)
        if not compensate:
            return round_nearest(W, C)
        self._rounded[key] = round_weight(W, C, sight.sensitivities[index])
        return self._rounded[key]


@dataclass(frozen=True)
class Int8Option:
    """One layer of a candidate in static int8.

    Attributes:
        candidate, index: the group that it belongs to, and where.
        choice: how its input is rounded.
    """

    candidate: Candidate
    index: int
    choice: Activation

    @property
    def unit(self) -> Unit:
        """The layer."""
        return self.candidate.units[self.index]

    @property
    def precision(self) -> str:
        """Name in reports."""
        return "int8"

    @property
    def alpha(self) -> float | None:
        """Strength of the smoothing."""
        return self.choice.alpha

    @property
    def reason(self) -> str:
        """The treatment of outliers."""
        return "outliers moved into the weight" if self.choice.alpha else "no smoothing"

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight, its scales, the smoothing, and scale and zero point of the activations."""
        smoothing = 0 if self.choice.smoothing is None else 4 * self.unit.in_features
        return self.unit.weights + 4 * self.unit.out_features + smoothing + 5

    @property
    def estimate(self) -> float:
        """The predicted relative squared error of the model's outputs."""
        return self.choice.errors[self.index]

    @property
    def error(self) -> float:
        """Error of the finished layer."""
        return self.estimate

    def layers(self, *, final: bool) -> list[tuple[Place, nn.Module]]:
        """Rounded with feedback where final, else to the nearest."""
        return self.candidate.layers(self.index, self.choice, compensate=final)


def usable(units: Sequence[Unit], moments: Mapping[int, Moments], seen: Observed) -> list[Unit]:
    """The units that can be quantized; the others get their reason."""
    for unit in units:
        found = moments[id(unit)]
        if found.calls == 0 or id(unit) not in seen.rows:
            unit.reason = "never called in calibration: its weight may be read as a tensor, or it isn't used"
        elif found.rows == 0:
            unit.reason = "no output depends on it in calibration, so its error can't be weighed"
        elif not bool(unit.weight.any()):
            unit.reason = "its weight is zero"
    return [unit for unit in units if unit.reason is None]


def candidates(
    units: Sequence[Unit],
    moments: Mapping[int, Moments],
    seen: Observed,
    alphas: Sequence[float],
    step: Callable[[str, int, int], None],
) -> list[Candidate]:
    """The layers that can be quantized, with their choices; the others get their reason."""
    usable(units, moments, seen)
    groups = [[unit for unit in group if unit.reason is None] for group in seen.groups()]
    groups = [group for group in groups if group]
    result = []
    for done, group in enumerate(groups):
        read = partial(sight_of, group, moments, seen)
        result.append(Candidate(group, read, choices(read(), alphas)))
        step("choosing ranges", done + 1, len(groups))
    return result


def cheaper(candidates: Sequence[Candidate], chosen: Sequence[Activation]) -> list[Activation]:
    """The choice of each candidate, without smoothing where that adds little error.

    Smoothing costs a multiplication of every entry at each run. It stays where it saves most error for each entry.
    """
    result = list(chosen)
    left = _SAVED_SMOOTHING * sum(choice.error for choice in chosen)
    plain = [
        (choice.error - chosen[index].error, index, choice)
        for index, candidate in enumerate(candidates)
        for choice in candidate.choices
        if chosen[index].alpha and not choice.alpha
    ]
    for added, index, choice in sorted(plain, key=lambda entry: entry[0] / candidates[entry[1]].units[0].in_features):
        if added <= left:
            result[index], left = choice, left - max(added, 0.0)
    return result


def sight_of(units: Sequence[Unit], moments: Mapping[int, Moments], seen: Observed) -> Sight:
    """The calibration statistics of layers that read one tensor; weights and sensitivities are computed when read."""
    first = id(units[0])
    second = moments[first].covariance(centred=False)

    def cost(unit: Unit) -> Tensor:
        return sensitivity(moments[id(unit)], unit.weight.double(), second, seen.examples)

    return Sight(
        seen.rows[first],
        seen.lowest[first],
        seen.highest[first],
        second,
        Computed([partial(_doubled, unit) for unit in units]),
        Computed([partial(cost, unit) for unit in units]),
    )


class Computed(Sequence[Tensor]):
    """Tensors that are computed whenever one is read.

    Args:
        makers: return them.
    """

    def __init__(self, makers: Sequence[Callable[[], Tensor]]) -> None:
        self._makers = makers

    @overload
    def __getitem__(self, at: int) -> Tensor: ...
    @overload
    def __getitem__(self, at: slice) -> Computed: ...
    def __getitem__(self, at: int | slice) -> Tensor | Computed:
        return Computed(self._makers[at]) if isinstance(at, slice) else self._makers[at]()

    def __len__(self) -> int:
        return len(self._makers)


def _doubled(unit: Unit) -> Tensor:
    return unit.weight.double()


def sensitivity(moments: Moments, W: Tensor, second: Tensor, examples: int) -> Tensor:
    """(d_out, d_out), or its diagonal: cost of an error of the layer's outputs; relative to its own if none is known.

    The moments weigh each batch by its examples, so that eᵀ G e of their sum is the relative error times all examples.
    """
    known = moments.sensitivity
    if known is not None:
        # few rows determine few directions; each entry of a diagonal is known by itself
        share = _OUTPUT_DAMPING + (len(W) / max(moments.rows, 1) if known.dim() == 2 else 0.0)
        found = damped(known, share)
        if found is not None:
            return found / max(examples, 1)
    energy = ((W @ second) * W).sum().clamp_min(torch.finfo(torch.float64).tiny)
    ones = torch.ones(len(W), dtype=torch.float64, device=W.device) / energy
    return ones if keeps_diagonal(len(W)) else ones.diag()


def _mean_error(layer: Int8Linear, sight: Sight, index: int) -> Tensor:
    """(d_out,), mean error of the layer's outputs, to add to its bias."""
    X = sight.rows
    q = layer.quantized_input(X).mean(0) * layer.input_scale
    # mean of x̂ Ŵᵀ against that of x Wᵀ
    expected = sight.weights[index].float() @ X.mean(0)
    return expected - (layer.weight_int8.float() * layer.weight_scale.unsqueeze(1)) @ q
