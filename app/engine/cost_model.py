"""Expected duration of a run, by its number of rows."""

import math

_WEIGHT = 0.2  # weight of the latest run


class CostModel:
    """Learns the typical duration of a run for each power of two of rows.

    Without a run of a size class, the estimate is proportional to the next smaller known class; without that, the
    fastest known run; without any run, infinity.
    """

    def __init__(self) -> None:
        self._typical_ns: dict[int, float] = {}  # by exponent of the rows rounded up to a power of two

    def known_ns(self, rows: int) -> float | None:
        """Typical duration of runs of about that many rows; None if there were none."""
        return self._typical_ns.get((rows - 1).bit_length())

    def expected_ns(self, rows: int) -> float:
        """Expected duration of a run; infinity while unknown."""
        exponent = (rows - 1).bit_length()
        known = self._typical_ns.get(exponent)
        if known is not None:
            return known
        smaller = [seen for seen in self._typical_ns if seen < exponent]
        if not smaller:
            return min(self._typical_ns.values(), default=math.inf)
        nearest = max(smaller)
        return self._typical_ns[nearest] * 2.0 ** (exponent - nearest)

    def learn(self, rows: int, run_ns: float) -> None:
        """Record a run. Outliers fade, and the estimate follows a change of load within a few runs."""
        exponent = (rows - 1).bit_length()
        known = self._typical_ns.get(exponent)
        self._typical_ns[exponent] = run_ns if known is None else known + _WEIGHT * (run_ns - known)

    def set(self, rows: int, run_ns: float) -> None:
        """Replace the typical duration of runs of about that many rows, for example after a warm-up."""
        self._typical_ns[(rows - 1).bit_length()] = run_ns
