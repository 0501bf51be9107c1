"""Bags over looked-up rows in plain operations, with the results of torch's fused kernel.

Tables in few bits have rows that are unpacked first, and an ONNX graph has no operator for bags.
"""

from __future__ import annotations

import torch
from torch import Tensor


def bag_of_each(x: Tensor, offsets: Tensor) -> Tensor:
    """The bag that each index of a flat list belongs to, (n,), from the place where each bag begins."""
    places = torch.arange(x.shape[0], device=x.device, dtype=offsets.dtype)
    return (places.unsqueeze(1) >= offsets.unsqueeze(0)).sum(1) - 1


def reduce_bags(
    rows: Tensor,
    x: Tensor,
    offsets: Tensor | None = None,
    per_sample_weights: Tensor | None = None,
    *,
    mode: str,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Add up or average the rows of each bag, as ``nn.EmbeddingBag`` does.

    Args:
        rows: (bags, n, d), or (n, d) with offsets: the rows of the indices.
        x: the indices, (bags, n) or (n,).
        offsets: (bags,), where each bag of a flat list begins.
        per_sample_weights: of the shape of x; what each row is multiplied by, with "sum".
        mode: "sum" or "mean".
        include_last_offset: whether offsets ends with the length of x.
        padding_idx: an index that counts for nothing.

    Returns:
        (bags, d); an empty bag is zero.
    """
    counted = None if padding_idx is None else (x != padding_idx).to(rows.dtype)
    weights = counted if per_sample_weights is None else per_sample_weights.to(rows.dtype)
    if per_sample_weights is not None and counted is not None:
        weights = per_sample_weights.to(rows.dtype) * counted
    if weights is not None:
        rows = rows * weights.unsqueeze(-1)
    if offsets is None:
        total = rows.sum(1)
        if mode == "sum":
            return total
        if counted is None:
            return total / max(x.shape[1], 1)
        return total / counted.sum(1, keepdim=True).clamp_min(1)
    bags = offsets.shape[0] - int(include_last_offset)
    of_bag = bag_of_each(x, offsets[:bags] if include_last_offset else offsets).unsqueeze(1)
    total = rows.new_zeros(bags, rows.shape[1]).scatter_add(0, of_bag.expand_as(rows), rows)
    if mode == "sum":
        return total
    ones = torch.ones_like(rows[:, :1]) if counted is None else counted.unsqueeze(1)
    return total / rows.new_zeros(bags, 1).scatter_add(0, of_bag, ones).clamp_min(1)
