"""Products with lower triangular matrices, by blocks that leave the zeros out."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# rows of a block, and the most blocks
_BLOCK, _MOST_BLOCKS = 256, 16


def lower_times(L: Tensor, X: Tensor) -> Tensor:
    """L X for a lower triangular L (n, n) and X (n, p), in half of the multiply-adds."""
    out = torch.empty_like(X)
    for start, end in _blocks(len(L)):
        out[start:end] = L[start:end, :end] @ X[:end]
    return out


def congruence(L: Tensor, S: Tensor) -> Tensor:
    """Lᵀ S L for a lower triangular L and a symmetric S, both (n, n), in a third of the multiply-adds.

    Returns:
        (n, n), right on the diagonal and below it alone, which `torch.linalg.eigh` reads.
    """
    SL, out = torch.empty_like(S), torch.zeros_like(S)
    for start, end in _blocks(len(L)):
        SL[:, start:end] = S[:, start:] @ L[start:, start:end]
    for start, end in _blocks(len(L)):
        out[start:end, :end] = L[start:, start:end].t() @ SL[start:, :end]
    return out


def sums_of_pairs(A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Row sums of the lower triangle of (AᵀB) * (C Cᵀ), with the diagonal; and the diagonal of it.

    Args:
        A, B: (n, r).
        C: (r, m).

    Returns:
        (r,) each.
    """
    sums, diagonal = A.new_empty(A.shape[1]), A.new_empty(A.shape[1])
    for start, end in _blocks(A.shape[1]):
        pairs = (A[:, start:end].t() @ B[:, :end]).mul_(C[start:end] @ C[:end].t())
        sums[start:end] = pairs.tril(start).sum(1)
        diagonal[start:end] = pairs.diagonal(start)
    return sums, diagonal


def _blocks(n: int) -> Iterator[tuple[int, int]]:
    step = -(-n // max(1, min(_MOST_BLOCKS, n // _BLOCK)))
    return ((start, min(start + step, n)) for start in range(0, n, step))
