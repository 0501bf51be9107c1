"""Gram matrices: sums of XᵀX over batches, in place, and by their upper triangle."""

from __future__ import annotations

import torch
from torch import Tensor

# columns of a block, and the most blocks: k blocks compute (k + 1) / 2k of the products
_BLOCK, _MOST_BLOCKS = 256, 8
# entries of a weight that are converted to float64 at a time
_ENTRIES = 2**24


def add_gram_(total: Tensor, X: Tensor, scale: Tensor | float = 1.0) -> None:
    """Add scale·XᵀX to the upper triangle of a sum; `mirror_` completes it.

    Args:
        total: (d, d), float64. Below the diagonal some entries are added to as well.
        X: (n, d). The products are computed in its type.
        scale: of the products.
    """
    d = X.shape[1]
    step = -(-d // max(1, min(_MOST_BLOCKS, d // _BLOCK)))
    for start in range(0, d, step):
        end = min(start + step, d)
        if X.dtype == total.dtype and not isinstance(scale, Tensor):
            total[:end, start:end].addmm_(X[:, :end].t(), X[:, start:end], alpha=scale)
        else:
            total[:end, start:end] += (X[:, :end].t() @ X[:, start:end]).double().mul_(scale)


def mirror_(total: Tensor) -> Tensor:
    """Copy the upper triangle to the lower one."""
    step = -(-len(total) // max(1, min(_MOST_BLOCKS, len(total) // _BLOCK)))
    for start in range(0, len(total), step):
        end = min(start + step, len(total))
        block = total[start:end, start:end]
        block.copy_(block.triu() + block.triu(1).t())
        total[start:end, :start] = total[:start, start:end].t()
    return total


def weight_gram(W: Tensor, *, of_rows: bool) -> Tensor:
    """W Wᵀ where of_rows, else WᵀW; float64, with no copy of W in float64."""
    M = W.t() if of_rows else W
    d = M.shape[1]
    total = torch.zeros(d, d, dtype=torch.float64, device=W.device)
    step = max(1, _ENTRIES // d)
    for start in range(0, len(M), step):
        add_gram_(total, M[start : start + step].double())
    return mirror_(total)


def times(X: Tensor, W: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """X W for X of shape (n, p), in the type of X, with no copy of W in that type; the result in dtype."""
    step = max(1, _ENTRIES // max(1, W.shape[0]))
    out = torch.empty(X.shape[0], W.shape[1], dtype=dtype or X.dtype, device=X.device)
    for start in range(0, W.shape[1], step):
        out[:, start : start + step] = X @ W[:, start : start + step].to(X.dtype)
    return out
