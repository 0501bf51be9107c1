import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from app.engine.cost_model import CostModel

ROWS = st.integers(1, 5000)
TIMES = st.floats(1, 1e12)
RUNS = st.lists(st.tuples(ROWS, TIMES), max_size=40)


def learned(runs):
    cost = CostModel()
    for rows, run_ns in runs:
        cost.learn(rows, run_ns)
    return cost


def size_class(rows):
    """The smallest power of two that holds the rows."""
    return next(2**exponent for exponent in range(20) if 2**exponent >= rows)


@pytest.mark.parametrize(("rows", "expected"), [(1, 100), (2, 200), (4, 400), (3, 400), (9, 1600)])
def test_a_size_never_seen_is_expected_to_cost_in_proportion(rows, expected):
    assert learned([(1, 100)]).expected_ns(rows) == expected


@given(ROWS)
def test_without_any_run_a_run_is_expected_to_take_for_ever(rows):
    assert CostModel().expected_ns(rows) == math.inf
    assert CostModel().known_ns(rows) is None


@given(RUNS, ROWS)
def test_a_size_that_was_seen_lies_between_its_fastest_and_slowest_run(runs, rows):
    cost = learned(runs)
    times = [run_ns for seen, run_ns in runs if size_class(seen) == size_class(rows)]
    if not times:
        assert cost.known_ns(rows) is None
        return
    assert cost.expected_ns(rows) == cost.known_ns(rows)
    assert min(times) * (1 - 1e-9) <= cost.expected_ns(rows) <= max(times) * (1 + 1e-9)


@given(RUNS, ROWS)
def test_a_size_that_was_not_seen_follows_from_the_next_smaller_one(runs, rows):
    assume(runs)
    assume(size_class(rows) not in {size_class(seen) for seen, _ in runs})
    cost = learned(runs)
    smaller = [seen for seen, _ in runs if size_class(seen) < size_class(rows)]
    if smaller:
        nearest = max(smaller, key=size_class)
        expected = cost.expected_ns(nearest) * size_class(rows) / size_class(nearest)
    else:
        expected = min(cost.expected_ns(seen) for seen, _ in runs)
    assert cost.expected_ns(rows) == pytest.approx(expected)


@given(RUNS, ROWS, TIMES)
def test_a_change_is_followed_within_a_few_runs(runs, rows, run_ns):
    cost = learned(runs)
    before = cost.known_ns(rows)
    for _ in range(30):
        cost.learn(rows, run_ns)
    distance = 0 if before is None else abs(before - run_ns)
    assert abs(cost.expected_ns(rows) - run_ns) <= 0.002 * distance + 1e-6 * run_ns


@given(RUNS, ROWS, TIMES)
def test_a_measured_time_replaces_what_was_learned(runs, rows, run_ns):
    cost = learned(runs)
    cost.set(rows, run_ns)
    assert cost.expected_ns(rows) == run_ns


@given(RUNS, ROWS)
def test_asking_changes_nothing(runs, rows):
    cost = learned(runs)
    assert cost.expected_ns(rows) == cost.expected_ns(rows)
    assert cost.known_ns(rows) == cost.known_ns(rows)
