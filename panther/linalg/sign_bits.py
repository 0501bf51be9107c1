"""One bit an entry for matrices of signs: the fixed ±1/√k of a sketched layer, on disk and in an exported file.

The order is that of ``numpy.packbits`` at its default: entries in row-major (C) order, eight to a byte, the first entry
in the most significant bit; a set bit means the positive value, and the unused bits of the last byte are zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def sign_magnitude(tensor: Tensor) -> float | None:
    """The value c for which every entry of a tensor is exactly +c or -c; None if there is no such value.

    A float holds c exactly for every floating-point type of torch. Zero, infinity and an empty tensor give None.

    >>> sign_magnitude(torch.tensor([[0.5, -0.5]]))
    0.5
    >>> sign_magnitude(torch.tensor([0.5, -0.25])) is None
    True
    """
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return None
    magnitudes = tensor.detach().abs()
    magnitude = float(magnitudes.flatten()[0])
    if not 0 < magnitude < float("inf") or not bool((magnitudes == magnitude).all()):
        return None
    return magnitude


def pack_signs(tensor: Tensor) -> Tensor:
    """Pack the signs of a tensor's entries, one bit each.

    Args:
        tensor: any shape and device, N entries, none of them zero (`sign_magnitude` tells).

    Returns:
        (⌈N/8⌉,) uint8, on the CPU.

    >>> pack_signs(torch.tensor([0.5, -0.5, 0.5])).tolist()
    [160]
    """
    return torch.from_numpy(np.packbits((tensor.detach() > 0).cpu().numpy().reshape(-1)))


def unpack_signs(packed: Tensor, shape: Sequence[int], magnitude: float, dtype: torch.dtype) -> Tensor:
    """Undo `pack_signs`, bit for bit.

    Args:
        packed: (⌈N/8⌉,) uint8.
        shape: of the result, N entries.
        magnitude: c of the entries ±c, as `sign_magnitude` gave it.
        dtype: of the result, a floating-point type.

    Raises:
        ValueError: packed is not uint8 or has the wrong length.

    >>> unpack_signs(torch.tensor([160], dtype=torch.uint8), (3,), 0.5, torch.float32)
    tensor([ 0.5000, -0.5000,  0.5000])
    """
    count = int(np.prod(shape, dtype=np.int64))
    size = (count + 7) // 8
    if packed.dtype != torch.uint8 or packed.shape != (size,):
        raise ValueError(
            f"packed has type {packed.dtype} and shape {tuple(packed.shape)}; "
            f"{count} signs take ({size},) of torch.uint8"
        )
    bits = torch.from_numpy(np.unpackbits(packed.cpu().numpy(), count=count)).view(torch.bool)
    # multiply in float64, where c is exact; the final rounding changes nothing
    values = torch.tensor([-magnitude, magnitude], dtype=torch.float64).to(dtype)
    return torch.where(bits, values[1], values[0]).reshape(tuple(shape))
