"""Randomized decompositions with the signatures of the public panther-ml package: `randomized_svd` and `cqrrpt`."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

# products with A Aᵀ after which the leading singular values are expected to converge
_MOST_ITERATIONS = 32
_OVERSAMPLING = 32


class SVD(NamedTuple):
    """A ≈ U @ diag(S) @ V.T.

    Attributes:
        U: (m, k), orthonormal columns.
        S: (k,), the leading singular values, largest first.
        V: (n, k), orthonormal columns.
    """

    U: Tensor
    S: Tensor
    V: Tensor


class PivotedQR(NamedTuple):
    """M[:, P] = Q @ R.

    Attributes:
        Q: (m, r), orthonormal columns, r the numerical rank of M.
        R: (r, n), upper triangular, the magnitudes on its diagonal falling.
        P: (n,), the columns of M in the order in which they were taken.
    """

    Q: Tensor
    R: Tensor
    P: Tensor


@torch.no_grad()
def randomized_svd(A: Tensor, k: int, tol: float = 1e-6, *, generator: torch.Generator | None = None) -> SVD:
    """Compute the k leading singular values and vectors by subspace iteration from a random start.

    (Halko, Martinsson and Tropp, "Finding structure with randomness", SIAM Review 2011, algorithms 4.4 and 5.1.) Where
    the spectrum falls so slowly that the iteration does not settle, the exact decomposition is computed.

    Args:
        A: (m, n), of a floating-point type; tall, wide or square.
        k: how many; min(m, n) where it is larger.
        tol: relative change of the leading singular values in an iteration at which it has settled.
        generator: of the random start; a fixed seed when None.

    Returns:
        U, S and V of A's type. V, not its transpose: A ≈ U @ diag(S) @ V.T.

    Raises:
        TypeError: A is no floating-point tensor, or k no integer.
        ValueError: A is no matrix or holds values that are not finite, k is below 1, or tol is negative.
    """
    _check_matrix("A", A)
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k ({k!r}) must be an integer, not {type(k).__name__}")
    if k < 1:
        raise ValueError(f"k ({k}) must be at least 1")
    if not tol >= 0:
        raise ValueError(f"tol ({tol}) must be at least 0")
    m, n = A.shape
    wide = A.double()
    k, columns = min(k, m, n), min(k + _OVERSAMPLING, m, n)
    if columns == min(m, n):
        return _exact(wide, k, A.dtype)
    Q = torch.linalg.qr(wide @ _gaussian(n, columns, A.device, generator)).Q
    before: Tensor | None = None
    for _ in range(_MOST_ITERATIONS):
        Q = torch.linalg.qr(wide @ torch.linalg.qr(wide.t() @ Q).Q).Q
        U, S, Vh = torch.linalg.svd(Q.t() @ wide, full_matrices=False)
        if before is not None and bool(((S[:k] - before).abs() <= tol * S[0]).all()):
            return SVD((Q @ U)[:, :k].to(A.dtype), S[:k].to(A.dtype), Vh[:k].t().to(A.dtype))
        before = S[:k]
    return _exact(wide, k, A.dtype)


@torch.no_grad()
def cqrrpt(M: Tensor, gamma: float = 1.25, *, generator: torch.Generator | None = None) -> PivotedQR:
    """Decompose a matrix by QR with column pivoting, the pivots found on a small random sketch of it.

    (Melnichenko, Balabanov, Murray, Demmel, Mahoney and Luszczek, "CholeskyQR with randomization and pivoting for tall
    matrices", 2023.) The pivoted QR of the sketch gives the order of the columns, the rank, and a preconditioner that
    makes Cholesky QR of the matrix itself safe. A matrix that is not tall is its own sketch.

    Args:
        M: (m, n), of a floating-point type.
        gamma: rows of the sketch for each column of M, at least 1.
        generator: of the sketch; a fixed seed when None.

    Returns:
        Q, R and P with M[:, P] = Q @ R.

    Raises:
        TypeError: M is no floating-point tensor.
        ValueError: M is no matrix or holds values that are not finite, or gamma is below 1.
    """
    _check_matrix("M", M)
    if not gamma >= 1 or math.isinf(gamma):
        raise ValueError(f"gamma ({gamma}) must be a number of at least 1")
    m, n = M.shape
    wide = M.double()
    rows = math.ceil(gamma * n)
    sketch = _gaussian(rows, m, M.device, generator) @ wide if rows < m else wide
    R, P = _pivoted_triangle(sketch)
    diagonal = R.diagonal().abs()
    floor = max(m, n) * torch.finfo(M.dtype).eps * (diagonal.max() if len(diagonal) else 0.0)
    rank = int((diagonal > floor).sum())
    R = R[:rank]
    Q = torch.linalg.solve_triangular(R[:, :rank], wide[:, P[:rank]], upper=True, left=False)
    # twice: the second pass restores the orthogonality that an ill-conditioned first one loses
    for _ in range(2):
        factor = _triangle(Q)
        Q = torch.linalg.solve_triangular(factor, Q, upper=True, left=False)
        R = factor @ R
    return PivotedQR(Q.to(M.dtype), R.to(M.dtype), P)


def _triangle(Q: Tensor) -> Tensor:
    """The upper triangular factor of a well conditioned matrix, by Cholesky."""
    factor, failed = torch.linalg.cholesky_ex(Q.t() @ Q, upper=True)
    triangle: Tensor = torch.linalg.qr(Q).R if bool(failed) else factor
    return triangle


def _pivoted_triangle(A: Tensor) -> tuple[Tensor, Tensor]:
    """R (min(m, n), n) and P (n,) of the Householder QR of A with column pivoting (Businger and Golub, 1965)."""
    A = A.clone()
    m, n = A.shape
    P = torch.arange(n, device=A.device)
    for i in range(min(m, n)):
        largest = i + int(A[i:, i:].square().sum(0).argmax())
        if largest != i:
            A[:, [i, largest]] = A[:, [largest, i]]
            P[[i, largest]] = P[[largest, i]]
        v = A[i:, i].clone()
        length = v.norm()
        if length == 0:
            break
        v[0] += torch.copysign(length, v[0])
        v /= v.norm()
        A[i:, i:] -= 2 * torch.outer(v, v @ A[i:, i:])
    return A[: min(m, n)].triu(), P


def _exact(A: Tensor, k: int, dtype: torch.dtype) -> SVD:
    U, S, Vh = torch.linalg.svd(A, full_matrices=False)
    return SVD(U[:, :k].to(dtype), S[:k].to(dtype), Vh[:k].t().to(dtype))


def _gaussian(rows: int, columns: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(rows, columns, generator=generator, device=generator.device, dtype=torch.float64)
    return drawn.to(device)


def _check_matrix(name: str, A: Any) -> None:
    if not isinstance(A, Tensor) or not A.is_floating_point():
        kind = A.dtype if isinstance(A, Tensor) else type(A).__name__
        raise TypeError(f"{name} ({kind}) must be a tensor of a floating-point type")
    if A.dim() != 2 or not A.numel():
        raise ValueError(f"{name} of shape {tuple(A.shape)} must be a matrix with rows and columns")
    if not bool(A.isfinite().all()):
        raise ValueError(f"{name} holds values that are not finite")
