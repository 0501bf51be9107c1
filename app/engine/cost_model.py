"""How long a run of so many rows is expected to take."""

import math

_WEIGHT = 0.2  # of the newest run


class CostModel:
    """Learns the typical time of a run by its number of rows, in classes by powers of two.

    A class that was never seen counts in proportion to the next smaller one that was; without one, as the fastest run
    seen; without any, as infinitely long.
    """

    def __init__(self) -> None:
        self._typical_ns: dict[int, float] = {}  # by the exponent of the rows, rounded up to a power of two

    def known_ns(self, rows: int) -> float | None:
        """The typical time of runs of about so many rows; None where there was none."""
        return self._typical_ns.get((rows - 1).bit_length())

    def expected_ns(self, rows: int) -> float:
        """The expected time of a run; infinity while nothing is known."""
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
        """Take a run into account: an outlier fades, a change of load is followed within a few runs."""
        exponent = (rows - 1).bit_length()
        known = self._typical_ns.get(exponent)
        self._typical_ns[exponent] = run_ns if known is None else known + _WEIGHT * (run_ns - known)

    def set(self, rows: int, run_ns: float) -> None:
        """Replace the measured time of runs of about so many rows, as after a warm-up."""
        self._typical_ns[(rows - 1).bit_length()] = run_ns
