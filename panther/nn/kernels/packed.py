"""Fast path of a sketched layer whose terms are adjacent in memory.

S1s and U2s are the halves of one block of memory, U1s and S2s those of another, so both factors exist without a copy:
`A` as (2L, d_in, k), a batch of matrices, and `B` as (2Lk, d_out). Each half is contiguous, and an ordinary parameter
or buffer for other code. A layer falls back on `functional.sketched_linear` if its terms are not adjacent, or if torch
transforms the computation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from panther.nn.kernels import cuda, private_names

_PLAIN = (Tensor, nn.Parameter)
# below this number of entries, the time of a product with one row is that of the calls, not of the arithmetic
SMALL = 1 << 20


@dataclass(frozen=True)
class Packed:
    """Memory layout of a layer's terms.

    Attributes:
        A: (2L, d_in, k): S1s, then U2s.
        B: (2Lk, d_out): U1s, then S2s.
        pointers: addresses of S1s, U1s, U2s and S2s. A and B keep the memory allocated, so terms with these addresses
            are the halves of A and B.
    """

    A: Tensor
    B: Tensor
    pointers: tuple[int, int, int, int]

    def holds(self, S1s: Tensor | None, U1s: Tensor | None, U2s: Tensor | None, S2s: Tensor | None) -> bool:
        """Whether these are still the packed tensors, with U still fixed."""
        return (
            type(S1s) is type(S2s) is nn.Parameter
            and type(U1s) is type(U2s) is Tensor
            and (S1s.data_ptr(), U1s.data_ptr(), U2s.data_ptr(), S2s.data_ptr()) == self.pointers
            and S1s.is_contiguous()
            and U1s.is_contiguous()
            and U2s.is_contiguous()
            and S2s.is_contiguous()
            and not (U1s.requires_grad or U2s.requires_grad)
        )


def pack(S1s: Tensor, U1s: Tensor, U2s: Tensor, S2s: Tensor) -> Packed | None:
    """Make the terms adjacent in memory, in place, unless they already are.

    The tensors remain the same objects; only their memory changes.

    Returns:
        Their layout; None if they can't be moved (no memory, as on ``meta``; different types or devices; subclasses of
        Tensor, which manage their own memory; empty tensors).
    """
    terms = (S1s, U1s, U2s, S2s)
    if (
        private_names.transformed()
        or not all(is_plain(term) for term in terms)
        or len({(term.dtype, term.device) for term in terms}) != 1
        or S1s.device.type == "meta"
        or S1s.numel() == 0
    ):
        return None
    A, B = _pack_pair(S1s, U2s), _pack_pair(U1s, S2s).flatten(0, 1)
    return Packed(A, B, (S1s.data_ptr(), U1s.data_ptr(), U2s.data_ptr(), S2s.data_ptr()))


def side_by_side(first: Tensor, second: Tensor) -> Tensor | None:
    """One tensor over two that are adjacent in memory, joined along the first axis; None if they are not adjacent."""
    size = first.numel() * first.element_size()
    if (
        first.is_contiguous()
        and second.is_contiguous()
        and first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
        and second.data_ptr() == first.data_ptr() + size
    ):
        return first.detach().as_strided((2 * len(first), *first.shape[1:]), first.stride())
    return None


def joined(S1s: Tensor, U1s: Tensor, U2s: Tensor, S2s: Tensor) -> tuple[Tensor, Tensor]:
    """A (2L, d_in, k) and B (2Lk, d_out) of the terms: over their memory where they are adjacent, else copies."""
    A, B = side_by_side(S1s, U2s), side_by_side(U1s, S2s)
    return torch.cat([S1s, U2s]) if A is None else A, (torch.cat([U1s, S2s]) if B is None else B).flatten(0, 1)


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is dense, and of no subclass of Tensor but nn.Parameter."""
    return type(tensor) in _PLAIN and tensor.layout == torch.strided


def with_separate_storage(term: Tensor) -> Tensor:
    """A tensor over the same memory with its storage limited to it; the tensor itself if torch can't slice it."""
    size = term.numel() * term.element_size()
    storage = term.untyped_storage()
    if not term.is_contiguous() or storage.nbytes() == size or (storage.is_shared() and not term.is_cuda):
        return term
    start = term.data_ptr() - storage.data_ptr()
    own = torch.empty(0, dtype=term.dtype, device=term.device)
    return own.set_(storage[start : start + size], 0, term.shape, term.stride())


def _pack_pair(first: Tensor, second: Tensor) -> Tensor:
    L = len(first)
    view = side_by_side(first, second)
    if view is not None:
        return view
    pair = torch.empty((2 * L, *first.shape[1:]), dtype=first.dtype, device=first.device)
    pair[:L].copy_(first.detach())
    pair[L:].copy_(second.detach())
    # .data: each half keeps its own version counter, so a step of the optimizer does not count as a change
    # of the fixed half
    first.data, second.data = pair.data[:L], pair.data[L:]
    return pair


def applicable(x: Tensor) -> bool:
    """Whether torch computes eagerly without a transformation, so `packed_linear` may be used."""
    return (
        type(x) in _PLAIN
        and x.layout == torch.strided
        and not private_names.transformed()
        and not private_names.is_dead_tensor_wrapper(x)
    )


