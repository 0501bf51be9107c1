"""Random sketching matrices, the fixed U of a sketched layer.

Every kind has entries of mean square 1/low_rank, so that E[U Uᵀ] is the identity over the low_rank axis, a product
with U keeps the expected length, and the initialization of a layer need not know which kind it has.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

Sketch = Literal["sign", "gaussian", "orthonormal"]
SKETCHES: tuple[str, ...] = get_args(Sketch)


def draw_sketches(
    kind: Sketch,
    features: int,
    num_terms: int,
    low_rank: int,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw the fixed matrices of one side of a layer.

    Args:
        kind: ``"sign"``, ``"gaussian"`` or ``"orthonormal"``.
        features: d, the width of that side.
        num_terms: L.
        low_rank: k.
        generator: where the randomness comes from; the global one of torch when None. Its own device is drawn on.
        dtype: a floating-point type; torch's default when None.
        device: where the result lies; torch's default when None.

    Returns:
        (L, d, k): U2s where d is in_features; its transpose over the last two axes is U1s where d is out_features.

    Raises:
        ValueError: the kind is none of the three.

    >>> draw_sketches("sign", 784, num_terms=2, low_rank=64).shape
    torch.Size([2, 784, 64])
    """
    if kind not in SKETCHES:
        raise ValueError(f"sketch ({kind!r}) must be one of {', '.join(map(repr, SKETCHES))}")
    shape = (num_terms, features, low_rank)
    dtype = dtype if dtype is not None else torch.get_default_dtype()
    target = torch.device(device) if device is not None else torch.get_default_device()
    if target.type == "meta":
        return torch.empty(shape, dtype=dtype, device=target)
    if kind == "sign":
        return sign_sketch(*shape, low_rank=low_rank, generator=generator, dtype=dtype, device=target)
    if kind == "gaussian":
        return gaussian_sketch(*shape, low_rank=low_rank, generator=generator, dtype=dtype, device=target)
    basis = _orthonormal_columns(features, num_terms * low_rank, generator=generator, device=target)
    basis *= math.sqrt(features / low_rank)
    return basis.view(features, num_terms, low_rank).transpose(0, 1).to(dtype).contiguous()


def sign_sketch(
    *shape: int,
    low_rank: int,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw independent signs, each entry exactly +c or -c with probability one half, c being 1/√low_rank in that dtype.

    (Achlioptas, "Database-friendly random projections: Johnson-Lindenstrauss with binary coins", 2003.)

    Args:
        shape: the shape of the matrix.
        low_rank: k, which sets the scale.
        generator, dtype, device: as for `draw_sketches`.
    """
    dtype = dtype if dtype is not None else torch.get_default_dtype()
    target = torch.device(device) if device is not None else torch.get_default_device()
    if target.type == "meta":
        return torch.empty(shape, dtype=dtype, device=target)
    drawn_on = generator.device if generator is not None else target
    bits = torch.randint(0, 2, shape, generator=generator, device=drawn_on, dtype=torch.int8).to(target)
    c = torch.tensor(1 / math.sqrt(low_rank), dtype=torch.float64).to(device=target, dtype=dtype)
    return torch.where(bits == 1, c, -c)


def gaussian_sketch(
    *shape: int,
    low_rank: int,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw independent normal entries of mean 0 and variance 1/low_rank.

    Args:
        shape: the shape of the matrix.
        low_rank: k, which sets the scale.
        generator, dtype, device: as for `draw_sketches`.
    """
    dtype = dtype if dtype is not None else torch.get_default_dtype()
    target = torch.device(device) if device is not None else torch.get_default_device()
    if target.type == "meta":
        return torch.empty(shape, dtype=dtype, device=target)
    drawn_on = generator.device if generator is not None else target
    wide = torch.promote_types(dtype, torch.float32)
    return (torch.randn(shape, generator=generator, device=drawn_on, dtype=wide) / math.sqrt(low_rank)).to(
        device=target, dtype=dtype
    )


def uniform_(tensor: Tensor, bound: float, generator: torch.Generator | None) -> None:
    """Fill with uniform numbers within ±bound, drawn on the generator's device; a tensor on ``meta`` is left."""
    if tensor.is_meta:
        return
    if generator is None or generator.device.type == tensor.device.type:
        tensor.uniform_(-bound, bound, generator=generator)
    else:
        drawn = torch.empty(tensor.shape, dtype=tensor.dtype, device=generator.device)
        tensor.copy_(drawn.uniform_(-bound, bound, generator=generator))


def _orthonormal_columns(rows: int, columns: int, *, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """A (rows, columns) float64 matrix of orthonormal columns; where they are more than rows, each block of rows is.

    The Q of a Gaussian matrix with the signs of R's diagonal taken out is uniform over the orthonormal frames
    (Mezzadri, "How to generate random matrices from the classical compact groups", 2007).
    """
    drawn_on = generator.device if generator is not None else device
    blocks = []
    for start in range(0, columns, rows):
        width = min(rows, columns - start)
        normal = torch.randn(rows, width, generator=generator, device=drawn_on, dtype=torch.float64)
        Q, R = torch.linalg.qr(normal)
        blocks.append(Q * torch.where(R.diagonal() < 0, -1.0, 1.0))
    return torch.cat(blocks, dim=1).to(device)
