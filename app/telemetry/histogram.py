"""Histograms of durations: preallocated counters that are cheap to increment, and to sum over workers.

Bounds are about a tenth apart, so a percentile computed from them is within a few percent of the true one. They
include the bounds of the Prometheus histograms.

See docs/decisions/0027-percentiles-from-histograms.md.
"""

from bisect import bisect_left
from itertools import accumulate
from typing import Any

import numpy as np

_STEPS = (
    1.0, 1.1, 1.2, 1.35, 1.5, 1.65, 1.8, 2.0, 2.25, 2.5, 2.75, 3.0, 3.3, 3.6, 4.0, 4.5, 5.0,
    5.5, 6.0, 6.6, 7.3, 8.0, 9.0,
)  # fmt: skip
_DECADES = range(3, 11)  # of nanoseconds: from 1 µs to 100 s
BOUNDS_NS: tuple[int, ...] = tuple(round(step * 10**decade) for decade in _DECADES for step in _STEPS)
"""Upper bounds, inclusive; longer durations are counted after the last one."""

SIZE = len(BOUNDS_NS) + 1
_BOUNDS = np.array(BOUNDS_NS, np.int64)


class Histogram:
    """Number of events, their total duration, and the distribution of the durations."""

    __slots__ = ("buckets", "count", "ns")

    def __init__(self) -> None:
        self.count = 0
        self.ns = 0
        self.buckets = [0] * SIZE

    def add(self, ns: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        """Count durations, in nanoseconds."""
        self.count += len(ns)
        self.ns += int(ns.sum())
        counts = np.bincount(np.searchsorted(_BOUNDS, ns))
        for index in np.flatnonzero(counts).tolist():
            self.buckets[index] += int(counts[index])

    def merge(self, data: list[int]) -> None:
        """Add a histogram from the form of ``plain``."""
        self.count += data[0]
        self.ns += data[1]
        for index, count in zip(data[2::2], data[3::2], strict=True):
            self.buckets[index] += count

    def plain(self) -> list[int]:
        """``[count, ns, index, count of the bucket, …]``, without empty buckets."""
        return [self.count, self.ns, *(part for pair in self.filled() for part in pair)]

    def filled(self) -> list[tuple[int, int]]:
        """Index and count of each non-empty bucket."""
        return [(index, count) for index, count in enumerate(self.buckets) if count]

    def quantile_ns(self, fraction: float) -> float | None:
        """The duration that a ``fraction`` of events did not exceed, interpolated between bounds.

        None without events. The error is at most the width of a bucket: 12.5% above 1 µs. Durations beyond
        the last bound count as that bound.
        """
        total = sum(self.buckets)
        if not total:
            return None
        wanted = fraction * total
        below = 0
        for index, count in enumerate(self.buckets):
            if count and below + count >= wanted:
                if index >= len(BOUNDS_NS):
                    break
                low = BOUNDS_NS[index - 1] if index else 0
                return low + (BOUNDS_NS[index] - low) * max(0.0, wanted - below) / count
            below += count
        return float(BOUNDS_NS[-1])

    def at_most(self, bounds_ns: tuple[int, ...]) -> list[int]:
        """Number of events that did not exceed each of some ``BOUNDS_NS``."""
        sums = list(accumulate(self.buckets))
        return [sums[bisect_left(BOUNDS_NS, bound)] for bound in bounds_ns]
