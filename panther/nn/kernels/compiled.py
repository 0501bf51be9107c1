"""Execution of a sketched layer on a CUDA device under torch.compile.

Where our kernels are faster, the layer is one custom operation forward and one backward, which the compiler calls
unchanged: such a layer is bound by host time, which grows with the number of launches. In other cases (sizes known only
at run time, CUDA graphs, transformations, subclasses of Tensor) it consists of plain operations, which the compiler
fuses.

See docs/decisions/0044-one-operation-under-compile.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from panther import __version__
from panther.nn.kernels import cuda, launch, packed, private_names, products

_TERMS = "Tensor S1s, Tensor U1s, Tensor U2s, Tensor S2s"
_LIBRARY: Any = torch.library.Library("panther", "FRAGMENT")  # type: ignore[no-untyped-call]
# x is (..., d_in). `_decided` chooses the implementation when the operation is traced further, from these arguments
# and from the keys of the compiler's disk cache; that of torch 2.11 confuses the types of autocast
_LIBRARY.define(
    f"sketched_linear(Tensor x, {_TERMS}, Tensor? bias, ScalarType dtype, str backend, str version) -> Tensor"
)
# y, and the split-K partial sums of H, (splits, N, 2Lk), for N rows; also the cast A and B, for a backward pass
_LIBRARY.define(
    f"sketched_linear_forward(Tensor x, {_TERMS}, Tensor? bias, ScalarType dtype, int splits, bool learning)"
    " -> Tensor[]"
)
# the requested gradients of x, S1s, S2s and the bias; factors: A and B after the cast, or four terms
_LIBRARY.define(
    "sketched_linear_backward(Tensor grad, Tensor x, Tensor H, Tensor[] factors, ScalarType dtype,"
    " ScalarType parameter_dtype, bool[4] needs) -> Tensor[]"
)


def by_torch_compile() -> bool:
    """Whether torch.compile is tracing, and not for an export, which must hold standard operations only."""
    return torch.compiler.is_dynamo_compiling() and not private_names.is_exporting()


def linear(
    x: Tensor, S1s: Tensor, U1s: Tensor, U2s: Tensor, S2s: Tensor, bias: Tensor | None, *, plain: bool
) -> Tensor:
    """Apply a sketched linear layer to x, (..., d_in), in code that torch.compile traces.

    Args:
        plain: whether all tensors are of class Tensor, not of a subclass.
    """
    dtype = computing_dtype(x, S1s)
    if dtype is None or not plain:
        return composed(x, S1s, U1s, U2s, S2s, bias)
    y: Tensor = torch.ops.panther.sketched_linear(
        x, S1s, U1s, U2s, S2s, bias, dtype, cuda.chosen_backend(), __version__
    )
    return y


def composed(x: Tensor, S1s: Tensor, U1s: Tensor, U2s: Tensor, S2s: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a sketched linear layer to x, (..., d_in), by plain operations, which the compiler fuses.

    Autograd computes the gradients of A and B whole, including the fixed halves.
    """
    d_in, d_out = S1s.shape[1], S2s.shape[2]
    scale = 1 / (2 * len(S1s))
    A = torch.cat([S1s.transpose(0, 1), U2s.transpose(0, 1)], 1).flatten(1)
    B = torch.cat([U1s, S2s]).flatten(0, 1)
    H = x.reshape(-1, d_in) @ A
    y = (H * scale) @ B if bias is None else torch.addmm(bias, H, B, alpha=scale)
    return y.reshape(*x.shape[:-1], d_out)


def _decided(
    x: Tensor,
    S1s: Tensor,
    U1s: Tensor,
    U2s: Tensor,
    S2s: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    backend: str,
    version: str,  # noqa: ARG001
) -> Tensor:
    learning = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, S1s, S2s, bias))
    splits = _splits(x, S1s, S2s, bias, dtype, backend, learning=learning)
    y: Tensor
    if not splits:
        if not learning or private_names.functorch_transforms_active():
            return composed(x, S1s, U1s, U2s, S2s, bias)
        y = _ByProducts.apply(x, S1s, U1s, U2s, S2s, bias, dtype)  # type: ignore[no-untyped-call]
        return y
    y = _ByKernels.apply(x, S1s, U1s, U2s, S2s, bias, dtype, splits, learning)  # type: ignore[no-untyped-call]
    return y


def computing_dtype(x: Tensor, S1s: Tensor) -> torch.dtype | None:
    """The computing type; None if the types do not match, so that torch raises its own error."""
    if torch.is_autocast_enabled("cuda") and x.dtype != torch.float64:
        # like autocast for the weights of nn.Linear, which leaves float64 alone
        return torch.get_autocast_dtype("cuda")
    return x.dtype if x.dtype == S1s.dtype else None


