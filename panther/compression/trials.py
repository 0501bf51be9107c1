"""Plans tried on the whole model, with the measured error of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from panther.compression.budget import Metric
from panther.compression.curve import Point
from panther.compression.options import Part, Replacements
from panther.compression.plan import Plan
from panther.convert.deviation import Deviation, Reference
from panther.convert.layers import Place
from panther.convert.swap import Swap


@dataclass(frozen=True)
class Trial:
    """A plan, and its measured effect on the outputs.

    Attributes:
        plan: the option of every layer.
        deviation: of the model's outputs from the original's.
        metric: the caller's metric; None without one.
    """

    plan: Plan
    deviation: Deviation
    metric: float | None = None


class Trials:
    """Applies plans to a model and reverts them.

    Args:
        model: in eval mode; is as it was after every method but the swap's own.
        parts: the layers that plans choose for.
        reference: the original's outputs.
        metric: the caller's function of a model; None for other budgets.
    """

    def __init__(
        self,
        model: nn.Module,
        parts: Sequence[Part],
        reference: Reference,
        metric: Metric | None = None,
    ) -> None:
        self._model, self.parts, self._reference, self._metric = model, parts, reference, metric
        self._made: dict[tuple[int, int], Replacements] = {}
        self._found: dict[tuple[int, ...], Trial] = {}

    def run(self, plan: Plan) -> Trial:
        """Compare the outputs of a plan's model with the original's."""
        if plan.chosen not in self._found:
            with self.swap(plan):
                deviation = self._reference.deviation(self._model)
                metric = None if self._metric is None else score(self._model, self._metric)
            self._found[plan.chosen] = Trial(plan, deviation, metric)
        return self._found[plan.chosen]

    def swap(self, plan: Plan) -> Swap:
        """The replacement modules of a plan."""
        replacements: list[tuple[Place, nn.Module]] = []
        for number, (part, index) in enumerate(zip(self.parts, plan.chosen, strict=True)):
            if (number, index) not in self._made:
                self._made[number, index] = part.options[index].make()
            replacements += self._made[number, index]
        return Swap(self._model, replacements)

    @property
    def all(self) -> list[Trial]:
        """Every plan that was measured."""
        return list(self._found.values())

    def tried(self, plan: Plan) -> bool:
        """Whether a plan was measured."""
        return plan.chosen in self._found

    def points(self) -> list[Point]:
        """Every plan that was tried, the smallest first."""
        return sorted(
            (
                Point(
                    trial.plan.bytes,
                    math.sqrt(trial.plan.predicted),
                    trial.deviation.error,
                    trial.deviation.cosine,
                    trial.metric,
                )
                for trial in self._found.values()
            ),
            key=lambda point: point.bytes,
        )


def score(model: nn.Module, metric: Metric) -> float:
    """The caller's metric of a model.

    Raises:
        ValueError: it is no number.
    """
    value: object = metric(model)
    # the metric may have left the model in training mode
    model.eval()
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"metric returned {value!r} ({type(value).__name__}); it must return a number") from None


def reachable(model: nn.Module, metric: Metric, at_least: float) -> float:
    """The metric of the original.

    Raises:
        ValueError: it is below the threshold already.
    """
    found = score(model, metric)
    if not found >= at_least:
        raise ValueError(f"at_least ({at_least:g}) can't be met: the original's metric is {found:g}; lower at_least")
    return found
