"""A sketched layer on a CUDA device by library matrix products: two forward, and four backward, two of half size.

With Triton, one launch lays out, casts and scales the factors (`panther.nn.kernels.launch.FactorLayout`).

See docs/decisions/0096-products-where-the-device-is-busy.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from panther.nn.kernels import launch, private_names

_HALF = (torch.float16, torch.bfloat16)
# with at least this many rows, and at most this many entries in the gradient of S1s for each of them, the batched
# float32 product leaves most of the device idle, because the library does not split its rows
LONG = 1024
ENTRIES_PER_ROW = 128
# rows up to which, and ranks from which, laying out the factors takes longer than a batched product with A as it is
FEW_ROWS = 1024
LARGE_RANK = {"half": 32, "tf32": 128}


class Kept:
    """State for the backward pass besides the inputs: the factors, their original dtype, and the kernels' plan."""

    __slots__ = ("A", "B", "parameter_dtype", "plan")

    def __init__(
        self, A: Tensor, B: Tensor, parameter_dtype: torch.dtype, plan: launch.LaunchPlan | None = None
    ) -> None:
        self.A, self.B, self.parameter_dtype, self.plan = A, B, parameter_dtype, plan


def as_rows(x: Tensor) -> Tensor:
    """(..., n) → (N, n)."""
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def forward(
    x: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, dtype: torch.dtype, *, learning: bool = True
) -> tuple[Tensor, Tensor, Kept]:
    """Compute y = x @ A @ B / (2L) + bias.

    Args:
        x: (N, d_in).
        bias: (d_out,) or None.
        A, B: (2L, d_in, k) and (2Lk, d_out).
        dtype: type of the products.
        learning: whether a backward pass follows.

    Returns:
        y, (N, d_out); H, (N, 2Lk), and the factors, both for `backward` if one follows.
    """
    if not learning and reads_terms(len(x), A, dtype):
        return forward_by_terms(x, bias, A, B)
    A_side, B_side, bias = factors(A, B, bias, dtype)
    H = torch.mm(x if x.dtype == dtype else x.to(dtype), A_side)
    y = torch.mm(H, B_side) if bias is None else torch.addmm(bias, H, B_side)
    return y, H, Kept(A_side, B_side, A.dtype)


def reads_terms(rows: int, A: Tensor, dtype: torch.dtype) -> bool:
    """Whether a forward pass alone takes A as it is, rather than lay out the factors; arguments as for `forward`."""
    k = A.shape[2]
    # 16 bytes, which the matrix units' copies are aligned to
    if A.dtype != dtype or rows > FEW_ROWS or k * dtype.itemsize % 16:
        return False
    if dtype in _HALF:
        return k >= LARGE_RANK["half"]
    in_tf32 = dtype == torch.float32 and private_names.fp32_precision("cuda", "matmul") == "tf32"
    return in_tf32 and k >= LARGE_RANK["tf32"]


def forward_by_terms(x: Tensor, bias: Tensor | None, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Kept]:
    """`forward` in the type of A and B by a batched product with A as it is."""
    terms, _, k = A.shape
    H = A.new_empty((len(x), terms, k))
    torch.bmm((x if x.dtype == A.dtype else x.to(A.dtype)).expand(terms, *x.shape), A, out=H.transpose(0, 1))
    H = H.view(len(x), terms * k)
    # with beta = 0, what is added is not read
    added, beta = (B[0], 0) if bias is None else (bias.to(B.dtype), 1)
    return torch.addmm(added, H, B, beta=beta, alpha=1 / terms), H, Kept(A, B, A.dtype)


