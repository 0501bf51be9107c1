"""Ranks that are tried."""

import pytest

from panther.compression.ranks import between, spread


def test_some_of_many_with_both_ends():
    assert spread(range(8, 808, 8), 5) == [8, 208, 408, 600, 800]
    assert spread([3, 5], 5) == [3, 5]


def test_what_lies_between_is_interpolated():
    assert between(15, [10, 20], [1.0, 3.0]) == pytest.approx(2.0)
    assert between(25, [10, 20], [1.0, 3.0]) == 3.0
