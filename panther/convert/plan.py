"""From moments to a plan: candidates of each layer, their costs, and the best ones within the budget.

See docs/decisions/0047-conversion-budgets.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from panther.convert.allocate import RANK_STEP, Choice, allocate, possible_ranks, uniform
from panther.convert.candidates import Candidate, weigh, weighed_spectrum
from panther.convert.compact import take_apart
from panther.convert.conv_candidates import CONV_RANK_STEP, ConvCandidate, conv_candidates, conv_ranks
from panther.convert.embedding_candidates import EMBEDDING_RANK_STEP, embedding_ranks
from panther.convert.embeddings import is_embedding
from panther.convert.layers import Unit
from panther.convert.moments import Moments, Sums
from panther.convert.reach import blocking
from panther.convert.report import ConvolutionReport, Cost, LayerReport
from panther.convert.spill import Keeper
from panther.convert.statistics import Statistics
from panther.convert.tied import table_candidate


def candidates(
    units: Sequence[Unit], moments: Mapping[int, Moments] | None, report_step: Callable[[str, int, int], None]
) -> list[Candidate]:
    """Decompose every convertible layer, a convolution in several ways; the others get their reason."""
    found: list[Candidate] = []
    active = [unit for unit in units if unit.reason is None]
    zeros = zero_weights(active)
    for done, unit in enumerate(active):
        found += ways(unit, None if moments is None else moments[id(unit)], zeros)
        report_step("factorizing", done + 1, len(active))
    return found


def zero_weights(units: Iterable[Unit]) -> str:
    """A clause that names layers whose weight is zero; empty where there are none."""
    zero = [unit.name for unit in units if not bool(unit.weight.any())]
    return f"; the weight of {', '.join(zero[:3])} is zero" if zero else ""


def ways(unit: Unit, seen: Sums | None, zeros: str, keeper: Keeper | None = None) -> Sequence[Candidate]:
    """The candidates of a layer; without any it gets a reason.

    Args:
        unit: the layer.
        seen: its calibration statistics; None without calibration.
        zeros: as `zero_weights`, of all layers.
        keeper: keeps the factors of the linear layers that `seen` has statistics for.
    """
    if not _pays(unit):
        unit.reason = f"too small: no rank that is a multiple of {_step(unit)} stores fewer parameters"
    elif seen is not None and _uncalled(seen):
        unit.reason = "never called in calibration: its weight may be read as a tensor, or it isn't used"
    elif seen is not None and seen.rows == 0:
        unit.reason = "no output depends on it in calibration, so its error can't be weighed" + zeros
    elif isinstance(seen, Statistics):
        ranks = possible_ranks(unit.in_features, unit.out_features)
        return [take_apart(unit, seen, ranks, keeper or Keeper())]
    elif seen is None or isinstance(seen, Moments):
        return _candidates(unit, seen)
    else:
        raise TypeError(f"{type(seen).__name__} is not the statistics of a layer")
    return []


def _uncalled(seen: Sums) -> bool:
    head = seen.head if isinstance(seen, Moments) else None
    return seen.calls == 0 or (head is not None and head.calls == 0)


def _pays(unit: Unit) -> bool:
    """Whether some rank stores less."""
    if is_embedding(unit.places[0].module):
        return bool(embedding_ranks(unit))
    return bool(possible_ranks(unit.in_features, unit.out_features) if unit.convolution is None else conv_ranks(unit))


def _step(unit: Unit) -> int:
    if is_embedding(unit.places[0].module):
        return EMBEDDING_RANK_STEP
    return RANK_STEP if unit.convolution is None else CONV_RANK_STEP


def _candidates(unit: Unit, moments: Moments | None) -> Sequence[Candidate]:
    """The candidates of a unit."""
    if is_embedding(unit.places[0].module):
        return [table_candidate(unit, moments)]
    weighing = None if moments is None else weigh(unit, moments)
    if unit.convolution is not None:
        return conv_candidates(unit, weighing)
    ranks = possible_ranks(unit.in_features, unit.out_features)
    return [Candidate(unit, weighing, weighed_spectrum(unit, weighing), ranks)]


@dataclass(frozen=True)
class Plan:
    """The decision for every candidate.

    Attributes:
        ranks: each candidate with its rank, None for dense.
        allocation: "allocated" or "uniform".
        predicted: the sum of the squared errors.
    """

    ranks: tuple[tuple[Candidate, int | None], ...]
    allocation: str
    predicted: float


class Budgets:
    """Attainable sizes and errors for each budget.

    Args:
        model: the whole.
        units: every eligible layer.
        candidates: those that can be converted.
        in_bytes: count bytes rather than parameters.

    Attributes:
        least: what the candidates cost at their lowest ranks.
        dense: what they cost when all are dense.
    """

    def __init__(
        self, model: nn.Module, units: Sequence[Unit], candidates: Sequence[Candidate], *, in_bytes: bool
    ) -> None:
        self._model_bytes = model_size(model)[1]
        self._units = units
        by_unit: dict[int, list[Candidate]] = {}
        for candidate in candidates:
            by_unit.setdefault(id(candidate.unit), []).append(candidate)
        self._options = [_options(ways, in_bytes=in_bytes) for ways in by_unit.values()]
        self._choices = [
            Choice(
                costs=tuple(option.cost for option in options),
                errors=tuple(option.error for option in options),
            )
            for options in self._options
        ]
        self.least = sum(choice.costs[0] for choice in self._choices)
        self.dense = sum(choice.costs[-1] for choice in self._choices)

    def for_ratio(self, ratio: float) -> float:
        """The candidates' budget in parameters, so that all eligible layers together keep the ratio.

        Raises:
            ValueError: it can't be met; the message has the limit.
        """
        every = sum(unit.dense_parameters for unit in self._units)
        kept = every - self.dense
        self._check(f"ratio ({ratio})", ratio * every - kept, f"{(self.least + kept) / every:.4f}")
        return ratio * every - kept

    def for_bytes(self, max_bytes: int) -> float:
        """The candidates' budget in bytes, so that the whole model keeps max_bytes.

        Raises:
            ValueError: it can't be met; the message has the limit.
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
        """The lowest rank of each layer that keeps the relative error of its weight."""
        chosen = [next(i for i, error in enumerate(choice.errors) if error <= max_error**2) for choice in self._choices]
        return self._plan(chosen, "allocated")

    def _plan(self, chosen: Sequence[int], allocation: str) -> Plan:
        ranks: list[tuple[Candidate, int | None]] = []
        predicted = 0.0
        for options, i in zip(self._options, chosen, strict=True):
            ranks.append((options[i].candidate, options[i].rank))
            predicted += options[i].error
        return Plan(tuple(ranks), allocation, predicted)

    def _check(self, name: str, budget: float, least: str) -> None:
        if budget < self.least:
            raise ValueError(
                f"{name} can't be met: the other parameters and the lowest ranks take {least}; give at least that"
                + blocking(self._units)
            )


