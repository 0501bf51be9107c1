"""The best table of a rank: rows projected on the directions that their lookups lose least in.

A table W (V, d) of rank r becomes W P with a projection P. All that counts of how often rows are looked
up, and with which others, is the second moment S (d, d) of what the lookups put out: nothing of size V x V is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from panther.linalg.whitening import Spectrum

# rows of a table that are converted to float64 at once
_CHUNK = 2**16
# of a 2x2 matrix whose eigenvectors are sought
_POWER = 64


@dataclass(frozen=True)
class Projection(Spectrum):
    """The identity on the outputs of a table taken apart: of rank r, P = left[:, :r] @ right[:r], and the table W P."""

    def factors(self, W: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """A (V, rank) and B (rank, d) of a table (V, d): A @ B = W P; A in the type of W, B in float64."""
        down = self.left[:, :rank]
        A = torch.cat([(rows.double() @ down).to(W.dtype) for rows in torch.split(W, _CHUNK)])
        return A, self.right[:rank]

    def remainder(self, rank: int) -> Tensor:
        """I - P, (d, d)."""
        P = self.left[:, :rank] @ self.right[:rank]
        return torch.eye(len(P), dtype=P.dtype, device=P.device) - P


def projections(S: Tensor, C_out: Tensor | None = None) -> Projection:
    """Solve min E ‖Lᵀ (I - P)ᵀ y‖² over projections of every rank at once, for E[y yᵀ] = S and C_out = L Lᵀ.

    With Q the eigenvectors of Lᵀ S L, P = L Q_r Q_rᵀ L⁻¹. With y = Wᵀx this is the optimum over all tables of rank r,
    not those alone that are projections of W: the truncated SVD of Lᵀ Wᵀ after whitening (`panther.linalg.whitening`)
    is the same matrix.

    Args:
        S: (d, d), float64, positive semidefinite: the second moment of what is put out.
        C_out: (d, d), positive definite: how much errors in each direction count; the identity when None.
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
    """Projections of every rank that two uses of a table lose least in, together.

    A table that is looked up loses tr S (I - P) C (I - P)ᵀ, for S and C_out of `projections`; a linear layer of the
    same weight, y = W x, loses the same for S = Wᵀ C_out W and the second moment C of its inputs. The best P for the
    sum is no truncation of any matrix. It is sought with the Kronecker product closest to the sum of two, and the
    energies are those of the sum itself. (Van Loan and Pitsianis, "Approximation with Kronecker products", 1993.)

    Args:
        first, second: (S, C) of each use, (d, d), float64, positive definite.
    """
    S, C = (torch.stack(pair) for pair in zip(first, second, strict=True))
    norms = torch.linalg.matrix_norm(S).view(2, 1, 1)
    S, C = S / norms, C * norms
    grams = (S.flatten(1) @ S.flatten(1).t(), C.flatten(1) @ C.flatten(1).t())
    # the largest eigenvector of a matrix of positive entries, by powers
    step = grams[1] @ grams[0]
    weights = torch.linalg.matrix_power(step / step.norm(), _POWER) @ step.new_ones(2)
    shares = grams[0] @ weights
    found = projections(torch.tensordot(weights, S, 1), torch.tensordot(shares / shares.norm(), C, 1))
    lost = _lost(found, *first) + _lost(found, *second)
    return Projection(found.left, found.right, lost[:-1] - lost[1:])


def _lost(found: Projection, S: Tensor, C: Tensor) -> Tensor:
    """(d + 1,), tr S (I - P) C (I - P)ᵀ for every rank from 0 on."""
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
    """`projections` for the rows of a table, each as often as its weight says."""
    return projections(second_moment(W, weights))