def factors(A: Tensor, B: Tensor, bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
    """Lay A side by side, divide the fixed halves by 2L, and cast all three to dtype.

    With the scale in the fixed halves, the products of `backward` are the gradients without a further operation.

    Args:
        A, B: (2L, d_in, k) and (2Lk, d_out).
        bias: (d_out,) or None.
        dtype: type of the results.

    Returns:
        A, (d_in, 2Lk), B and the bias.
    """
    layout = launch.factor_layout(A, B, bias, dtype)
    if layout is not None:
        return layout(A, B, bias)
    terms, d_in, k = A.shape
    L, half = terms // 2, len(B) // 2
    A_side = torch.empty((d_in, terms, k), dtype=dtype, device=A.device)
    B_side = torch.empty(B.shape, dtype=dtype, device=B.device)
    A_side[:, :L].copy_(A[:L].transpose(0, 1))
    torch.mul(A[L:].transpose(0, 1), 1 / terms, out=A_side[:, L:])
    torch.mul(B[:half], 1 / terms, out=B_side[:half])
    B_side[half:].copy_(B[half:])
    return A_side.view(d_in, terms * k), B_side, None if bias is None else bias.to(dtype)


def backward(
    grad: Tensor, x: Tensor, H: Tensor, kept: Kept, L: int, needs: tuple[bool, bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Compute the gradients of x, S1s, S2s and the bias; None for those that are not needed.

    Each view is a single call of `as_strided`, to save host time.

    Args:
        grad: (N, d_out), the gradient of y.
        x: (N, d_in).
        H, kept: as `forward` returned them.
        L: the number of terms of each kind.
        needs: whether each gradient is needed.
    """
    A, B, dtype = kept.A, kept.B, kept.parameter_dtype
    needs_x, needs_S1, needs_S2, needs_bias = needs
    (d_in, columns), d_out, N = A.shape, B.shape[1], len(x)
    half = columns // 2
    k = half // L
    dx = dS1 = dS2 = dbias = None
    if needs_x or needs_S1:
        dH = torch.mm(grad, (B if needs_x else B[:half]).t())
        if needs_x:
            dx = torch.mm(dH, A.t())
            dx = dx if dx.dtype == x.dtype else dx.to(x.dtype)
        if needs_S1:
            rows = x if x.dtype == B.dtype else x.to(B.dtype)
            if rows.dtype == torch.float32 and N >= LONG and L * d_in * k <= ENTRIES_PER_ROW * N:
                dS1 = gradient_by_one_product(rows, dH, L, k)
            else:
                dS1 = batched_gradient(rows, dH, L, k, dtype)
    if needs_S2:
        H2 = H.as_strided((half, N), (1, columns), H.storage_offset() + half)
        dS2 = _product(torch.mm, H2, grad, dtype).view(L, k, d_out)
    if needs_bias:
        dbias = torch.sum(grad, 0, dtype=dtype)
    return dx, dS1, dS2, dbias


def gradient_by_one_product(x: Tensor, dH: Tensor, L: int, k: int) -> Tensor:
    """The gradient of S1s, (L, d_in, k), by one product and a copy of its result.

    Args:
        x: (N, d_in).
        dH: the gradient of H, (N, at least Lk), which begins with the learnable half.
        L, k: the number of terms of each kind, and their rank.
    """
    dA = torch.mm(x.t(), dH[:, : L * k])
    return dA.view(x.shape[1], L, k).transpose(0, 1).contiguous()


def batched_gradient(x: Tensor, dH: Tensor, L: int, k: int, dtype: torch.dtype) -> Tensor:
    """The gradient of S1s in dtype by a batched product; the other arguments are as for `gradient_by_one_product`."""
    (N, d_in), (stride, step) = x.shape, x.stride()
    xs = x.as_strided((L, d_in, N), (0, step, stride))
    return _product(torch.bmm, xs, dH.as_strided((L, N, k), (k, dH.shape[1], 1)), dtype)


def _product(product: Any, a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """torch.mm or torch.bmm of a and b in dtype; 16-bit inputs give a 32-bit result without intermediate rounding."""
    found: Tensor
    if a.is_cuda and a.dtype in _HALF and dtype == torch.float32:
        found = product(a, b, out_dtype=dtype)
    else:
        found = product(a, b).to(dtype)
    return found