def _splits(
    x: Tensor,
    S1s: Tensor,
    S2s: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    backend: str,
    *,
    learning: bool,
) -> int:
    """The split-K factor of H if our kernels are used, else 0."""
    L, d_in, k = S1s.shape
    if (
        # a symbol, whose value may differ at each call
        not all(type(size) is int for size in x.shape)
        or private_names.functorch_transforms_active()
        # torch.compile will capture CUDA graphs, in which launches cost nothing
        or private_names.compiles_cuda_graphs()
    ):
        return 0
    bias_dtype = None if bias is None else bias.dtype
    plan = cuda.planned(
        x,
        math.prod(x.shape[:-1]),
        (2 * L, d_in, k),
        S2s.shape[2],
        S1s.dtype,
        bias_dtype,
        dtype,
        backend,
        learning=learning,
    )
    return 0 if plan is None else plan.H.length


def forward_split_k(
    x: Tensor,
    S1s: Tensor,
    U1s: Tensor,
    U2s: Tensor,
    S2s: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    splits: int,
    learning: bool,
) -> list[Tensor]:
    """The output and the partial sums of H, (splits, N, 2Lk): by our kernels if they can run, else by products.

    If A and B had to be cast and a backward pass follows, the cast ones are returned too. Leading axes are flattened
    here and not in the graph, where the compiler's handling of views takes more host time.
    """
    terms = (S1s, U1s, U2s, S2s)
    rows = products.as_rows(x)
    found = _kernels_for(rows, terms, bias, dtype, S1s.dtype, learning=learning)
    if found is not None and found[0].H.length == splits:
        plan, A, B = found
        y, H_parts = cuda._run(plan, rows, A, B, bias)
    else:
        A, B = _whole(terms)
        y, H, _ = products.forward(rows, bias, A, B, dtype)
        H_parts = H.new_zeros((splits, *H.shape), dtype=torch.float32 if splits > 1 else dtype)
        H_parts[0] = H
    if x.dim() != 2:
        y = y.view(*x.shape[:-1], y.shape[1])
    if learning and launch.casts(len(rows), S1s.dtype, dtype):
        return [y, H_parts, A.to(dtype), B.to(dtype)]
    return [y, H_parts]


