"""From moments to a plan: what each layer can become, at which cost, and what the budget allows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from panther.convert.allocate import Choice, allocate, possible_ranks, uniform
from panther.convert.moments import Moments
from panther.convert.report import Cost, LayerReport
from panther.convert.units import Unit
from panther.convert.whitening import Spectrum, damped, whitened_svd
from panther.efficiency import multiply_adds_per_row

# Shares of the mean variance that are added to every direction of a layer's inputs and outputs, and how much more for
# each direction that there is to a row: of few rows the moments know little.
INPUT_DAMPING = 1e-4
OUTPUT_DAMPING = 1e-2
DAMPING_FOR_FEW_ROWS = 0.1


@dataclass
class Candidate:
    """A layer that can be converted, taken apart.

    Attributes:
        unit: the layer.
        spectrum: its weight taken apart, energies in units of the model's relative squared output error, or of the
            weight's own where there is no calibration.
        covariance: (d_in, d_in) of its inputs, about their mean where it has a bias; None without calibration.
        mean: (d_in,) of its inputs; None where no bias can take it up.
        ranks: that pay, rising.
    """

    unit: Unit
    spectrum: Spectrum
    covariance: Tensor | None
    mean: Tensor | None
    ranks: tuple[int, ...]

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """(d_in, rank) and (rank, d_out), float64."""
        return self.spectrum.left[:, :rank], self.spectrum.right[:rank]

    def lost(self, rank: int) -> Tensor:
        """(d_out, d_in), W - Ŵ."""
        left, right = self.factors(rank)
        return self.unit.weight.double() - (left @ right).t()

    def bias(self, bias: Tensor, rank: int) -> Tensor:
        """The bias that keeps the mean of the outputs: b + (W - Ŵ) μ."""
        if self.mean is None:
            return bias.detach()
        return (bias.detach().double() + self.lost(rank) @ self.mean).to(bias.dtype)

    def errors(self, rank: int) -> tuple[float, float | None]:
        """The relative errors in the weight and on the data."""
        W, lost = self.unit.weight.double(), self.lost(rank)
        on_data = None
        if self.covariance is not None:
            on_data = _ratio(_energy(lost, self.covariance), _energy(W, self.covariance)) ** 0.5
        return _ratio(lost.square().sum(), W.square().sum()) ** 0.5, on_data


def candidates(
    units: Sequence[Unit], moments: Mapping[int, Moments] | None, report_step: Callable[[str, int, int], None]
) -> list[Candidate]:
    """Take every layer apart that can be converted; the others get their reason."""
    found = []
    active = [unit for unit in units if unit.reason is None]
    for done, unit in enumerate(active):
        ranks = possible_ranks(unit.in_features, unit.out_features)
        seen = moments[id(unit)] if moments is not None else None
        if not ranks:
            unit.reason = "too small: no rank that is a multiple of 16 stores fewer parameters"
        elif seen is not None and seen.calls == 0:
            unit.reason = "never called in calibration: its weight may be read as a tensor, or it isn't used"
        elif seen is not None and seen.rows == 0:
            unit.reason = "moves no output of the model in calibration, so that nothing tells what may be lost"
        else:
            found.append(_candidate(unit, seen, ranks))
        report_step("factorising", done + 1, len(active))
    return found


def _candidate(unit: Unit, moments: Moments | None, ranks: tuple[int, ...]) -> Candidate:
    W = unit.weight
    if moments is None:
        spectrum = whitened_svd(W)
        energies = spectrum.energies / spectrum.energies.sum().clamp_min(torch.finfo(torch.float64).tiny)
        return Candidate(unit, Spectrum(spectrum.left, spectrum.right, energies), None, None, ranks)
    # only a bias of every module can take up the mean
    centred = len(unit.biases) > 0 and all(place.module.bias is not None for place in unit.places)
    covariance = moments.covariance(centred=centred)
    few = DAMPING_FOR_FEW_ROWS / moments.rows
    # of few rows the variance about the mean is too small; their mean square is not
    mean_square = moments.second.diagonal().mean() / moments.rows
    C_in = damped(covariance, INPUT_DAMPING, more=few * unit.in_features * mean_square)
    C_out = None
    if moments.sensitivity is not None:
        C_out = damped(moments.sensitivity, OUTPUT_DAMPING + few * unit.out_features)
    spectrum = whitened_svd(W, C_in, C_out)
    if C_out is None:
        energies = spectrum.energies / spectrum.energies.sum().clamp_min(torch.finfo(torch.float64).tiny)
        spectrum = Spectrum(spectrum.left, spectrum.right, energies)
    return Candidate(unit, spectrum, covariance, moments.mean if centred else None, ranks)


@dataclass(frozen=True)
class Plan:
    """What every candidate becomes.

    Attributes:
        ranks: each candidate with its rank, None for dense.
        allocation: "allocated" or "uniform".
        predicted: the sum of the squared errors.
    """

    ranks: tuple[tuple[Candidate, int | None], ...]
    allocation: str
    predicted: float


class Budgets:
    """What can be had for which budget.

    Args:
        model: the whole.
        units: every layer in play.
        candidates: those that can be converted.
        in_bytes: count bytes rather than parameters.

    Attributes:
        least: what the candidates cost at their lowest ranks.
        dense: what they cost when all are dense.
    """

    def __init__(
        self, model: nn.Module, units: Sequence[Unit], candidates: Sequence[Candidate], *, in_bytes: bool
    ) -> None:
        self._candidates = candidates
        self._model_bytes = model_size(model)[1]
        self._units = units
        self._choices = [_choice(candidate, in_bytes=in_bytes) for candidate in candidates]
        self.least = sum(choice.costs[0] for choice in self._choices)
        self.dense = sum(choice.costs[-1] for choice in self._choices)

    def for_ratio(self, ratio: float) -> float:
        """The candidates' budget in parameters, so that all layers in play together keep the ratio.

        Raises:
            ValueError: it can't be met; says what can.
        """
        every = sum(unit.dense_parameters for unit in self._units)
        kept = every - self.dense
        self._check(f"ratio ({ratio})", ratio * every - kept, f"{(self.least + kept) / every:.4f}")
        return ratio * every - kept

    def for_bytes(self, max_bytes: int) -> float:
        """The candidates' budget in bytes, so that the whole model keeps max_bytes.

        Raises:
            ValueError: it can't be met; says what can.
        """
        kept = self._model_bytes - self.dense
        self._check(f"max_bytes ({max_bytes})", max_bytes - kept, f"{self.least + kept}")
        return max_bytes - kept

    def plans(self, limit: float) -> list[Plan]:
        """The allocated plan and the uniform one, or one where they are the same."""
        made = [allocate(self._choices, limit), uniform(self._choices, limit)]
        names = ("allocated", "uniform")
        plans = [self._plan(chosen, name) for chosen, name in zip(made, names, strict=True)]
        return plans[:1] if made[0] == made[1] else plans

    def all_dense(self) -> Plan:
        """The plan that converts nothing."""
        return self._plan([len(choice.costs) - 1 for choice in self._choices], "allocated")

    def by_weight_error(self, max_error: float) -> Plan:
        """For each layer the lowest rank that keeps the relative error of its weight."""
        chosen = [next(i for i, error in enumerate(choice.errors) if error <= max_error**2) for choice in self._choices]
        return self._plan(chosen, "allocated")

    def _plan(self, chosen: Sequence[int], allocation: str) -> Plan:
        ranks: list[tuple[Candidate, int | None]] = []
        predicted = 0.0
        for candidate, choice, i in zip(self._candidates, self._choices, chosen, strict=True):
            ranks.append((candidate, candidate.ranks[i] if i < len(candidate.ranks) else None))
            predicted += choice.errors[i]
        return Plan(tuple(ranks), allocation, predicted)

    def _check(self, name: str, budget: float, least: str) -> None:
        if budget < self.least:
            raise ValueError(f"{name} can't be met: what can't be converted and the lowest ranks take {least}")


def _choice(candidate: Candidate, *, in_bytes: bool) -> Choice:
    unit = candidate.unit
    size = unit.element_bytes if in_bytes else 1
    biases = unit.dense_parameters - unit.weights
    per_rank = unit.in_features + unit.out_features
    tail = candidate.spectrum.tail()
    return Choice(
        ranks=(*candidate.ranks, unit.weights),
        costs=(*(size * (rank * per_rank + biases) for rank in candidate.ranks), size * unit.dense_parameters),
        errors=(*(tail[rank].item() for rank in candidate.ranks), 0.0),
    )


def layer_report(unit: Unit, candidate: Candidate | None, rank: int | None) -> LayerReport:
    """What the report says of a layer."""
    size = unit.element_bytes
    biases = unit.dense_parameters - unit.weights
    d_in, d_out = unit.in_features, unit.out_features
    before = Cost(unit.dense_parameters, 0, unit.dense_parameters * size, d_in * d_out)
    weight_error, data_error, after = 0.0, None, before
    if candidate is None:
        reason = unit.reason or ""
    elif rank is None:
        reason = "converting it would cost the outputs more than the budget needs"
        data_error = 0.0 if candidate.covariance is not None else None
    else:
        half = rank // 2 * (d_in + d_out)
        reason = f"stores {(2 * half + biases) / unit.dense_parameters:.0%} of its parameters"
        weight_error, data_error = candidate.errors(rank)
        after = Cost(half + biases, half, (2 * half + biases) * size, multiply_adds_per_row(d_in, d_out, 1, rank // 2))
    return LayerReport(
        name=unit.name,
        names=tuple(name for place in unit.places for name in place.names),
        in_features=d_in,
        out_features=d_out,
        converted=rank is not None,
        reason=reason,
        rank=rank,
        num_terms=1 if rank is not None else None,
        low_rank=rank // 2 if rank is not None else None,
        weight_error=weight_error,
        data_error=data_error,
        before=before,
        after=after,
    )


def total(costs: Iterable[Cost]) -> Cost:
    """Of several layers."""
    return sum(costs, start=Cost(0, 0, 0, 0))


def model_size(model: nn.Module) -> tuple[int, int]:
    """Stored parameters (those of U among the buffers included) and bytes of all parameters and buffers, each once."""
    fixed = {
        id(buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name in ("U1s", "U2s")
    }
    lazy = (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)
    every = (*model.parameters(), *model.buffers())
    tensors = {id(tensor): tensor for tensor in every if not isinstance(tensor, lazy)}
    parameters = {id(parameter) for parameter in model.parameters()} | fixed
    count = sum(tensor.numel() for key, tensor in tensors.items() if key in parameters)
    return count, sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _energy(W: Tensor, C: Tensor) -> Tensor:
    """‖X Wᵀ‖² for XᵀX = C."""
    return ((W @ C) * W).sum()


def _ratio(part: Tensor, whole: Tensor) -> float:
    return (part / whole).clamp_min(0).item() if whole > 0 else 0.0
