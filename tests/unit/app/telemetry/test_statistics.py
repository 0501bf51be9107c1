import numpy as np

from app.telemetry.statistics import TIMES, Statistics


def test_times_are_counted_in_bulk_and_none_is_lost():
    drawn = np.random.default_rng(5).integers(1, 10**9, (1000, len(TIMES)))
    statistics = Statistics()
    for times in drawn.tolist():
        statistics.succeeded(tuple(times))
    assert statistics.success.count + len(statistics.noted) == 1000
    assert 0 < len(statistics.noted) < 1000, "some are counted without a reader, so that they take no more memory"
    statistics.settle()
    assert statistics.noted == []
    for name, column in zip(TIMES, drawn.T, strict=True):
        counted = getattr(statistics, name)
        assert (counted.count, counted.ns) == (1000, column.sum()), name


def test_a_snapshot_has_what_was_noted_last():
    statistics, total = Statistics(), Statistics()
    statistics.succeeded((10, 2, 3, 4, 1))
    total.merge(statistics.snapshot())
    assert (total.success.count, total.queue.ns, total.compute_input.plain()) == (1, 2, [1, 3])
    total.merge(statistics.snapshot())
    assert total.success.plain()[:2] == [2, 20]
