"""The mathematics of a sketched layer, in one place.

For x of shape (..., d_in), L = num_terms and k = low_rank the layer is

    y = 1/(2L) · Σ_i ( x · S1s[i] · U1s[i]  +  x · U2s[i] · S2s[i] ) + bias

(Kasiviswanathan, Narodytska, Jin, "Network Approximation using Tensor Sketching", IJCAI 2018). A sum of products of
matrices is one product of the matrices side by side, so the whole layer is two products, with A = [S1s… | U2s…] and
B = [U1s… ; S2s…].
"""

from __future__ import annotations

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


def sketched_linear(
    x: Tensor, S1s: Tensor, U1s: Tensor, U2s: Tensor, S2s: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Apply a sketched linear layer.

    Args:
        x: (..., d_in).
        S1s, U1s, U2s, S2s: the terms, with the shapes that `factors` takes.
        bias: (d_out,) or None.

    Returns:
        y of shape (..., d_out).
    """
    A, B = factors(S1s, U1s, U2s, S2s)
    L = S1s.shape[0]
    y = (x @ A) @ B / (2 * L)
    return y if bias is None else y + bias


def _side_by_side(terms: Tensor) -> Tensor:
    """(L, d_in, k) → (d_in, L·k), the terms as blocks of columns."""
    return terms.transpose(0, 1).flatten(1)