def packed_linear(x: Tensor, S1s: Tensor, S2s: Tensor, bias: Tensor | None, packed: Packed) -> Tensor:
    """Apply a sketched linear layer: y = (x @ A) @ B / (2 * L) + bias.

    Args:
        x: (..., d_in).
        S1s, S2s, bias: the trainable parameters, which receive the gradients.
        packed: the factors.

    Returns:
        y of shape (..., d_out).
    """
    A, B = packed.A, packed.B
    y: Tensor
    dtype, device = None, x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        # like autocast for the weights of nn.Linear, which leaves float64 alone
        dtype = torch.get_autocast_dtype(device)
    if device == "cuda" and A.device == x.device and (dtype is not None or x.dtype == A.dtype):
        # mismatching shapes fall through to torch's own error
        return cuda.linear(x, S1s, S2s, bias, A, B, A.dtype if dtype is None else dtype)
    rows = x if x.dim() == 2 else x.reshape(-1, A.shape[1])
    if torch.is_grad_enabled() and (
        rows.requires_grad or S1s.requires_grad or S2s.requires_grad or (bias is not None and bias.requires_grad)
    ):
        y = _apply(rows, S1s, S2s, bias, A, B, dtype)
    else:
        if dtype is not None:
            rows, A, B = rows.to(dtype), A.to(dtype), B.to(dtype)
            bias = bias.to(dtype) if bias is not None else None
        H = _hidden(rows, A)
        y = H.mul_(1 / len(A)) @ B if bias is None else torch.addmm(bias, H, B, alpha=1 / len(A))
    return y if x.dim() == 2 else y.view(*x.shape[:-1], B.shape[1])


def _hidden(rows: Tensor, A: Tensor) -> Tensor:
    """(N, d_in), (2L, d_in, k) → (N, 2Lk): rows @ [A side by side]."""
    N, (terms, _, k) = len(rows), A.shape
    if N == 1:
        return torch.bmm(rows.expand(terms, 1, -1), A).view(1, terms * k)
    H = torch.empty((N, terms * k), dtype=rows.dtype, device=rows.device)
    torch.bmm(rows.expand(terms, N, -1), A, out=H.view(N, terms, k).transpose(0, 1))
    return H


class _PackedLinear(torch.autograd.Function):
    """The forward product, and gradients only for trainable parameters and x."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        S1s: Tensor,
        S2s: Tensor,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        dtype: torch.dtype | None,
    ) -> Tensor:
        inputs = rows
        if dtype is not None:
            rows, A, B = rows.to(dtype), A.to(dtype), B.to(dtype)
            bias = bias.to(dtype) if bias is not None else None
        # scale the small matrix in the middle, so no gradient needs scaling
        H = _hidden(rows, A).mul_(1 / len(A))
        # S1s and S2s are needed for the gradient of x alone. They are saved for their version counters, and for
        # second derivatives; the first ones use A and B.
        x_needs_grad = ctx.needs_input_grad[0]
        saved_S = (S1s, S2s) if x_needs_grad else (None, None)
        H2 = H[:, H.shape[1] // 2 :] if ctx.needs_input_grad[2] else None
        ctx.save_for_backward(inputs, *saved_S, H2)
        ctx.A, ctx.B, ctx.dtype = A, B, dtype
        return H @ B if bias is None else torch.addmm(bias, H, B)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = gradients
        rows, S1s, S2s, H2 = ctx.saved_tensors
        A, B = ctx.A, ctx.B
        needs_x, needs_S1, needs_S2, needs_bias = ctx.needs_input_grad[:4]
        terms, _, k = A.shape
        half = terms // 2 * k
        rows = rows.to(A.dtype)
        if torch.is_grad_enabled():
            # double backward: the same computation on tensors with a graph
            H2 = torch.bmm(rows.expand(terms // 2, *rows.shape), A[terms // 2 :] / terms).transpose(0, 1).flatten(1)
            if needs_x:
                A = torch.cat([S1s.to(A.dtype), A[terms // 2 :]])
                B = torch.cat([B[:half], S2s.flatten(0, 1).to(B.dtype)])
        dx = dS1 = dS2 = dbias = None
        if needs_x or needs_S1:
            # (N, 2Lk); without the gradient of x only the learnable half is used
            dH = (grad @ (B if needs_x else B[:half]).t()).mul_(1 / terms)
            by_term = dH.view(len(dH), dH.shape[1] // k, k).transpose(0, 1)
            if needs_S1:
                dS1 = _outer(rows, by_term[: terms // 2])
            if needs_x:
                dx = _sum_of_products(by_term, A)
        if needs_S2:
            dS2 = (H2.t() @ grad).view(terms // 2, k, -1)
        if needs_bias:
            dbias = grad.sum(0)
        return dx, dS1, dS2, dbias, None, None, None


# as _PackedLinear.apply does, without its search for leftovers of transformations: `applicable` rules them out
_apply: Any = super(torch.autograd.Function, _PackedLinear).apply


def _sum_of_products(by_term: Tensor, A: Tensor) -> Tensor:
    """(2L, N, k), (2L, d_in, k) → (N, d_in): Σ_i by_term[i] @ A[i]ᵀ."""
    if by_term.shape[1] == 1 and A.numel() < SMALL:
        return torch.bmm(by_term, A.transpose(1, 2)).sum(0)
    total = by_term[0] @ A[0].t()
    for i in range(1, len(A)):
        total.addmm_(by_term[i], A[i].t())
    return total


def _outer(rows: Tensor, by_term: Tensor) -> Tensor:
    """(N, d_in), (L, N, k) → (L, d_in, k): rowsᵀ @ each term."""
    if len(rows) == 1:
        # BLAS is slow at products over an axis of one entry
        return rows.view(-1, 1) * by_term
    return torch.bmm(rows.t().expand(len(by_term), -1, -1), by_term)
