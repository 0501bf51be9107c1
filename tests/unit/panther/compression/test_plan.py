"""The joint choice beside every choice there is."""

import itertools
import random

import pytest

from panther.compression.options import FLOAT, Option, Part, unchanged
from panther.compression.plan import Chooser, Cost

KINDS = ["int8", "low_rank"]


def random_parts(seed, count=4):
    rng = random.Random(seed)
    parts = []
    for number in range(count):
        options = [Option(FLOAT, 1000, 10, 0.0, unchanged)]
        options += [
            Option(rng.choice(KINDS), rng.randint(100, 900), 10, rng.random(), unchanged)
            for _ in range(rng.randint(1, 4))
        ]
        parts.append(Part(str(number), (str(number),), "linear", (10, 10), tuple(options)))
    return parts


@pytest.mark.parametrize("seed", range(12))
def test_a_budget_is_kept_close_to_the_exhaustive_optimum(seed):
    parts = random_parts(seed)
    chooser = Chooser(parts, 50)
    every = [
        [part.options[i] for part, i in zip(parts, chosen, strict=True)]
        for chosen in itertools.product(*(range(len(part.options)) for part in parts))
    ]
    for limit in (chooser.least, (chooser.least + 4000) / 2, 4000):
        plan = chooser.within(limit)
        assert plan.bytes - 50 <= limit
        assert plan.cost == plan.bytes - 50
        optimum = min(
            sum(option.error for option in options)
            for options in every
            if sum(option.bytes for option in options) <= limit
        )
        # exact but for the last step, which is one option of one part
        assert optimum - 1e-12 <= plan.predicted <= optimum + 1.0
    assert chooser.within(4000).predicted == 0


@pytest.mark.parametrize("seed", range(12))
def test_the_path_holds_the_optimum_of_every_multiplier(seed):
    parts = random_parts(seed)
    path = Chooser(parts, 0).path()
    assert [plan.bytes for plan in path] == sorted(plan.bytes for plan in path)
    assert [plan.predicted for plan in path] == sorted((plan.predicted for plan in path), reverse=True)
    for multiplier in (1e-5, 1e-4, 5e-4, 1e-3, 1e-2):
        least = sum(min(option.error + multiplier * option.bytes for option in part.options) for part in parts)
        assert min(plan.predicted + multiplier * plan.bytes for plan in path) == pytest.approx(least)


def test_kinds_and_trust_change_what_is_chosen():
    int8, low = Option("int8", 500, 10, 0.2, unchanged), Option("low_rank", 500, 10, 0.1, unchanged)
    part = Part("a", ("a",), "linear", (10, 10), (Option(FLOAT, 1000, 10, 0.0, unchanged), int8, low))
    assert Chooser([part], 0).within(500).chosen == (2,)
    assert Chooser([part], 0, kinds=["int8"]).within(500).chosen == (1,)
    assert Chooser([part], 0, trust={"low_rank": 5.0}).within(500).chosen == (1,)
    assert Chooser([part], 0, trust={"low_rank": 5.0}).within(1000).chosen == (0,)


def test_another_cost_than_bytes():
    slow, fast = Option("int8", 100, 10, 0.1, unchanged), Option("low_rank", 900, 2, 0.1, unchanged)
    part = Part("a", ("a",), "linear", (10, 10), (Option(FLOAT, 1000, 10, 0.0, unchanged), slow, fast))
    plan = Chooser([part], 0, cost=Cost("products", lambda option: option.multiply_adds)).within(9)
    assert plan.chosen == (2,)
    assert (plan.cost, plan.bytes) == (2, 900)


def test_a_budget_below_the_least_is_refused():
    with pytest.raises(ValueError, match="over the budget of 10"):
        Chooser(random_parts(0), 0).within(10)