@dataclass(frozen=True)
class _Option:
    """One option for a layer: a rank, or None for dense."""

    candidate: Candidate
    rank: int | None
    cost: int
    error: float


def _options(ways: Sequence[Candidate], *, in_bytes: bool) -> list[_Option]:
    """The options of a layer by rising cost and falling error, without dominated ones."""
    unit = ways[0].unit
    size = unit.element_bytes if in_bytes else 1
    biases = unit.dense_parameters - unit.weights
    every = []
    for candidate in ways:
        tail = candidate.tail()
        every += [
            _Option(candidate, rank, size * (sum(candidate.stored(rank)) + biases), tail[rank].item())
            for rank in candidate.ranks
        ]
    if len(ways) > 1:
        every.sort(key=lambda option: (option.cost, option.error))
        every = [option for i, option in enumerate(every) if all(option.error < before.error for before in every[:i])]
    return [*every, _Option(ways[0], None, size * unit.dense_parameters, 0.0)]


def layer_report(unit: Unit, candidate: Candidate | None, rank: int | None) -> LayerReport:
    """The report entry of a layer."""
    size = unit.element_bytes
    biases = unit.dense_parameters - unit.weights
    d_in, d_out = unit.in_features, unit.out_features
    embedding = is_embedding(unit.places[0].module)
    multiply_adds = d_in * d_out * (len(unit.heads) if embedding else 1)
    before = Cost(unit.dense_parameters, 0, unit.dense_parameters * size, multiply_adds)
    weight_error, data_error, after, convolution = 0.0, None, before, None
    conv = unit.convolution
    if conv is not None:
        d_in = conv.in_channels
        convolution = ConvolutionReport(conv.kernel_size, conv.stride, conv.groups)
    if candidate is None:
        reason = unit.reason or ""
    elif rank is None:
        reason = "converting it would cost the outputs more than the budget needs"
        data_error = 0.0 if candidate.weighing is not None else None
    else:
        learned, fixed = candidate.stored(rank)
        stored = learned + fixed + biases
        reason = f"stores {stored / unit.dense_parameters:.0%} of its parameters"
        weight_error, data_error = candidate.errors(rank)
        after = Cost(learned + biases, fixed, stored * size, candidate.multiply_adds(rank))
        if convolution is not None and isinstance(candidate, ConvCandidate):
            convolution = replace(convolution, terms=candidate.terms)
    return LayerReport(
        name=unit.name,
        names=tuple(name for place in unit.places for name in place.names),
        in_features=d_in,
        out_features=d_out,
        converted=rank is not None,
        reason=reason,
        rank=rank,
        num_terms=1 if rank is not None and not embedding else None,
        low_rank=rank // 2 if rank is not None and not embedding else None,
        weight_error=weight_error,
        data_error=data_error,
        before=before,
        after=after,
        convolution=convolution,
    )


def keep_overflowing_dense(chosen: Plan) -> list[Candidate]:
    """The candidates of a plan whose sketched layers overflow; they get this as the reason to stay dense."""
    found = [candidate for candidate, rank in chosen.ranks if rank is not None and candidate.overflows(rank)]
    for candidate in found:
        dtype = str(candidate.unit.weight.dtype).removeprefix("torch.")
        candidate.unit.reason = f"overflows as a sketched layer in {dtype}: its factors, or products with them"
    return found


def total(costs: Iterable[Cost]) -> Cost:
    """Sum over several layers."""
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
