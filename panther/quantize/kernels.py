"""Round the weights of convolutions to 4 bits.

See docs/decisions/0089-convolutions-in-8-bits.md.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from panther.linalg.levels import LARGEST_4_BITS
from panther.nn.quantized import Int4Kernel
from panther.nn.quantized.blocks import in_blocks
from panther.nn.quantized.grid import Grid
from panther.quantize.feedback import compensated
from panther.quantize.grid import best

# maximum entries of a block
_BLOCK_SIZE = 64
# value of the largest integer, as shares of the largest entry of a block
_SHARES = (1.0, 0.9, 0.8, 0.7)
# above this number of patch entries, weights are rounded to the nearest: error feedback would take too long
_LARGEST_PATCH = 2304


def block_size_of(entries: int) -> int:
    """Entries in a block: the largest divisor up to the maximum; the whole channel if that is below 8."""
    found = max(size for size in range(1, _BLOCK_SIZE + 1) if entries % size == 0)
    return found if found >= 8 else entries


def stored_bytes(shape: tuple[int, ...]) -> int:
    """Bytes of a kernel of a shape in 4 bits, with its scales."""
    entries = math.prod(shape[1:])
    return shape[0] * (-(-entries // 2) + 4 * entries // block_size_of(entries))


def four_bits(weight: Tensor, C: Tensor | None = None, G: Tensor | None = None) -> Int4Kernel:
    """Round a weight (C_out, C_in/groups, *kernel) to 4 bits.

    Args:
        weight: the original weight.
        C: (entries, entries), the second moment of patches; with it, later entries compensate the errors of earlier
            ones.
        G: (C_out, C_out), the sensitivity of the outputs.
    """
    W = weight.detach().flatten(1).float()
    size = block_size_of(W.shape[1])
    variance = torch.ones(W.shape[1], device=W.device) if C is None else C.diagonal().float()
    largest = in_blocks(W, size).abs().amax(2).clamp_min(torch.finfo(torch.float32).tiny) / LARGEST_4_BITS
    ends = torch.full_like(largest, LARGEST_4_BITS)
    grid = best(W, [Grid(largest * share, -ends, ends, size) for share in _SHARES], variance)
    integers = grid.nearest(W) if C is None or W.shape[1] > _LARGEST_PATCH else compensated(W, grid, C, G)
    return Int4Kernel(integers.to(torch.int8).view(weight.shape), grid.step)
