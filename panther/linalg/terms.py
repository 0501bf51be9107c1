"""Terms for a given weight: the best learnable ones for given fixed ones, and all four of a product of factors."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


def best_terms(W: Tensor, U1s: Tensor, U2s: Tensor) -> tuple[Tensor, Tensor]:
    """Solve for the S1s and S2s that bring a sketched layer closest to a dense one in the Frobenius norm.

    With M = Wᵀ, P = [U1s… ; …] of shape (Lk, d_out) and Q = [U2s…] of shape (d_in, Lk), the layer's weight is
    (S1 P + Q S2) / (2L) for any S1 of shape (d_in, Lk) and S2 of shape (Lk, d_out). What no choice of them reaches is
    (I - QQ⁺) M (I - P⁺P), and all else is reached; what both sides could give is shared equally between them
    (docs/math.md has the proof).

    Args:
        W: (d_out, d_in), the weight of an nn.Linear.
        U1s: (L, k, d_out).
        U2s: (L, d_in, k).

    Returns:
        S1s of shape (L, d_in, k) and S2s of shape (L, k, d_out), float64.
    """
    L, k, d_out = U1s.shape
    M = W.double().t()
    P = U1s.double().flatten(0, 1)
    Q = U2s.double().transpose(0, 1).flatten(1)
    P_pinv, Q_pinv = torch.linalg.pinv(P), torch.linalg.pinv(Q)
    QtM, MPt = Q_pinv @ M, M @ P_pinv
    S2 = 2 * L * (QtM - (QtM @ P_pinv) @ P / 2)
    S1 = 2 * L * (MPt - Q @ (Q_pinv @ MPt) / 2)
    return S1.unflatten(1, (L, k)).transpose(0, 1), S2.view(L, k, d_out)


_TINY = torch.finfo(torch.float64).tiny


class Terms(NamedTuple):
    """The four matrices of a sketched layer, float64, with the shapes that `panther.nn.functional.factors` takes."""

    S1s: Tensor
    U1s: Tensor
    U2s: Tensor
    S2s: Tensor


def terms_of_factors(
    left: Tensor,
    right: Tensor,
    num_terms: int,
    low_rank: int,
    *,
    largest: float | None = None,
    largest_input: Tensor | None = None,
) -> Terms:
    """Write a product of two factors as the terms of a sketched layer, exactly.

    With h = Lk, the first h columns of left become U2 and the last h rows of right become U1, each as an orthonormal
    basis of what they span, scaled like the "orthonormal" sketches of `panther.sketch`; S takes up the rest:
    left[:, :h] = QR gives U2 = cQ and S2 = (2L/c) R right[:h], and on the other side likewise. So
    (S1 U1 + U2 S2) / (2L) = left @ right.

    Args:
        left: (d_in, r), r at most 2Lk.
        right: (r, d_out).
        num_terms: L.
        low_rank: k.
        largest: the largest number of the type that the terms will have, where it is small (float16): the scales of U
            are then chosen to keep the terms and x @ A within it.
        largest_input: (d_in,), the largest magnitudes of x that are known; unit norm is assumed without.
    """
    L, k = num_terms, low_rank
    h = L * k
    left, right = left.double(), right.double()
    U2, S2 = orthonormal_basis(left[:, :h], right[:h], h)
    U1_t, S1_t = orthonormal_basis(right[h:].t(), left[:, h:].t(), h)
    scale_in, scale_out = math.sqrt(left.shape[0] / k), math.sqrt(right.shape[1] / k)
    if largest is not None:
        most = largest / 4
        if largest_input is None:
            through_U2, through_S1 = most, 2 * L * most * _largest(S1_t.norm(dim=1))
        else:
            x = largest_input.double().abs()
            through_U2, through_S1 = _largest(x @ U2.abs()), 2 * L * _largest(x @ S1_t.abs().t())
        scale_in = max(min(scale_in, most / max(through_U2, _TINY)), 2 * L * _largest(S2) / most)
        scale_out = max(scale_out, through_S1 / most, 2 * L * _largest(S1_t) / most)
        scale_out = min(scale_out, most / max(_largest(U1_t), _TINY))
    return Terms(
        S1s=(S1_t.t() * (2 * L / scale_out)).reshape(-1, L, k).transpose(0, 1),
        U1s=(U1_t.t() * scale_out).reshape(L, k, -1),
        U2s=(U2 * scale_in).reshape(-1, L, k).transpose(0, 1),
        S2s=(S2 * (2 * L / scale_in)).reshape(L, k, -1),
    )


def _largest(tensor: Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0


def orthonormal_basis(span: Tensor, rest: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Write a product of two factors so that the first has orthonormal columns.

    Args:
        span: (d, r).
        rest: (r, n).
        columns: at least r.

    Returns:
        (d, columns) of orthonormal columns and (columns, n), whose product is span @ rest.

    Where there are more columns than d, the basis is repeated, and what multiplies the repetitions is zero.
    """
    d, r = span.shape
    width = min(d, columns)
    # extra zero columns: Q then has columns orthogonal to the span too, which a layer can train on
    padded = torch.cat([span, span.new_zeros(d, max(width - r, 0))], dim=1)
    Q, R = torch.linalg.qr(padded)
    coefficients = rest.new_zeros(columns, rest.shape[1])
    coefficients[:width] = R[:, :r] @ rest
    return Q.repeat(1, -(-columns // width))[:, :columns], coefficients
