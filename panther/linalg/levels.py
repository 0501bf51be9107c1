"""Matrices whose columns are integers times a step: one byte an entry, on disk, without a bit of loss.

See docs/decisions/0071-terms-in-bytes.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 127
_SMALLEST = 64
# that a count of levels is tried on before the whole matrix is
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
    """The levels (rows, columns), int8, and steps (columns,), float32, of a matrix that is exactly levels · steps.

    The largest level of a column is from 64 to 127. None where there are none; those of weights that are trained in
    floats have none.

    >>> levels, step = integer_levels(torch.tensor([[63.5, -127.0], [0.5, 64.0]]))
    >>> levels.tolist(), step.tolist()
    ([[127, -127], [1, 64]], [0.5, 1.0])
    """
    if matrix.numel() == 0 or matrix.dtype != torch.float32 or not bool(matrix.isfinite().all()):
        return None
    matrix = matrix.detach()
    # a few rows tell most matrices of floats
    if _steps(matrix[:_SAMPLE], matrix.abs().amax(0)) is None:
        return None
    step = _steps(matrix, matrix.abs().amax(0))
    return None if step is None else (torch.round(matrix / step).to(torch.int8), step)


def _steps(matrix: Tensor, largest: Tensor) -> Tensor | None:
    """(columns,): the steps that columns are integers times, whose largest entries are given."""
    found = torch.zeros_like(largest)
    for count in range(_SMALLEST, LARGEST + 1):
        step = torch.where(largest > 0, largest / count, 1.0)
        # the steps of 127 levels are the last to be taken, and stay where several fit
        fits = (torch.round(matrix / step) * step == matrix).all(0)
        found = torch.where(fits, step, found)
    return found if bool((found > 0).all()) else None
