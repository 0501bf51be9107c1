"""Approximation error of a module: its outputs beside those of the module that it approximates."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ApproximationQuality:
    """Deviation of one module's outputs from another's; ``float()`` gives the mean relative error.

    Attributes:
        relative_error: the mean over the batches of ‖y - ŷ‖ / ‖y‖, Frobenius norms; 0 is equality, and zeros have 1.
        max_relative_error: the largest over the batches.
        mean_cosine: the mean over rows of the cosine between y and ŷ.
        rows: number of compared rows.
    """

    relative_error: float
    max_relative_error: float
    mean_cosine: float
    rows: int

    def __float__(self) -> float:
        return self.relative_error


def approximation_quality(
    reference: nn.Module | Callable[[Tensor], Tensor],
    approximation: nn.Module | Callable[[Tensor], Tensor],
    inputs: Tensor | Iterable[Tensor],
) -> ApproximationQuality:
    """Compare the outputs of two modules for the same inputs, without gradients, in their current mode.

    Args:
        reference, approximation: modules with outputs of the same shape.
        inputs: one batch (a tensor), or several.

    Raises:
        ValueError: there are no inputs, the outputs differ in shape, or all outputs of the reference are zero.
    """
    errors, cosines, rows = [], 0.0, 0
    with torch.no_grad():
        for x in (inputs,) if isinstance(inputs, Tensor) else inputs:
            y, y_hat = reference(x).double(), approximation(x).double()
            if y.shape != y_hat.shape:
                raise ValueError(
                    f"the reference's output has shape {tuple(y.shape)}, the approximation's {tuple(y_hat.shape)}"
                )
            norm = y.norm().item()
            if norm == 0:
                raise ValueError("the reference's output holds zeros alone; no error is relative to it")
            errors.append((y - y_hat).norm().item() / norm)
            cosine = nn.functional.cosine_similarity(y, y_hat, dim=-1)
            cosines, rows = cosines + cosine.sum().item(), rows + cosine.numel()
    if not errors:
        raise ValueError("inputs holds no batch")
    return ApproximationQuality(statistics.fmean(errors), max(errors), cosines / rows, rows)