def backward_split_k(
    grad: Tensor,
    x: Tensor,
    H: Tensor,
    factors: list[Tensor],
    dtype: torch.dtype,
    parameter_dtype: torch.dtype,
    needs: list[bool],
) -> list[Tensor]:
    """Gradients of `cuda.backward` for the inputs and outputs of `forward_split_k`."""
    asked = needs[0], needs[1], needs[2], needs[3]
    rows, grad = products.as_rows(x), products.as_rows(grad)
    found = _kernels_for(rows, factors, None, dtype, parameter_dtype, learning=True)
    if found is not None and found[0].H.length == H.shape[0]:
        plan, A, B = found
        rows = rows.contiguous() if plan.copies_x else rows
        dx, *others = plan.backward(asked)(cuda._aligned(grad), rows, H, A, B)
    else:
        A, B = _whole(factors)
        kept = products.Kept(*products.factors(A, B, None, dtype)[:2], parameter_dtype)
        dx, *others = products.backward(grad, rows, H.sum(0).to(dtype), kept, len(A) // 2, asked)
    if dx is not None and x.dim() != 2:
        dx = dx.view(x.shape)
    return [gradient for gradient in (dx, *others) if gradient is not None]


def _kernels_for(
    x: Tensor,
    factors: Sequence[Tensor],
    bias: Tensor | None,
    dtype: torch.dtype,
    parameter_dtype: torch.dtype,
    *,
    learning: bool,
) -> tuple[launch.LaunchPlan, Tensor, Tensor] | None:
    """The launches of our kernels, and the tensors from which they read A and B; None for products."""
    precision = cuda._precision(x, dtype)
    if precision is None:
        return None
    A, B = factors[:2]
    are_terms = len(factors) == 4
    count, d_in, k = A.shape
    plan = cuda._prepared(
        "kernels", learning, cuda._NOT_CAPTURED, x.shape[0], x.dtype, x.stride(),
        (2 * count if are_terms else count, d_in, k), B.shape[-1], parameter_dtype,
        None if bias is None else bias.dtype, dtype, precision, x.device.index,
    )  # fmt: skip
    if plan is None:
        return None
    if are_terms and (plan.casts or not (_follows(A, factors[2]) and _follows(B, factors[3]))):
        # otherwise one kernel computes both halves
        A, B = _whole(factors)
        if plan.casts:
            A, B = A.to(dtype), B.to(dtype)
    return (plan, A, B) if cuda._are_aligned(plan, x, A, B, bias) else None


def _follows(first: Tensor, second: Tensor) -> bool:
    """Whether the second tensor begins in memory where the first ends."""
    return second.data_ptr() == first.data_ptr() + first.nbytes and first.is_contiguous() and second.is_contiguous()


def _whole(factors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """A (2L, d_in, k) and B (2Lk, d_out), given as such or as the four terms."""
    if len(factors) == 2:
        return factors[0], factors[1]
    return packed.joined(*factors)


def _forward_fake(x: Tensor, S1s: Tensor, *others: Any) -> list[Tensor]:
    """Fake outputs of `forward_split_k`."""
    _, _, S2s, _, dtype, splits, learning = others
    (L, d_in, k), d_out, rows = S1s.shape, S2s.shape[2], math.prod(x.shape[:-1])
    H_dtype = torch.float32 if splits > 1 else dtype
    found = [
        x.new_empty((*x.shape[:-1], d_out), dtype=dtype), x.new_empty((splits, rows, 2 * L * k), dtype=H_dtype)
    ]  # fmt: skip
    if learning and launch.casts(rows, S1s.dtype, dtype):
        found += [x.new_empty((2 * L, d_in, k), dtype=dtype), x.new_empty((2 * L * k, d_out), dtype=dtype)]
    return found


def _backward_fake(_: Tensor, x: Tensor, H: Tensor, *others: Any) -> list[Tensor]:
    """Fake outputs of `backward_split_k`."""
    (A, B, *_), _, dtype, needs = others
    (_, d_in, k), d_out = A.shape, B.shape[-1]
    L = H.shape[2] // (2 * k)
    sizes = (L, d_in, k), (L, k, d_out), (d_out,)
    found = (x.new_empty(x.shape), *(x.new_empty(size, dtype=dtype) for size in sizes))
    return [gradient for gradient, need in zip(found, needs, strict=True) if need]


class _ByKernels(torch.autograd.Function):
    """Both operations as one differentiable function.

    The backward operation is not registered as the derivative of the forward one: torch would call the registered code
    at each run, even without gradients.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        y: Tensor
        y, H, *cast = torch.ops.panther.sketched_linear_forward(*arguments)
        x, *terms, _, ctx.dtype, _, _ = arguments
        ctx.parameter_dtype = terms[0].dtype
        ctx.save_for_backward(x, H, *(cast or terms))
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = gradients
        needs_x, needs_S1, _, _, needs_S2, needs_bias, *_ = ctx.needs_input_grad
        needs = (needs_x, needs_S1, needs_S2, needs_bias)
        x, H, *factors = ctx.saved_tensors
        found = iter(
            torch.ops.panther.sketched_linear_backward(grad, x, H, factors, ctx.dtype, ctx.parameter_dtype, needs)
        )
        dx, dS1, dS2, dbias = (next(found) if need else None for need in needs)
        return dx, dS1, None, None, dS2, dbias, None, None, None


class _ByProducts(torch.autograd.Function):
    """Plain operations that the compiler fuses, with gradients only for trainable parameters and x.

    The scale is in the fixed halves, as in `products.factors`.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        x, S1s, U1s, U2s, S2s, bias, dtype = arguments
        scale = 1 / (2 * len(S1s))
        A = torch.cat([S1s.transpose(0, 1), U2s.transpose(0, 1) * scale], 1).flatten(1).to(dtype)
        B = torch.cat([U1s * scale, S2s]).flatten(0, 1).to(dtype)
        rows = products.as_rows(x).to(dtype)
        H = rows @ A
        y = H @ B if bias is None else torch.addmm(bias.to(dtype), H, B)
        ctx.parameter_dtype, ctx.L, ctx.x = S1s.dtype, len(S1s), (x.shape, x.dtype)
        ctx.save_for_backward(rows, H, A, B)
        return y.reshape(*x.shape[:-1], y.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = gradients
        rows, H, A, B = ctx.saved_tensors
        needs_x, needs_S1, _, _, needs_S2, needs_bias, _ = ctx.needs_input_grad
        needs, kept = (needs_x, needs_S1, needs_S2, needs_bias), products.Kept(A, B, ctx.parameter_dtype)
        dx, dS1, dS2, dbias = products.backward(products.as_rows(grad), rows, H, kept, ctx.L, needs)
        shape, dtype = ctx.x
        dx = None if dx is None else dx.reshape(shape).to(dtype)
        return dx, dS1, None, None, dS2, dbias, None


for _key in ("CompositeImplicitAutograd", "FuncTorchBatchedDecomposition"):
    _LIBRARY.impl("sketched_linear", _decided, _key)
for _name, _function, _fake in (
    ("sketched_linear_forward", forward_split_k, _forward_fake),
    ("sketched_linear_backward", backward_split_k, _backward_fake),
):
    _LIBRARY.impl(_name, _function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"panther::{_name}", _fake, lib=_LIBRARY)
