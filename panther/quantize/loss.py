"""Cost of a weight error at the model's outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from panther.linalg.whitening import weighted


def weighed_loss(lost: Tensor, G: Tensor, C: Tensor) -> float:
    """tr(lostᵀ G lost C); computed in float32 after scaling, which is enough for an estimate.

    Args:
        lost: (d_out, d_in), the error of the weight.
        G: (d_out, d_out), or its diagonal (d_out,): eᵀ G e is the relative squared error of the model's outputs where e
            is the layer's.
        C: (d_in, d_in), the second moment of the inputs.
    """
    sizes = [max(float(matrix.abs().max()), torch.finfo(torch.float32).tiny) for matrix in (lost, G, C)]
    lost, G, C = (matrix.float() / size for matrix, size in zip((lost, G, C), sizes, strict=True))
    return float((weighted(G, lost) * (lost @ C)).sum(dtype=torch.float64)) * sizes[0] ** 2 * sizes[1] * sizes[2]
