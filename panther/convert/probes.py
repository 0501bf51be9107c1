"""Probe vectors: random directions in the outputs of a model, from which derivatives are taken back to its layers."""

from __future__ import annotations

import torch
from torch import Tensor


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
