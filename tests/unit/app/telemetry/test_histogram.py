import itertools

import numpy as np
import pytest

from app.telemetry.histogram import BOUNDS_NS, SIZE, Histogram


def test_bounds_are_close_and_hold_the_round_ones():
    ratios = [high / low for low, high in itertools.pairwise(BOUNDS_NS)]
    assert 1.08 < min(ratios) <= max(ratios) <= 1.1251
    assert len(BOUNDS_NS) == SIZE - 1
    assert {10**power * step // 10 for power in range(5, 11) for step in (10, 25, 50)} <= set(BOUNDS_NS)


@pytest.mark.parametrize("fraction", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("scale_ns", [3e4, 2e6, 7e8])
def test_percentiles_are_near_those_of_numpy(fraction, scale_ns):
    durations = (scale_ns * np.random.default_rng(1).lognormal(0, 0.7, 20_000)).astype(np.int64)
    histogram = Histogram()
    for part in np.array_split(durations, 7):
        histogram.add(part)
    assert histogram.quantile_ns(fraction) == pytest.approx(np.quantile(durations, fraction), rel=0.03)
    assert (histogram.count, histogram.ns) == (20_000, durations.sum())


def test_nothing_counted_is_unknown():
    assert Histogram().quantile_ns(0.5) is None


def test_every_bound_is_included_and_what_is_too_long_is_counted():
    histogram = Histogram()
    histogram.add(np.array([0, 1000, 1001, BOUNDS_NS[-1], BOUNDS_NS[-1] + 1, 10**15]))
    assert histogram.at_most((1000, 1100, BOUNDS_NS[-1])) == [2, 3, 4]
    assert histogram.filled() == [(0, 2), (1, 1), (SIZE - 2, 1), (SIZE - 1, 2)]
    assert histogram.quantile_ns(1.0) == BOUNDS_NS[-1]


def test_histograms_add_up_over_workers():
    rng = np.random.default_rng(2)
    parts = [Histogram(), Histogram()]
    whole, total = Histogram(), Histogram()
    durations = rng.integers(500, 10**9, 300)
    for part, own in zip(parts, (durations[::3], np.delete(durations, np.s_[::3])), strict=True):
        part.add(own)
    for ns in durations:
        whole.add(np.array([ns]))
    for part in parts:
        total.merge(part.plain())
    assert total.plain() == whole.plain()
    assert total.buckets == whole.buckets
