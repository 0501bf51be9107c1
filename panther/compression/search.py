"""Search for the plan that keeps a budget; candidates are measured on the whole model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from panther.compression.options import Part
from panther.compression.plan import BYTES, Chooser, Cost, Plan
from panther.compression.trials import Trial, Trials

Step = Callable[[str, int, int], None]
# largest factor that corrects a kind's predictions
_MOST_TRUST = 10.0
# relative squared error at which the search for a metric starts
_GUESS = 1e-2
# how many smaller plans to try after one meets the metric
_MORE_TRIALS = 8


class Search:
    """Finds plans for budgets.

    Args:
        trials: measures plans.
        other_bytes: of the model outside the parts.
        kinds: that layers may become.
        step: called with (what, done, all).
        cost: the budgeted quantity.

    Attributes:
        chooser: chooses plans by predictions, corrected by measurements.
    """

    def __init__(self, trials: Trials, other_bytes: int, kinds: Sequence[str], step: Step, cost: Cost = BYTES) -> None:
        self._trials, self._kinds, self._step = trials, kinds, step
        self._other_bytes, self._cost = other_bytes, cost
        self.chooser = Chooser(trials.parts, other_bytes, cost=cost)

    @property
    def _parts(self) -> Sequence[Part]:
        return self._trials.parts

    def within_bytes(self, max_bytes: int) -> Trial:
        """The plan with the smallest output error of at most this many bytes.

        Raises:
            ValueError: it can't be met; the message has the limit.
        """
        limit = max_bytes - self._other_bytes
        if limit < self.chooser.least:
            least = self._other_bytes + int(self.chooser.least)
            raise ValueError(
                f"max_bytes ({max_bytes:,}) can't be met: the smallest options of all layers and the parts that "
                f"can't be changed ({self._other_bytes:,} bytes) take {least:,} bytes; give at least that"
            )
        return self.within(limit)

    def within(self, limit: float) -> Trial:
        """The plan with the smallest output error within a cost limit, of one kind or of all.

        Measured errors of plans of one kind correct the predictions for that kind.
        """
        choosers = {kind: self._chooser(kind) for kind in self._kinds}
        singles = {kind: chooser.within(limit) for kind, chooser in choosers.items() if chooser.least <= limit}
        tried = self._measured([*singles.values(), self.chooser.within(limit)])
        self._correct(singles)
        tried += self._measured([self.chooser.within(limit)])
        return min(tried, key=lambda trial: trial.deviation.error)

    def within_error(self, max_error: float) -> Trial:
        """The smallest plan found within an output error."""
        self._correct_at(max_error**2)
        return self._smallest(max_error**2, lambda trial: trial.deviation.error <= max_error)

    def within_metric(self, at_least: float) -> Trial:
        """The smallest plan found with a metric of at least a threshold, which the original reaches."""
        self._correct_at(_GUESS)

        def keeps(trial: Trial) -> bool:
            return trial.metric is not None and trial.metric >= at_least

        best = self._smallest(_GUESS, keeps)
        # a metric such as an accuracy is not monotonic along the path
        below = [plan for plan in self.chooser.path() if plan.bytes < best.plan.bytes]
        for done, plan in enumerate(below[:: max(1, -(-len(below) // _MORE_TRIALS))]):
            trial = self._trials.run(plan)
            self._step("searching below", done + 1, min(len(below), _MORE_TRIALS))
            if keeps(trial):
                return trial
        return best

    def _correct_at(self, error: float) -> None:
        """Correct the predictions of each kind by measuring its plan of about this relative squared error."""
        plans = {kind: _nearest(self._chooser(kind).path(), error) for kind in self._kinds}
        self._measured(list(plans.values()))
        self._correct(plans)

    def _smallest(self, guess: float, keeps: Callable[[Trial], bool]) -> Trial:
        """The cheapest plan on the path of multipliers that meets a condition, assuming that the path is monotone."""
        path = self.chooser.path()
        at, steps = path.index(_nearest(path, guess)), 0
        low, high, stride = -1, len(path) - 1, max(1, len(path) // 24)
        self._trials.run(self.chooser.plan([0] * len(self._parts)))
        while low + 1 < high:
            trial = self._trials.run(path[at])
            steps += 1
            self._step("searching", steps, steps + math.ceil(math.log2(max(high - low - 1, 1))))
            if keeps(trial):
                high = at
            else:
                low = at
            if low >= 0 and high < len(path) - 1:
                at = (low + high) // 2
            else:
                at = high - stride if low < 0 else low + stride
                stride *= 2
            at = min(max(at, low + 1), high - 1)
        # the unchanged model always meets it; a plan of one kind may be smaller than those of the path
        return min((trial for trial in self._trials.all if keeps(trial)), key=lambda trial: trial.plan.bytes)

    def _chooser(self, kind: str) -> Chooser:
        """Chooser of plans of one kind."""
        return Chooser(self._parts, self._other_bytes, cost=self._cost, kinds=[kind])

    def _measured(self, plans: Sequence[Plan]) -> list[Trial]:
        found = []
        for done, plan in enumerate(plans):
            found.append(self._trials.run(plan))
            self._step("comparing", done + 1, len(plans))
        return found

    def _correct(self, plans: Mapping[str, Plan]) -> None:
        """Set the correction factor of each kind from plans of that kind alone."""
        trust = {}
        for kind, plan in plans.items():
            predicted = others = 0.0
            for part, index in zip(self._parts, plan.chosen, strict=True):
                option = part.options[index]
                if option.kind == kind and part.predicted:
                    predicted += option.error
                else:
                    others += option.error
            measured = self._trials.run(plan).deviation.error ** 2
            if predicted > 0 and math.isfinite(measured):
                trust[kind] = min(max((measured - others) / predicted, 1 / _MOST_TRUST), _MOST_TRUST)
        self.chooser = Chooser(self._parts, self._other_bytes, cost=self._cost, trust=trust)


def _nearest(path: Sequence[Plan], target: float) -> Plan:
    """The plan of a path whose predicted error is closest to a target."""
    return min(path, key=lambda plan: abs(math.log((plan.predicted + 1e-30) / target)))
