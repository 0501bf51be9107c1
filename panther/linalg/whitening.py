"""The best matrix of a rank for given data: truncation after whitening on both sides.

See docs/decisions/0046-two-sided-whitening.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from panther.linalg.gram import times
from panther.linalg.triangular import congruence, lower_times


@dataclass(frozen=True)
class Spectrum:
    """A weight taken apart, so that its best approximation of every rank is a truncation.

    Attributes:
        left: (d_in, p), right: (p, d_out): Wᵀ = left @ right, and of rank r, left[:, :r] @ right[:r] is the best.
        energies: (p,), float64, falling: the squared error that is left when all from i on are cut is their sum.
        error_unit: what a relative error of 1 would be: the squared norm of the output, in the units of energies.
    """

    left: Tensor
    right: Tensor
    energies: Tensor

    def tail(self) -> Tensor:
        """(p + 1,): the squared error of every rank from 0 to p."""
        total = self.energies.flip(0).cumsum(0).flip(0)
        return torch.cat([total, total.new_zeros(1)])


def whitened_svd(W: Tensor, C_in: Tensor | None = None, C_out: Tensor | None = None) -> Spectrum:
    """Solve min ‖Lₒᵀ (W - Ŵ) Lᵢ‖ over every rank at once, where C_in = Lᵢ Lᵢᵀ and C_out = Lₒ Lₒᵀ.

    For inputs X with XᵀX = C_in this is ‖X (W - Ŵ)ᵀ‖; C_out weighs the directions of the output. With
    Lₒᵀ W Lᵢ = U Σ Vᵀ the optimum of rank r is Ŵ = Lₒ⁻ᵀ U_r Σ_r V_rᵀ Lᵢ⁻¹: the change of variables is invertible and
    keeps the rank, so the theorem of Eckart and Young (1936) holds for the whitened matrix. (Whitening the inputs of a
    layer before its truncation: Wang et al., "SVD-LLM", 2024; both sides: the generalized low-rank approximation of
    Srebro and Jaakkola, "Weighted low-rank approximations", 2003, for weights of rank one, and the Kronecker factors
    of Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", 2015.)

    Args:
        W: (d_out, d_in).
        C_in: (d_in, d_in), positive definite; the identity when None.
        C_out: (d_out, d_out), positive definite, or its diagonal (d_out,) if the rest is zero; the identity when None.
    """
    K = W.double()
    L_in = None if C_in is None else torch.linalg.cholesky(C_in)
    if L_in is not None:
        K = K @ L_in
    if C_out is not None and C_out.dim() == 1:
        root = C_out.sqrt()
        whitened = _from_whitened(root.unsqueeze(1) * K, L_in, None)
        return Spectrum(whitened.left, whitened.right / root, whitened.energies)
    L_out = None if C_out is None else torch.linalg.cholesky(C_out)
    return _from_whitened(K if L_out is None else L_out.t() @ K, L_in, L_out)


def _from_whitened(K: Tensor, L_in: Tensor | None, L_out: Tensor | None) -> Spectrum:
    """The spectrum of W for K = Lₒᵀ W Lᵢ; an L that is None is the identity."""
    U, S, Vh = _svd(K)
    left, right = Vh.t(), S.unsqueeze(1) * U.t()
    if L_in is not None:
        left = torch.linalg.solve_triangular(L_in.t(), left, upper=True)
    if L_out is not None:
        right = torch.linalg.solve_triangular(L_out, right, upper=False, left=False)
    return Spectrum(left, right, S.square())


def spectrum_from_gram(
    W: Tensor, gram: Tensor, root: Tensor | None, rank: int, dtype: torch.dtype
) -> tuple[Spectrum, Tensor]:
    """Compute a `whitened_svd` truncated to a rank, from the smaller side only.

    With K = Lₒᵀ W Lᵢ and d_out ≤ d_in, K Kᵀ = Lₒᵀ (W C_in Wᵀ) Lₒ = U Σ² Uᵀ gives Wᵀ ≈ (Wᵀ P) right with
    P = Lₒ U_r Σ_r⁻¹ and right = Σ_r U_rᵀ Lₒ⁻¹: C_in is neither factored nor solved with. With d_out > d_in,
    KᵀK = Lᵢᵀ (Wᵀ C_out W) Lᵢ = V Σ² Vᵀ gives Wᵀ ≈ left (Pᵀ Wᵀ) with P = Lᵢ V_r and left = Lᵢ⁻ᵀ V_r.

    Args:
        W: (d_out, d_in).
        gram: W C_in Wᵀ where d_out ≤ d_in, else Wᵀ C_out W, float64.
        root: Lₒ or Lᵢ of the same size, lower triangular; the identity when None.
        rank: columns of left and rows of right that are kept.
        dtype: of the factor of the larger side; the other one is float64. On a CPU the product with W is in this type.

    Returns:
        All energies, with left and right as far as the rank; and P, float64, with a column for each.
    """
    values, vectors = torch.linalg.eigh(gram if root is None else congruence(root, gram))
    S, V = values.flip(0).clamp_min(0).sqrt(), vectors.flip(1)[:, :rank]
    del vectors
    P = V if root is None else lower_times(root, V)
    product = dtype if W.device.type == "cpu" else torch.float64
    if W.shape[0] <= W.shape[1]:
        floor = (S[:1] * torch.finfo(S.dtype).eps).clamp_min(torch.finfo(S.dtype).tiny)
        P = P / torch.maximum(S[:rank], floor)
        right = (V * S[:rank]).t()
        if root is not None:
            right = torch.linalg.solve_triangular(root, right, upper=False, left=False)
        return Spectrum(times(P.t().to(product), W, dtype).t(), right, S.square()), P
    left = V if root is None else torch.linalg.solve_triangular(root.t(), V, upper=True)
    return Spectrum(left, times(P.t().to(product), W.t(), dtype), S.square()), P


def weighted(G: Tensor, E: Tensor) -> Tensor:
    """G @ E for E (d, n) and G (d, d), or for the diagonal (d,) of a G whose other entries are zero."""
    return G.unsqueeze(1) * E if G.dim() == 1 else G @ E


def damped(C: Tensor, damping: float, more: Tensor | float = 0.0) -> Tensor | None:
    """C plus a share of its mean variance, and more, in every direction, so every direction has a positive weight.

    Args:
        C: (d, d), positive semidefinite, or its diagonal (d,).
        damping: the share.
        more: further damping, in the units of C.

    Returns:
        (d, d), positive definite, or its diagonal; None if C is zero.
    """
    variances = C if C.dim() == 1 else C.diagonal()
    added = damping * variances.mean() + more
    if not added > 0:
        return None
    if C.dim() == 1:
        return C + added
    found = C.clone()
    found.diagonal().add_(added)
    return found


def _svd(K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The SVD by the eigenvectors of the smaller Gram matrix: several times faster, exact to √eps of the largest value.

    The left or right factor is computed as the product with K, so that nothing is divided by a small singular value
    but what is multiplied by it again.
    """
    if K.shape[0] > K.shape[1]:
        U, S, Vh = _svd(K.t())
        return Vh.t(), S, U.t()
    values, U = torch.linalg.eigh(K @ K.t())
    S, U = values.flip(0).clamp_min(0).sqrt(), U.flip(1)
    floor = S[:1] * torch.finfo(K.dtype).eps
    Vh = (U.t() @ K) / torch.maximum(S, floor.clamp_min(torch.finfo(K.dtype).tiny)).unsqueeze(1)
    return U, S, Vh
