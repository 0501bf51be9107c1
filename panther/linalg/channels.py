"""Subspaces of the channels of a convolution that keep its weight best.

See docs/decisions/0072-sketched-convolutions.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from panther.linalg.terms import orthonormal_basis

# "output": the convolution with the kernel comes first; "input": the 1x1 convolution does
Terms = Literal["both", "output", "input"]
Factors = tuple[Tensor, Tensor]
# alternations: each side's subspace is refitted to the residual of the other
_SWEEPS = 4


def closest_channels(W: Tensor, terms: Terms, half: int) -> tuple[Factors | None, Factors | None]:
    """Find the subspaces of the channels of a weight that leave least of it, in the Frobenius norm.

    With ``"both"`` the weight is approximated by what lies in a subspace of the output channels and of what that
    leaves, what lies in one of the input channels; each is chosen in turn for what the other leaves, which never
    makes the sum worse.

    Args:
        W: (C_out, C_in, positions), float64.
        terms: which kinds.
        half: Lk; a kind that is alone takes 2Lk channels.

    Returns:
        (C_out, r) and (r, C_in·positions), and (C_in, r) and (r, C_out·positions); None for a kind that is not asked.
    """
    by_output = W.flatten(1)
    by_input = W.transpose(0, 1).flatten(1)
    if terms == "output":
        return _leading(by_output, 2 * half), None
    if terms == "input":
        return None, _leading(by_input, 2 * half)
    P, _ = _leading(by_output, half)
    for _ in range(_SWEEPS):
        left = W - torch.einsum("op,qp,qcx->ocx", P, P, W)
        Q, _ = _leading(left.transpose(0, 1).flatten(1), half)
        P, _ = _leading((W - torch.einsum("cp,dp,odx->ocx", Q, Q, W)).flatten(1), half)
    left = W - torch.einsum("op,qp,qcx->ocx", P, P, W)
    return (P, P.t() @ by_output), (Q, Q.t() @ left.transpose(0, 1).flatten(1))


def scaled_factors(
    factors: Sequence[Factors | None], columns: int, num_terms: int, low_rank: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Write the factors of each group as S, (columns, n), and U, (channels, columns): U S is 2L times their product.

    U is a basis of the first factor's columns, scaled to a mean square of 1/k.
    """
    S, U = [], []
    for pair in factors:
        if pair is not None:
            basis, rest = orthonormal_basis(*pair, columns)
            scale = math.sqrt(len(basis) / low_rank)
            S.append(rest * (2 * num_terms / scale))
            U.append(basis * scale)
    return S, U


def _leading(M: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The leading left singular vectors of M, and what they have to be multiplied by to come closest to M."""
    U = torch.linalg.svd(M, full_matrices=False).U[:, :rank]
    return U, U.t() @ M
