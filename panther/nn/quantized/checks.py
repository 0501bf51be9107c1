"""Validation of the tensors of a quantized layer."""

from __future__ import annotations

import torch
from torch import Tensor


def float_copy(tensor: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    """A float32 copy of a tensor of a shape; the caller's, such as the bias of the replaced layer, is left alone.

    Raises:
        ValueError: it has another shape.
    """
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} of shape {tuple(tensor.shape)} must have shape {shape}")
    return tensor.detach().to(torch.float32, copy=True).contiguous()
