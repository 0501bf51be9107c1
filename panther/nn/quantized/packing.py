"""Unsigned integers of 4 or 8 bits in bytes, two of 4 bits in one, the first in the low half."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(levels: Tensor, bits: int) -> Tensor:
    """Pack integers along the last axis.

    Args:
        levels: (…, n) uint8, each below 2^bits.
        bits: 4 or 8.

    Returns:
        (…, ⌈n · bits / 8⌉) uint8; an odd n leaves the last high half zero.

    >>> pack(torch.tensor([1, 2, 15], dtype=torch.uint8), 4).tolist()
    [33, 15]
    """
    if bits == 8:
        return levels.contiguous()
    if levels.shape[-1] % 2:
        levels = torch.nn.functional.pad(levels, (0, 1))
    return levels[..., 0::2] | (levels[..., 1::2] << 4)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Undo `pack`; count is the length of the last axis.

    >>> unpack(torch.tensor([33, 15], dtype=torch.uint8), 4, 3).tolist()
    [1, 2, 15]
    """
    if bits == 8:
        return packed[..., :count]
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)[..., :count]
