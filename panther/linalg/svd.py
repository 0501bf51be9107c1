"""Truncated singular value decompositions: exact, and randomized for large matrices."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

# below this size the exact decomposition takes under a second
_LARGE = 1024


class TruncatedSVD(NamedTuple):
    """M ≈ U @ diag(S) @ Vh.

    Attributes:
        U: (m, r), orthonormal columns.
        S: (r,), the leading singular values, largest first.
        Vh: (r, n), orthonormal rows.
    """

    U: Tensor
    S: Tensor
    Vh: Tensor


def truncated_svd(
    M: Tensor,
    rank: int,
    *,
    method: Literal["auto", "exact", "randomized"] = "auto",
    generator: torch.Generator | None = None,
) -> TruncatedSVD:
    """Decompose a matrix into its leading singular values and vectors: the closest matrix of that rank.

    (Eckart and Young, "The approximation of one matrix by another of lower rank", 1936: closest in the Frobenius norm.)

    Args:
        M: (m, n), of any floating-point type.
        rank: how many to keep; min(m, n) where it is larger.
        method: ``"exact"`` computes in float64; ``"randomized"`` is `randomized_svd`; ``"auto"`` takes the latter where
            M is large and the rank is under an eighth of its smaller side.
        generator: for the randomized one; a fixed seed when None.

    Raises:
        ValueError: M is no matrix, the rank is below 1, or the method is unknown.
    """
    _check(M, rank)
    if method not in ("auto", "exact", "randomized"):
        raise ValueError(f"method ({method!r}) must be 'auto', 'exact' or 'randomized'")
    smaller = min(M.shape)
    rank = min(rank, smaller)
    if method == "randomized" or (method == "auto" and smaller > _LARGE and 8 * rank < smaller):
        return randomized_svd(M, rank, generator=generator)
    U, S, Vh = torch.linalg.svd(M.double(), full_matrices=False)
    return TruncatedSVD(U[:, :rank], S[:rank], Vh[:rank])


def randomized_svd(
    M: Tensor,
    rank: int,
    *,
    oversampling: int = 32,
    power_iterations: int = 3,
    generator: torch.Generator | None = None,
) -> TruncatedSVD:
    """Approximate `truncated_svd` by a random projection, at the cost of a few products with M.

    (Halko, Martinsson and Tropp, "Finding structure with randomness: probabilistic algorithms for constructing
    approximate matrix decompositions", SIAM Review 2011: algorithm 4.4, subspace iteration with orthonormalization,
    then algorithm 5.1.)

    Args:
        M: (m, n), of any floating-point type; narrower types than float32 are computed in float32.
        rank: how many singular values to find; min(m, n) where it is larger.
        oversampling: columns of the random projection above the rank.
        power_iterations: products with M Mᵀ, which tell the leading directions from a slowly falling spectrum.
        generator: of the projection; a fixed seed when None.

    Raises:
        ValueError: M is no matrix, or the rank is below 1.
    """
    _check(M, rank)
    M = M.to(torch.promote_types(M.dtype, torch.float32))
    m, n = M.shape
    rank = min(rank, m, n)
    columns = min(rank + oversampling, m, n)
    if generator is None:
        generator = torch.Generator(M.device).manual_seed(0)
    projection = torch.randn(n, columns, generator=generator, device=generator.device, dtype=M.dtype).to(M.device)
    Q = torch.linalg.qr(M @ projection).Q
    for _ in range(power_iterations):
        Q = torch.linalg.qr(M.t() @ Q).Q
        Q = torch.linalg.qr(M @ Q).Q
    U, S, Vh = torch.linalg.svd(Q.t() @ M, full_matrices=False)
    return TruncatedSVD((Q @ U)[:, :rank], S[:rank], Vh[:rank])


def _check(M: Tensor, rank: int) -> None:
    if M.dim() != 2:
        raise ValueError(f"M of shape {tuple(M.shape)} must be a matrix")
    if rank < 1:
        raise ValueError(f"rank ({rank}) must be at least 1")
