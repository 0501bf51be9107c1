"""Memory of a quantization by layer, in bytes, besides the moments and the new layers.

See docs/decisions/0100-moments-in-bounded-memory.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from panther.convert.layers import Unit
from panther.convert.moments import sensitivity_entries
from panther.quantize.observe import SAMPLE

_DOUBLE = 8


def kept_rows(unit: Unit) -> int:
    """Bytes of the sampled inputs of a layer."""
    return 0 if unit.convolution is not None else 4 * SAMPLE * unit.in_features


def work_on_ranges(units: Sequence[Unit]) -> int:
    """Bytes while the ranges of layers that read one tensor are chosen, and one of them is rounded."""
    d_in, d_out = _sides(units)
    readers = sum(unit.convolution is None for unit in units)
    return _DOUBLE * ((9 + readers) * d_in**2 + 6 * sensitivity_entries(d_out) + 10 * d_in * d_out) + 3 * _rows(units)


def work_in_blocks(units: Sequence[Unit]) -> int:
    """Bytes while one layer is rounded in blocks."""
    d_in, d_out = _sides(units)
    return _DOUBLE * (6 * d_in**2 + 6 * sensitivity_entries(d_out) + 10 * d_in * d_out) + 3 * _rows(units)


def _sides(units: Sequence[Unit]) -> tuple[int, int]:
    return max(unit.in_features for unit in units), max(unit.out_features for unit in units)


def _rows(units: Sequence[Unit]) -> int:
    return max(map(kept_rows, units))
