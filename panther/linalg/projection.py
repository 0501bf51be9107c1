"""Low-rank tables by projection: the optimal projection of a table's rows, for every rank.

A table W (V, d) becomes W P with a projection P of rank r. The frequencies of the rows, and of rows that are looked up
together, enter only through the second moment S (d, d) of the lookups' outputs: no V x V matrix is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from panther.linalg.whitening import Spectrum

# rows of a table that are converted to float64 at once
_CHUNK = 2**16
# power of a 2x2 matrix, to find its largest eigenvector
_POWER = 64


@dataclass(frozen=True)
class Projection(Spectrum):
    """Projections on a table's outputs for every rank r: P = left[:, :r] @ right[:r], and the table W P."""

    def factors(self, W: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """Factors A (V, rank) and B (rank, d) with A @ B = W P; A has the dtype of W, B is float64."""
        down = self.left[:, :rank]
        A = torch.cat([(rows.double() @ down).to(W.dtype) for rows in torch.split(W, _CHUNK)])
        return A, self.right[:rank]

    def remainder(self, rank: int) -> Tensor:
        """I - P, (d, d)."""
        P = self.left[:, :rank] @ self.right[:rank]
        return torch.eye(len(P), dtype=P.dtype, device=P.device) - P


def projections(S: Tensor, C_out: Tensor | None = None) -> Projection:
    """Solve min E ‖Lᵀ (I - P)ᵀ y‖² over projections of every rank at once, for E[y yᵀ] = S and C_out = L Lᵀ.

    With the eigenvectors Q of Lᵀ S L, P = L Q_r Q_rᵀ L⁻¹. For y = Wᵀx this is the optimum over all tables of rank r,
    including those that are not projections of W: the truncated SVD of Lᵀ Wᵀ after whitening
    (`panther.linalg.whitening`) is the same matrix.

    Args:
        S: (d, d), float64, positive semidefinite: the second moment of the outputs.
        C_out: (d, d), positive definite: the weight of errors in each direction; the identity when None.
    """
    G, L = S, None
    if C_out is not None:
        L = torch.linalg.cholesky(C_out)
        G = L.t() @ S @ L
    values, Q = torch.linalg.eigh(G)
    values, Q = values.flip(0).clamp_min(0), Q.flip(1)
    down, up = Q, Q.t()
    if L is not None:
        down, up = L @ Q, torch.linalg.solve_triangular(L, Q.t(), upper=False, left=False)
        # unit rows: sensitivities may be far from 1, and factors may be stored in 16 bits
        norms = up.norm(dim=1).clamp_min(torch.finfo(up.dtype).tiny)
        down, up = down * norms, up / norms.unsqueeze(1)
    return Projection(down, up, values)


def shared_projections(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Projection:
    """Projections of every rank with the least total loss for two uses of a table.

    The loss of lookups is tr S (I - P) C (I - P)ᵀ, with S and C_out of `projections`. The loss of a linear layer with
    the same weight, y = W x, has the same form with S = Wᵀ C_out W and the second moment C of its inputs. The best P
    for the sum is not the truncation of a matrix. It is approximated with the Kronecker product closest to the sum of
    two; the energies are those of the true sum. (Van Loan and Pitsianis, "Approximation with Kronecker products",
    1993.)

    Args:
        first, second: (S, C) of each use, (d, d), float64, positive definite.
    """
    S, C = (torch.stack(pair) for pair in zip(first, second, strict=True))
    norms = torch.linalg.matrix_norm(S).view(2, 1, 1)
    S, C = S / norms, C * norms
    grams = (S.flatten(1) @ S.flatten(1).t(), C.flatten(1) @ C.flatten(1).t())
    # power iteration for the largest eigenvector of a matrix with positive entries
    step = grams[1] @ grams[0]
    weights = torch.linalg.matrix_power(step / step.norm(), _POWER) @ step.new_ones(2)
    shares = grams[0] @ weights
    found = projections(torch.tensordot(weights, S, 1), torch.tensordot(shares / shares.norm(), C, 1))
    lost = _lost(found, *first) + _lost(found, *second)
    return Projection(found.left, found.right, lost[:-1] - lost[1:])


def _lost(found: Projection, S: Tensor, C: Tensor) -> Tensor:
    """The loss tr S (I - P) C (I - P)ᵀ for every rank from 0, (d + 1,)."""
    SL, RC = S @ found.left, found.right @ C
    pairs = (found.left.t() @ SL) * (RC @ found.right.t())
    gained = 2 * (SL * RC.t()).sum(0).cumsum(0) - pairs.cumsum(0).cumsum(1).diagonal()
    return (S * C).sum() - torch.cat([gained.new_zeros(1), gained])


def second_moment(W: Tensor, weights: Tensor | None = None) -> Tensor:
    """Σ_v weight_v W[v] W[v]ᵀ, (d, d) in float64."""
    total = torch.zeros(W.shape[1], W.shape[1], dtype=torch.float64, device=W.device)
    pieces = torch.split(W, _CHUNK)
    scales: Sequence[Tensor | None] = (
        [None] * len(pieces) if weights is None else torch.split(weights.to(W.device), _CHUNK)
    )
    for rows, scale in zip(pieces, scales, strict=True):
        double = rows.double()
        total += double.t() @ (double if scale is None else double * scale.double().unsqueeze(1))
    return total


def closest_rows(W: Tensor, weights: Tensor | None = None) -> Projection:
    """Compute `projections` for the rows of a table, weighted by their frequencies."""
    return projections(second_moment(W, weights))
