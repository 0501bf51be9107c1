"""Allocation: one choice for every layer under one budget.

See docs/decisions/0046-two-sided-whitening.md.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

# low_rank is a multiple of 8, and a layer of one term has rank 2·low_rank
RANK_STEP = 16


@dataclass(frozen=True)
class Choice:
    """A choice for one layer.

    Attributes:
        costs: of each choice, in parameters, bytes or microseconds, rising.
        errors: the squared error of each on the model's output; falling, where all are worth their cost.
    """

    costs: tuple[float, ...]
    errors: tuple[float, ...]


def possible_ranks(in_features: int, out_features: int) -> tuple[int, ...]:
    """Multiples of `RANK_STEP` at which a sketched layer stores fewer weights than the dense one, rising."""
    dense, per_rank = in_features * out_features, in_features + out_features
    most = min((dense - 1) // per_rank, in_features, out_features)
    return tuple(range(RANK_STEP, most + 1, RANK_STEP))


def allocate(choices: Sequence[Choice], budget: float) -> list[int]:
    """Choose for every layer so as to minimize the sum of the errors within the budget of costs.

    Starts from the cheapest choices and always takes the step that gains most for its cost, along the lower convex
    hull of each layer's (cost, error); that is the optimum for the cost at which it stops (Everett, "Generalized
    Lagrange multiplier method for solving problems of optimum allocation of resources", 1963). The rest goes
    to the best steps that still fit.

    Returns:
        The chosen index for each layer.

    Raises:
        ValueError: even the cheapest choices exceed the budget.
    """
    chosen = [0] * len(choices)
    spent = sum(choice.costs[0] for choice in choices)
    if spent > budget:
        raise ValueError(f"the cheapest choices cost {spent:,.0f}, over the budget of {budget:,.0f}")
    hulls = [_hull(choice) for choice in choices]
    queue: list[tuple[float, int, int]] = []

    def push(layer: int, position: int) -> None:
        if position + 1 < len(hulls[layer]):
            here, there = hulls[layer][position], hulls[layer][position + 1]
            choice = choices[layer]
            gain = (choice.errors[here] - choice.errors[there]) / (choice.costs[there] - choice.costs[here])
            heapq.heappush(queue, (-gain, layer, position))

    for layer in range(len(choices)):
        push(layer, 0)
    while queue:
        _, layer, position = heapq.heappop(queue)
        choice, there = choices[layer], hulls[layer][position + 1]
        step = choice.costs[there] - choice.costs[chosen[layer]]
        if spent + step <= budget:
            spent, chosen[layer] = spent + step, there
            push(layer, position + 1)
    return _fill(choices, chosen, budget - spent)


def path(choices: Sequence[Choice]) -> list[list[int]]:
    """The optima at every multiplier of the costs, from all of the cheapest choices to all of the best.

    Each takes one step more than the one before: the step that gains most for its cost. (Everett, 1963, as `allocate`.)

    Returns:
        For each optimum the chosen index for each layer.
    """
    steps = []
    for layer, choice in enumerate(choices):
        for here, there in itertools.pairwise(_hull(choice)):
            gain = (choice.errors[here] - choice.errors[there]) / (choice.costs[there] - choice.costs[here])
            steps.append((-gain, layer, there))
    chosen = [0] * len(choices)
    found = [chosen]
    for _, layer, there in sorted(steps):
        chosen = [*chosen]
        chosen[layer] = there
        found.append(chosen)
    return found


def uniform(choices: Sequence[Choice], budget: float) -> list[int]:
    """Give every layer the same share of its largest cost, as large as the budget allows.

    Raises:
        ValueError: even the cheapest choices exceed the budget.
    """

    def at(share: float) -> list[int]:
        return [
            max((i for i, cost in enumerate(choice.costs) if cost <= share * choice.costs[-1]), default=0)
            for choice in choices
        ]

    def cost(chosen: list[int]) -> float:
        return sum(choice.costs[i] for choice, i in zip(choices, chosen, strict=True))

    if cost(at(0)) > budget:
        raise ValueError(f"the cheapest choices cost {cost(at(0)):,.0f}, over the budget of {budget:,.0f}")
    shares = sorted({cost / choice.costs[-1] for choice in choices for cost in choice.costs})
    best, low, high = at(0), 0, len(shares) - 1
    while low <= high:
        middle = (low + high) // 2
        chosen = at(shares[middle])
        if cost(chosen) <= budget:
            best, low = chosen, middle + 1
        else:
            high = middle - 1
    return best


def _hull(choice: Choice) -> list[int]:
    """Indices of the lower convex hull of (cost, error), from the cheapest on."""
    hull: list[int] = []
    for i, (cost, error) in enumerate(zip(choice.costs, choice.errors, strict=True)):
        while hull:
            last = hull[-1]
            if error >= choice.errors[last]:
                break  # costs more and gains nothing
            if len(hull) > 1:
                before = hull[-2]
                slope = (choice.errors[last] - choice.errors[before]) * (cost - choice.costs[before])
                if (error - choice.errors[before]) * (choice.costs[last] - choice.costs[before]) <= slope:
                    hull.pop()
                    continue
            hull.append(i)
            break
        else:
            hull.append(i)
    return hull


def _fill(choices: Sequence[Choice], chosen: list[int], left: float) -> list[int]:
    """Spend the rest of the budget on single steps, the best gain for its cost first."""
    while True:
        best, best_gain = None, 0.0
        for layer, choice in enumerate(choices):
            here = chosen[layer]
            for there in range(here + 1, len(choice.costs)):
                step = choice.costs[there] - choice.costs[here]
                if step > left:
                    break
                gain = (choice.errors[here] - choice.errors[there]) / step
                if gain > best_gain:
                    best, best_gain = (layer, there, step), gain
        if best is None:
            return chosen
        layer, there, step = best
        chosen[layer], left = there, left - step
