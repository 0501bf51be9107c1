"""The mathematics of a sketched layer, in one place.

For x of shape (..., d_in), L = num_terms and k = low_rank the layer is

    y = 1/(2L) · Σ_i ( x · S1s[i] · U1s[i]  +  x · U2s[i] · S2s[i] ) + bias

(Kasiviswanathan, Narodytska, Jin, "Network Approximation using Tensor Sketching", IJCAI 2018). A sum of products of
matrices is one product of the matrices side by side, so the whole layer is two products, with A = [S1s… | U2s…] and
B = [U1s… ; S2s…]. docs/math.md has the derivations.
"""

from __future__ import annotations

import torch
from torch import Tensor, cat


def factors(S1s: Tensor, U1s: Tensor, U2s: Tensor, S2s: Tensor) -> tuple[Tensor, Tensor]:
    """Put the terms side by side.

    Args:
        S1s: (L, d_in, k), learnable.
        U1s: (L, k, d_out), fixed.
        U2s: (L, d_in, k), fixed.
        S2s: (L, k, d_out), learnable.

    Returns:
        A of shape (d_in, 2Lk) and B of shape (2Lk, d_out), so that Σ_i (S1s[i] U1s[i] + U2s[i] S2s[i]) = A @ B.
    """
    A = cat([_side_by_side(S1s), _side_by_side(U2s)], dim=1)
    B = cat([U1s.flatten(0, 1), S2s.flatten(0, 1)], dim=0)
    return A, B


def two_products(x: Tensor, A: Tensor, B: Tensor, num_terms: int, bias: Tensor | None = None) -> Tensor:
    """Apply a sketched linear layer whose terms stand side by side: its definition, as short as it can be said.

    Args:
        x: (..., d_in).
        A: (d_in, 2Lk) of `factors`.
        B: (2Lk, d_out) of `factors`.
        num_terms: L.
        bias: (d_out,) or None.

    Returns:
        y of shape (..., d_out).
    """
    L = num_terms
    if bias is None:
        return (x @ A) @ B / (2 * L)
    return (x @ A) @ B / (2 * L) + bias


def sketched_linear(
    x: Tensor, S1s: Tensor, U1s: Tensor, U2s: Tensor, S2s: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Apply a sketched linear layer to terms that lie anywhere in memory.

    Computes `two_products` with A and B each taken in two halves, so that nothing has to be copied side by side:
    (x @ A) @ B = (x @ [S1s…]) @ [U1s…] + (x @ [U2s…]) @ [S2s…]. Made of plain operations, so that every transformation
    of torch (compile, export, vmap, forward and higher derivatives) goes through it.

    Args:
        x: (..., d_in).
        S1s, U1s, U2s, S2s: the terms, with the shapes that `factors` takes.
        bias: (d_out,) or None.

    Returns:
        y of shape (..., d_out).
    """
    L, d_in, _ = S1s.shape
    scale = 1 / (2 * L)
    rows = x.reshape(-1, d_in)
    learned, fixed = _hidden(rows, S1s, L), _hidden(rows, U2s, L)
    if bias is None:
        y = (learned * scale) @ U1s.flatten(0, 1)
    else:
        y = torch.addmm(bias, learned, U1s.flatten(0, 1), alpha=scale)
    y = torch.addmm(y, fixed, S2s.flatten(0, 1), alpha=scale)
    # a sum of shapes: a proxy of torch.fx can't be unpacked
    return y.reshape(x.shape[:-1] + (S2s.shape[-1],))  # noqa: RUF005


def _hidden(rows: Tensor, terms: Tensor, L: int) -> Tensor:
    """(N, d_in), (L, d_in, k) → (N, L·k): rows @ [terms side by side]."""
    return torch.bmm(rows.expand(L, -1, -1), terms).transpose(0, 1).flatten(1)


def _side_by_side(terms: Tensor) -> Tensor:
    """(L, d_in, k) → (d_in, L·k), the terms as blocks of columns."""
    return terms.transpose(0, 1).flatten(1)
