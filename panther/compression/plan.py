"""One option for every layer, chosen jointly under one budget.

See docs/decisions/0070-one-budget.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from panther.compression.options import Option, Part
from panther.convert.allocate import Choice, allocate, path


@dataclass(frozen=True)
class Cost:
    """The quantity that a budget bounds.

    Attributes:
        unit: in words.
        of: an option's cost.
    """

    unit: str
    of: Callable[[Option], float]


BYTES = Cost("bytes", lambda option: option.bytes)


@dataclass(frozen=True)
class Plan:
    """The chosen option of every layer.

    Attributes:
        chosen: for each part the index of its option.
        bytes: of the whole model.
        cost: in the unit of the budget, of the parts alone.
        predicted: the relative squared error of the model's outputs.
    """

    chosen: tuple[int, ...]
    bytes: int
    cost: float
    predicted: float


class Chooser:
    """Chooses options by cost and predicted effect on the model's outputs.

    Args:
        parts: the layers.
        other_bytes: of the model outside the parts.
        cost: the budgeted quantity.
        kinds: the options that may be chosen of layers whose errors are predicted; all when None.
        trust: by kind, correction factor of the predictions.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        other_bytes: int,
        *,
        cost: Cost = BYTES,
        kinds: Sequence[str] | None = None,
        trust: Mapping[str, float] | None = None,
    ) -> None:
        self._parts, self._other_bytes = parts, other_bytes
        self.cost = cost
        self._trust = trust if trust is not None else {}
        self.worthwhile = [self._worthwhile(part, kinds) for part in parts]
        self._choices = [
            Choice(
                tuple(self.cost.of(part.options[i]) for i in indices),
                tuple(self.error(part, part.options[i]) for i in indices),
            )
            for part, indices in zip(parts, self.worthwhile, strict=True)
        ]

    @property
    def least(self) -> float:
        """The smallest possible cost of the parts."""
        return sum(choice.costs[0] for choice in self._choices)

    def within(self, limit: float) -> Plan:
        """The plan with the least predicted error within a cost limit.

        Raises:
            ValueError: the cheapest options cost more.
        """
        return self._plan(allocate(self._choices, limit))

    def path(self) -> list[Plan]:
        """The plans at every multiplier of the cost, from the cheapest to that of the least error."""
        return [self._plan(chosen) for chosen in path(self._choices)]

    def plan(self, chosen: Sequence[int]) -> Plan:
        """The plan of these options, by their indices in the parts."""
        pairs = [(part, part.options[i]) for part, i in zip(self._parts, chosen, strict=True)]
        return Plan(
            tuple(chosen),
            self._other_bytes + sum(option.bytes for _, option in pairs),
            sum(self.cost.of(option) for _, option in pairs),
            sum(self.error(part, option) for part, option in pairs),
        )

    def error(self, part: Part, option: Option) -> float:
        """The predicted error of an option, corrected for its kind where that is known."""
        return option.error * (self._trust.get(option.kind, 1.0) if part.predicted else 1.0)

    def _plan(self, positions: Sequence[int]) -> Plan:
        return self.plan([indices[i] for indices, i in zip(self.worthwhile, positions, strict=True)])

    def _worthwhile(self, part: Part, kinds: Sequence[str] | None) -> list[int]:
        """Indices of the options that no other beats in both cost and error, the cheapest first."""
        allowed = range(len(part.options)) if kinds is None or not part.predicted else part.only(kinds)
        found: list[int] = []
        for i in sorted(allowed, key=lambda i: (self.cost.of(part.options[i]), self.error(part, part.options[i]))):
            if not found or self.error(part, part.options[i]) < self.error(part, part.options[found[-1]]):
                found.append(i)
        return found
