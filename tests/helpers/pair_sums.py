"""Sums of adjacent 8-bit weights, which saturate on CPUs with AVX2 and without VNNI."""

from __future__ import annotations

import torch
from torch import Tensor


def largest_pair_sum(weight: Tensor) -> int:
    """The largest absolute sum of entries 2i and 2i + 1 of a row that share their sign; entries alone count too."""
    wide = weight.to(torch.int32)
    if wide.shape[1] % 2:
        wide = torch.nn.functional.pad(wide, (0, 1))
    pairs = wide.reshape(len(wide), -1, 2)
    return int(torch.maximum(pairs.clamp_min(0).sum(-1), -pairs.clamp_max(0).sum(-1)).max())
