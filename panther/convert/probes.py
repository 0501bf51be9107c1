"""Probe vectors: random directions in the outputs of a model, from which derivatives are taken back to its layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# by default, probe vectors of rows for each feature of the widest sensitivity, within these numbers of probes
_ROWS_PER_FEATURE, _FEWEST, MOST = 16, 2, 8


def probes_for(outputs: Sequence[tuple[Tensor, Tensor | None]], batches: int, features: int) -> int:
    """The number of backward passes for each batch: the more rows the outputs have, the fewer are enough.

    Every row of an output has its own probe vector, so that twice as many rows replace twice as many passes.

    Args:
        outputs: of one batch, with the masks of their rows.
        batches: how many there are.
        features: of the widest sensitivity.
    """
    rows = max((_rows(y, mask) for y, mask in outputs), default=0)
    if not rows:
        return MOST
    return min(MOST, max(_FEWEST, math.ceil(_ROWS_PER_FEATURE * features / (rows * batches))))


def _rows(y: Tensor, mask: Tensor | None) -> int:
    if mask is not None:
        return int(mask.sum())
    return math.prod(y.shape[:-1]) if y.dim() > 1 else 1


def draw_probe(y: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
    """A random v whose outer product weighs the relative squared error of y, times the examples in the batch."""
    v = torch.randn(y.shape, generator=generator, dtype=torch.float32, device=generator.device).to(y.device)
    counted = y.float()
    infinite = counted.isinf()
    if bool(infinite.any()):
        # for example scores that the model sets to -inf: no change of a layer moves them
        v, counted = v.masked_fill(infinite, 0.0), counted.masked_fill(infinite, 0.0)
    if mask is not None:
        v *= mask.unsqueeze(-1)
        counted = counted[mask]
    norm = counted.double().square().sum().sqrt()
    # no error is relative to an output of zeros
    scale = torch.where(norm == 0, 0.0, len(y) ** 0.5 / norm)
    scaled: Tensor = v.double() * scale
    return scaled.to(y.dtype)
