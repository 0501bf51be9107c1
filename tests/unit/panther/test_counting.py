from __future__ import annotations

import itertools

import pytest

from panther.counting import (
    STARTING_POINTS,
    check_parameter_efficiency,
    count_parameters,
    multiply_adds_per_row,
    suggest,
)
from panther.nn import SKLinear


def test_counts_are_those_of_the_tensors():
    layer = SKLinear(784, 512, 2, 32)
    count = layer.parameter_count()
    assert count.learnable == sum(parameter.numel() for parameter in layer.parameters())
    assert count.fixed == sum(buffer.numel() for buffer in layer.buffers())
    assert count.dense == 784 * 512 + 512
    assert count.stored == count.learnable + count.fixed
    assert multiply_adds_per_row(784, 512, 2, 32) == sum(factor.numel() for factor in layer.factors())


def test_the_example_of_the_tutorial():
    count = count_parameters(4096, 4096, 4, 128)
    assert (count.dense, count.learnable, count.stored) == (16_781_312, 4_198_400, 8_392_704)
    assert round(count.learnable_reduction_percent, 1) == 75.0
    assert round(count.stored_reduction_percent, 1) == 50.0


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((1024, 512, 2, 32), (True, 62.5)),
        ((1024, 512, 2, 64), (True, 25.0)),
        ((1024, 1024, 8, 64), (False, -100.0)),
        ((16, 16, 1, 4), (False, 0.0)),
    ],
)
def test_the_rule_of_thumb(sizes, expected):
    assert check_parameter_efficiency(*sizes) == expected


@pytest.mark.parametrize("widths", [(4096, 4096), (1024, 512), (784, 512), (64, 10), (8192, 100)], ids=str)
@pytest.mark.parametrize("reduction", [0, 0.1, 0.5, 0.75, 0.9, 60])
@pytest.mark.parametrize("count", ["stored", "learnable"])
def test_suggestions_reach_the_reduction_and_no_larger_rank_does(widths, reduction, count):
    def reached(num_terms, low_rank):
        counted = count_parameters(*widths, num_terms, low_rank)
        wanted = 100 * reduction if reduction < 1 else reduction
        return getattr(counted, f"{count}_reduction_percent") >= wanted - 1e-6

    pairs = suggest(*widths, reduction=reduction, count=count)
    for num_terms, low_rank in pairs:
        assert reached(num_terms, low_rank)
        assert not reached(num_terms, low_rank + (8 if low_rank >= 8 else 1))
    if not pairs:
        assert not reached(1, 1)


def test_nothing_is_suggested_where_nothing_reaches_it():
    assert suggest(8, 8, reduction=0.9) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": 100}, r"reduction \(100\)"),
        ({"reduction": -0.1}, r"reduction \(-0.1\)"),
        ({"count": "fixed"}, r"count \('fixed'\) must be 'stored' or 'learnable'"),
        ({"max_terms": 0}, r"max_terms \(0\) must be at least 1"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        suggest(512, 512, **options)


@pytest.mark.parametrize("point", STARTING_POINTS, ids=lambda point: f"from {point.min_features}")
def test_no_starting_point_breaks_the_rule(point):
    for d_in in (point.min_features, point.max_features or 65536):
        for d_out in (point.min_features, point.max_features or 65536):
            efficient, reduction = check_parameter_efficiency(d_in, d_out, point.num_terms, point.low_rank)
            assert efficient
            assert reduction >= 50


def test_starting_points_leave_no_gap():
    for lower, upper in itertools.pairwise(STARTING_POINTS):
        assert lower.max_features + 1 == upper.min_features
    assert STARTING_POINTS[-1].max_features is None
