"""The best matrix of a rank for given data: truncation after whitening on both sides.

See docs/decisions/0046-two-sided-whitening.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
    layer before its truncation: Wang et al., "SVD-LLM", 2024; both sides: the generalised low-rank approximation of
    Srebro and Jaakkola, "Weighted low-rank approximations", 2003, for weights of rank one, and the Kronecker factors
    of Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", 2015.)

    Args:
        W: (d_out, d_in).
        C_in: (d_in, d_in), positive definite; the identity when None.
        C_out: (d_out, d_out), positive definite; the identity when None.
    """
    K = W.double()
    L_in = None if C_in is None else torch.linalg.cholesky(C_in)
    L_out = None if C_out is None else torch.linalg.cholesky(C_out)
    if L_in is not None:
        K = K @ L_in
    if L_out is not None:
        K = L_out.t() @ K
    U, S, Vh = _svd(K)
    left, right = Vh.t(), S.unsqueeze(1) * U.t()
    if L_in is not None:
        left = torch.linalg.solve_triangular(L_in.t(), left, upper=True)
    if L_out is not None:
        right = torch.linalg.solve_triangular(L_out, right, upper=False, left=False)
    return Spectrum(left, right, S.square())


def damped(C: Tensor, damping: float, more: Tensor | float = 0.0) -> Tensor | None:
    """C with a share of its mean variance, and more, added to every direction, so that none is free.

    Args:
        C: (d, d), positive semidefinite.
        damping: the share.
        more: in the units of C.

    Returns:
        (d, d), positive definite; None where all is zero.
    """
    added = damping * C.diagonal().mean() + more
    if not added > 0:
        return None
    return C + added * torch.eye(len(C), dtype=C.dtype, device=C.device)


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
