import itertools
import random

import pytest

from panther.convert.allocate import RANK_STEP, Choice, allocate, possible_ranks, uniform


def random_choices(seed, layers=4, convex=True):
    rng = random.Random(seed)
    choices = []
    for _ in range(layers):
        count = rng.randint(2, 5)
        steps = sorted((rng.random() for _ in range(count)), reverse=True)
        if not convex:
            rng.shuffle(steps)
        per = rng.randint(3, 9)
        errors = [sum(steps[i:]) for i in range(count)]
        choices.append(Choice(tuple(per * (i + 1) for i in range(count + 1)), (*errors, 0.0)))
    return choices


def cost(choices, chosen):
    return sum(choice.costs[i] for choice, i in zip(choices, chosen, strict=True))


def error(choices, chosen):
    return sum(choice.errors[i] for choice, i in zip(choices, chosen, strict=True))


@pytest.mark.parametrize("convex", [True, False])
@pytest.mark.parametrize("seed", range(10))
def test_keeps_the_budget_and_comes_close_to_the_exhaustive_optimum(seed, convex):
    choices = random_choices(seed, convex=convex)
    least, most = cost(choices, [0] * 4), sum(choice.costs[-1] for choice in choices)
    for share in (0.2, 0.5, 0.8, 1.0):
        budget = least + share * (most - least)
        chosen = allocate(choices, budget)
        assert cost(choices, chosen) <= budget
        every = itertools.product(*(range(len(choice.costs)) for choice in choices))
        optimum = min(error(choices, other) for other in every if cost(choices, other) <= budget)
        # the greedy optimum is exact but for the last step, the largest of which bounds what is lost
        step = max(a - b for choice in choices for a, b in itertools.pairwise(choice.errors))
        assert optimum <= error(choices, chosen) <= optimum + step


@pytest.mark.parametrize("seed", range(10))
def test_convex_errors_are_shared_out_no_worse_than_uniformly(seed):
    choices = random_choices(seed, layers=6)
    least, most = cost(choices, [0] * 6), sum(choice.costs[-1] for choice in choices)
    for share in (0.3, 0.6, 0.9):
        budget = least + share * (most - least)
        even = uniform(choices, budget)
        assert cost(choices, even) <= budget
        assert error(choices, allocate(choices, budget)) <= error(choices, even) + 1e-12


def test_the_whole_budget_makes_everything_dense():
    choices = random_choices(0)
    assert error(choices, allocate(choices, sum(choice.costs[-1] for choice in choices))) == 0


def test_uniform_gives_the_same_share():
    choices = [Choice((10, 20, 30, 40), (3.0, 2.0, 1.0, 0.0))] * 3
    assert uniform(choices, 60) == [1, 1, 1]
    assert uniform(choices, 89) == [1, 1, 1]


@pytest.mark.parametrize("way", [allocate, uniform])
def test_refuses_a_budget_below_the_cheapest(way):
    with pytest.raises(ValueError, match="over the budget of 5"):
        way([Choice((10, 40), (1.0, 0.0))], 5)


@pytest.mark.parametrize(("d_in", "d_out"), [(384, 384), (384, 1536), (512, 10), (33, 33), (64, 64)])
def test_possible_ranks_pay_and_are_multiples(d_in, d_out):
    ranks = possible_ranks(d_in, d_out)
    assert all(rank % RANK_STEP == 0 and rank * (d_in + d_out) < d_in * d_out for rank in ranks)
    more = (ranks[-1] if ranks else 0) + RANK_STEP
    assert more * (d_in + d_out) >= d_in * d_out
