"""Plans: which layers are quantized, and how, by the error of the model's outputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from panther.convert.deviation import Deviation, Reference
from panther.convert.layers import Place, Unit
from panther.convert.swap import Swap
from panther.quantize.candidates import Candidate, Int8Option, cheaper
from panther.quantize.convolutions import StoredOption
from panther.quantize.embeddings import Table
from panther.quantize.option import Option
from panther.quantize.report import QuantizedLayer
from panther.quantize.smoothing import Activation

PER_LAYER, UNIFORM = "per layer", "uniform"
_UNMEASURED = Deviation(math.inf, -1.0)


@dataclass(frozen=True)
class Decision:
    """The decision for one layer.

    Attributes:
        unit: the layer.
        options: what it can become, the fewest bytes first; float32 comes after the last.
        at: the index of the option that is taken.
    """

    unit: Unit
    options: tuple[Option, ...]
    at: int = 0

    @property
    def option(self) -> Option | None:
        """The option that is taken; None for float32."""
        return self.options[self.at] if self.at < len(self.options) else None

    def gain(self, at: int) -> float:
        """Decrease of the squared error from option `at` to the next one, for each byte that it adds."""
        sizes = [option.weight_bytes for option in self.options[at : at + 2]]
        errors = [option.estimate for option in self.options[at : at + 2]]
        if len(sizes) == 1:
            sizes, errors = [*sizes, self.unit.weights * self.unit.element_bytes], [*errors, 0.0]
        return (errors[0] - errors[1]) / max(sizes[1] - sizes[0], 1)


@dataclass(frozen=True)
class Plan:
    """Decisions for every layer that can be quantized.

    Attributes:
        decisions: in the order of the model.
        smoothing: `PER_LAYER` or `UNIFORM`; None without smoothing.
        deviation: of the model's outputs, as far as it was measured.
    """

    decisions: tuple[Decision, ...]
    smoothing: str | None = None
    deviation: Deviation = _UNMEASURED

    def with_options(self, options: Sequence[tuple[StoredOption, ...]]) -> Plan:
        """The plan with decisions for convolutions, each at its first option."""
        more = (Decision(each[0].unit, each) for each in options)
        return dataclasses.replace(self, decisions=(*self.decisions, *more))


class Quantizer:
    """Tries plans on the whole model.

    Args:
        model: in eval mode; is as it was after every method.
        tables: the embeddings; those without a reason to stay in float32 are quantized in every plan.
        reference: the original's outputs.
        step: called with (what, done, all).

    Attributes:
        tables: the embeddings, with more bits or the reason of those that `within` left in float32.
    """

    def __init__(
        self,
        model: nn.Module,
        tables: Sequence[Table],
        reference: Reference,
        step: Callable[[str, int, int], None],
    ) -> None:
        self._model, self._reference, self._step = model, reference, step
        self.tables: list[Table] = []
        self._embeddings: list[tuple[Place, nn.Module]] = []
        self._set_tables(tables)

    def best_smoothing(self, candidates: Sequence[Candidate], alphas: Sequence[float]) -> Plan:
        """The plan with the best alpha for each layer, or one alpha for all where its outputs are closer.

        In either, layers whose smoothing saves little error are left without (`cheaper`).
        """
        plans = [int8_plan(candidates, [candidate.best for candidate in candidates], PER_LAYER)]
        if len(alphas) > 1:
            plans += [
                int8_plan(candidates, [candidate.choices[index] for candidate in candidates], UNIFORM)
                for index in range(len(alphas))
            ]
        measured = []
        for done, plan in enumerate(plans):
            measured.append(self._measured(plan, final=False))
            self._step("comparing", done + 1, len(plans))
        return min(measured, key=lambda plan: plan.deviation.error)

    def final(self, plan: Plan) -> Plan:
        """The plan with the deviation of the layers that `replacements` makes."""
        return self._measured(plan, final=True)

    def within(self, plan: Plan, max_error: float) -> Plan:
        """The smallest plan that keeps the error limit; bisects over steps to the next option by gain for each byte.

        Where the embeddings alone cost more, they get more bits, and stay in float32 at last.
        """
        steps = _steps(plan.decisions)
        low, high, best = 0, len(steps), self._measured(_after(plan, steps), final=True)
        while best.deviation.error > max_error and self._embeddings:
            self._set_tables([table.finer() for table in self.tables])
            best = self._measured(_after(plan, steps), final=True)
        while low < high:
            middle = (low + high) // 2
            tried = self._measured(_after(plan, steps[:middle]), final=True)
            if tried.deviation.error <= max_error:
                best, high = tried, middle
            else:
                low = middle + 1
            self._step("searching", len(steps) - (high - low), len(steps))
        return best

    def replacements(self, plan: Plan) -> list[tuple[Place, nn.Module]]:
        """The layers of a plan, each with its place."""
        return self._replacements(plan, final=True)

    def notes(self, plan: Plan) -> Iterator[str]:
        """Notes on a plan for the report."""
        if not math.isfinite(plan.deviation.error):
            yield "the quantized model's outputs overflow where the original's are finite"
        if not self._reference.all_finite:
            yield "some of the original's outputs are infinite or NaN; the others were compared"

    def _set_tables(self, tables: Sequence[Table]) -> None:
        self.tables = list(tables)
        self._embeddings = [(table.place, table.quantized()) for table in tables if table.reason is None]

    def _measured(self, plan: Plan, *, final: bool) -> Plan:
        with Swap(self._model, self._replacements(plan, final=final)):
            return dataclasses.replace(plan, deviation=self._reference.deviation(self._model))

    def _replacements(self, plan: Plan, *, final: bool) -> list[tuple[Place, nn.Module]]:
        replacements = list(self._embeddings)
        for each in plan.decisions:
            if each.option is not None:
                replacements += each.option.layers(final=final)
        return replacements


def int8_plan(candidates: Sequence[Candidate], chosen: Sequence[Activation], smoothing: str) -> Plan:
    """Every layer in static int8, the input of each candidate rounded as chosen, or without its smoothing."""
    options = [
        Int8Option(candidate, index, choice)
        for candidate, choice in zip(candidates, cheaper(candidates, chosen), strict=True)
        for index in range(len(candidate.units))
    ]
    return Plan(tuple(Decision(option.unit, (option,)) for option in options), smoothing)


def _steps(decisions: Sequence[Decision]) -> list[int]:
    """Indices of the decisions that advance to their next option, the largest gain per byte first."""
    steps = []
    for index, each in enumerate(decisions):
        gain = math.inf
        for at in range(len(each.options)):
            # never before the step that it depends on
            gain = min(gain, each.gain(at))
            steps.append((gain, index))
    return [index for _, index in sorted(steps, key=lambda entry: -entry[0])]


def _after(plan: Plan, steps: Sequence[int]) -> Plan:
    decisions = list(plan.decisions)
    for index in steps:
        decisions[index] = dataclasses.replace(decisions[index], at=decisions[index].at + 1)
    return dataclasses.replace(plan, decisions=tuple(decisions))


def planned_layers(units: Sequence[Unit], plan: Plan) -> Iterator[QuantizedLayer]:
    """The decision for each linear layer and convolution."""
    by_unit = {id(each.unit): each for each in plan.decisions}
    for unit in units:
        before = unit.dense_parameters * unit.element_bytes
        each = by_unit.get(id(unit))
        shape, kind = (unit.out_features, unit.in_features), "linear" if unit.convolution is None else "convolution"
        option = None if each is None else each.option
        if each is None or option is None:
            reason = unit.reason or "its error is the largest for the saved bytes: left in float32 to keep max_error"
            predicted = None if each is None else math.sqrt(each.options[0].estimate)
            yield QuantizedLayer(unit.name, kind, shape, "float32", reason, None, predicted, before, before)
            continue
        after = option.weight_bytes + 4 * unit.out_features * len(unit.biases)
        reason = f"{option.reason}, to keep max_error" if each.at else option.reason
        predicted = math.sqrt(option.error)
        yield QuantizedLayer(unit.name, kind, shape, option.precision, reason, option.alpha, predicted, before, after)


def embedding_layers(tables: Sequence[Table]) -> Iterator[QuantizedLayer]:
    """The decision for each embedding."""
    for table in tables:
        embedding, name = table.embedding, table.place.names[0]
        before, shape = embedding.weight.nbytes, (embedding.num_embeddings, embedding.embedding_dim)
        if table.reason is not None:
            yield QuantizedLayer(name, "embedding", shape, "float32", table.reason, None, None, before, before)
        else:
            after, reason = table.stored_bytes, table.how
            yield QuantizedLayer(name, "embedding", shape, f"int{table.bits}", reason, None, None, before, after)
