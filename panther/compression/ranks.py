"""Ranks that are tried for a layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# spread evenly
MOST_RANKS = 12


def spread(values: Sequence[int], most: int = MOST_RANKS) -> list[int]:
    """At most so many of the values, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def between(at: int, known: Sequence[int], values: Sequence[float]) -> float:
    """Linear interpolation."""
    return float(np.interp(at, known, values))
