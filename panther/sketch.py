"""Random sketching matrices, the fixed U of a sketched layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sign_sketch(
    *shape: int,
    low_rank: int,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw a matrix of independent signs, each entry +1/√low_rank or -1/√low_rank with probability one half.

    The scale makes E[U Uᵀ] the identity over the low_rank axis, so a product with U keeps the expected length
    (Achlioptas, "Database-friendly random projections", 2003).

    Args:
        shape: the shape of the matrix.
        low_rank: k, which sets the scale.
        generator: where the randomness comes from; the global one of torch when None. Its own device is drawn on.
        dtype: a floating-point type; torch's default when None.
        device: where the result lies; torch's default when None.
    """
    dtype = dtype if dtype is not None else torch.get_default_dtype()
    target = torch.device(device) if device is not None else torch.get_default_device()
    if target.type == "meta":
        return torch.empty(shape, dtype=dtype, device=target)
    drawn_on = generator.device if generator is not None else target
    bits = torch.randint(0, 2, shape, generator=generator, device=drawn_on, dtype=torch.int8)
    return (2 * bits - 1).to(device=target, dtype=dtype) / math.sqrt(low_rank)
