"""Matrices whose columns or rows are integers times a step: a byte or half of one an entry, on disk, without a loss.

See docs/decisions/0071-terms-in-bytes.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST, LARGEST_4_BITS = 127, 7
# bounds of a column's largest integer
_COUNTS = {LARGEST_4_BITS: range(1, LARGEST_4_BITS + 1), LARGEST: range(64, LARGEST + 1)}
# rows on which a level count is tried before the whole matrix is
_SAMPLE = 16


def steady_steps(levels: Tensor, step: Tensor) -> Tensor:
    """Steps next to the given ones that `integer_levels` finds again in levels · step.

    Args:
        levels: (rows, columns), integers from -127 to 127.
        step: (columns,) float32, positive.
    """
    largest = levels.abs().amax(0).clamp_min(1).to(torch.float32)
    step = step.to(torch.float32)
    for _ in range(8):
        step = largest * step / largest
    return step


def integer_levels(matrix: Tensor) -> tuple[Tensor, Tensor] | None:
    """The levels (rows, columns), int8, and steps, float32, of a matrix that is exactly levels · steps.

    Steps are (1, columns) or (rows, 1). Levels are from -7 to 7, which take half a byte, or from -127 to 127, the
    largest of a column or row from 64 on. Of what fits it is what takes the fewest bytes. None where nothing fits, as
    for weights that are trained in floats.

    >>> levels, step = integer_levels(torch.tensor([[63.5, -127.0], [0.5, 64.0]]))
    >>> levels.tolist(), step.tolist()
    ([[127, -127], [1, 64]], [[0.5, 1.0]])
    """
    if matrix.numel() == 0 or matrix.dtype != torch.float32 or not bool(matrix.isfinite().all()):
        return None
    matrix = matrix.detach()
    found = [
        (_bytes(matrix, step, largest), step)
        for largest, counts in _COUNTS.items()
        for step in (_steps_of_columns(matrix, counts), _steps_of_rows(matrix, counts))
        if step is not None
    ]
    if not found:
        return None
    _, step = min(found, key=lambda entry: entry[0])
    return torch.round(matrix / step).to(torch.int8), step


def _bytes(matrix: Tensor, step: Tensor, largest: int) -> float:
    return matrix.numel() * (0.5 if largest == LARGEST_4_BITS else 1) + 4 * step.numel()


def _steps_of_columns(matrix: Tensor, counts: range) -> Tensor | None:
    """(1, columns)."""
    largest = matrix.abs().amax(0)
    # a few rows rule out most float matrices
    if _steps(matrix[:_SAMPLE], largest, counts) is None:
        return None
    step = _steps(matrix, largest, counts)
    return None if step is None else step.unsqueeze(0)


def _steps_of_rows(matrix: Tensor, counts: range) -> Tensor | None:
    """(rows, 1)."""
    step = _steps_of_columns(matrix.t(), counts)
    return None if step is None else step.t()


def _steps(matrix: Tensor, largest: Tensor, counts: range) -> Tensor | None:
    """(columns,): the steps that columns are integers times, whose largest entries are given."""
    found = torch.zeros_like(largest)
    for count in counts:
        step = torch.where(largest > 0, largest / count, 1.0)
        # the largest level count is tried last, and wins if several fit
        fits = (torch.round(matrix / step) * step == matrix).all(0)
        found = torch.where(fits, step, found)
    return found if bool((found > 0).all()) else None
