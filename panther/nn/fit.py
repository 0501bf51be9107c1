"""The best learnable terms for given fixed ones."""

from __future__ import annotations

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
