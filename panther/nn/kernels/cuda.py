"""How a sketched layer computes on a CUDA device.

Always y = (x @ A) @ B / (2L) + bias, with gradients for what learns and for nothing else; in one of two ways, held to
the same oracle: by the library's products, or by our kernels (`panther.nn.kernels.launch`), which take fewer launches
and, for layers that are bound by memory, less time. `panther.nn.kernels.tiles` says when they are used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from panther.nn import functional
from panther.nn.kernels import launch, private_names, tiles

BACKENDS = ("auto", "kernels", "products")
_HALF = (torch.float16, torch.bfloat16)
_backend = "auto"
_NOT_CAPTURED = False
_current_device = private_names.current_device
_fp32_precision = private_names.fp32_precision


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Choose how sketched layers compute on CUDA devices, in every thread.

    Args:
        name: ``"auto"``, the default: our kernels where they were measured to be faster; ``"kernels"``: wherever they
            can; ``"products"``: nowhere.

    Raises:
        ValueError: name is none of these.
        RuntimeError: kernels are asked for where triton is not.
    """
    global _backend  # noqa: PLW0603
    if name not in BACKENDS:
        raise ValueError(f"name ({name!r}) must be one of {', '.join(map(repr, BACKENDS))}")
    if name == "kernels" and launch.triton_kernels() is None:
        raise RuntimeError("the backend 'kernels' needs the package triton, which does not import")
    before, _backend = _backend, name
    try:
        yield
    finally:
        _backend = before


def chosen_backend() -> str:
    """The one that `backend` chose."""
    return _backend


def linear(
    x: Tensor, S1s: Tensor, S2s: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, dtype: torch.dtype
) -> Tensor:
    """Apply a sketched linear layer to x, (N, d_in), computing in dtype; A and B as in `kernels.packed.Packed`."""
    if torch.is_grad_enabled() and (
        x.requires_grad or S1s.requires_grad or S2s.requires_grad or (bias is not None and bias.requires_grad)
    ):
        return _apply(x, S1s, S2s, bias, (A, B, dtype))  # type: ignore[no-any-return]
    return forward(x, bias, A, B, dtype, learning=False)[0]


def _precision(x: Tensor, dtype: torch.dtype) -> str | None:
    """How our kernels compute in dtype on the device of x, in the terms of `tiles.kernels_win`; None: not at all."""
    if not x.is_cuda:
        return None
    if dtype in _HALF:
        return "half"
    if dtype == torch.float32:
        return "tf32" if _fp32_precision("cuda", "matmul") == "tf32" else "ieee"
    return None


@lru_cache(maxsize=4096)
def _prepared(backend: str, learning: bool, captured: bool, *kind: Any) -> launch.LaunchPlan | None:
    """The launches for inputs of a kind, made at its first call; None where they are not, or can't be, used.

    Args:
        backend: the one chosen.
        learning: whether there is a way back.
        captured: whether a CUDA graph is being captured.
        kind: the arguments of `launch.LaunchPlan`: everything that a compiled kernel takes for granted.
    """
    rows, x_dtype, _, (terms, d_in, k), d_out, parameter_dtype, _, _, precision, device = kind
    if backend == "products" or not rows or x_dtype not in launch.DTYPES or parameter_dtype not in launch.DTYPES:
        return None
    if backend == "auto" and not tiles.kernels_win(
        rows, d_in, d_out, terms * k, precision, learning=learning, captured=captured
    ):
        return None
    if launch.triton_kernels() is None or not launch.processors(device):
        return None
    return launch.LaunchPlan(learning, *kind)


def planned(
    x: Tensor,
    rows: int,
    A_shape: tuple[int, int, int],
    d_out: int,
    parameter_dtype: torch.dtype,
    bias_dtype: torch.dtype | None,
    dtype: torch.dtype,
    backend: str,
    *,
    learning: bool,
) -> launch.LaunchPlan | None:
    """The launches of our kernels for aligned and contiguous tensors like these; None for products.

    Args:
        x: only its type and device are used.
        rows: N.
        A_shape, d_out, parameter_dtype, bias_dtype, dtype: as for `launch.LaunchPlan`.
        backend: as for `backend`.
        learning: whether there is a way back.
    """
    precision = _precision(x, dtype)
    if precision is None:
        return None
    return _prepared(
        backend, learning, _NOT_CAPTURED, rows, x.dtype, (A_shape[1], 1), A_shape, d_out, parameter_dtype, bias_dtype,
        dtype, precision, x.device.index,
    )  # fmt: skip


def _plan_for(
    x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None, dtype: torch.dtype, backend: str, *, learning: bool
) -> launch.LaunchPlan | None:
    """The launches of our kernels for x, (N, d_in), A, (2L, d_in, k), and B, (2Lk, d_out); None for products."""
    precision = _precision(x, dtype)
    if precision is None:
        return None
    plan = _prepared(
        backend, learning, torch.cuda.is_current_stream_capturing(),
        x.shape[0], x.dtype, x.stride(), A.shape, B.shape[1], A.dtype, None if bias is None else bias.dtype,
        dtype, precision, x.device.index,
    )  # fmt: skip
    if plan is None:
        return None
    return plan if _are_aligned(plan, x, A, B, bias) else None


def _are_aligned(plan: launch.LaunchPlan, x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None) -> bool:
    addresses = A.data_ptr() | B.data_ptr()
    if bias is not None:
        addresses |= bias.data_ptr()
    if not plan.copies_x:
        # a copy is aligned
        addresses |= x.data_ptr()
    return addresses % 16 == 0


def _aligned(grad: Tensor) -> Tensor:
    if grad.is_contiguous() and grad.data_ptr() % 16 == 0:
        return grad
    return grad.clone(memory_format=torch.contiguous_format)


class _Kept:
    """What the way back needs and is no input: the factors as they were taken, their type before, and our plan."""

    __slots__ = ("A", "B", "parameter_dtype", "plan")

    def __init__(
        self, A: Tensor, B: Tensor, parameter_dtype: torch.dtype, plan: launch.LaunchPlan | None = None
    ) -> None:
        self.A, self.B, self.parameter_dtype, self.plan = A, B, parameter_dtype, plan


def forward(
    x: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, dtype: torch.dtype, *, learning: bool = True
) -> tuple[Tensor, Tensor, _Kept]:
    """The output, H = x @ A / (2L) in the form that `backward` takes, and further tensors for it."""
    plan = _plan_for(x, A, B, bias, dtype, _backend, learning=learning)
    if plan is None:
        return _products_forward(x, bias, A, B, dtype)
    if plan.casts:
        A, B = A.to(dtype), B.to(dtype)
    if plan.is_new:
        plan.is_new = False
        if _graphs_take_products(plan):
            _products_forward(x, bias, A, B, dtype)
    y, H = _run(plan, x, A, B, bias)
    return y, H, _Kept(A, B, plan.parameter_dtype, plan)


def _run(plan: launch.LaunchPlan, x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    if plan.copies_x:
        x = x.contiguous()
    if plan.device == _current_device():
        return plan.forward(x, A, B, bias)
    with torch.cuda.device(plan.device):
        return plan.forward(x, A, B, bias)


def backward(
    grad: Tensor, x: Tensor, H: Tensor, kept: _Kept, L: int, needs: tuple[bool, bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, S1s, S2s and the bias; None for those that are not needed.

    The device is to be the current one, as the engine of autograd makes it.
    """
    plan = kept.plan
    if plan is None:
        return _products_backward(grad, x, H, kept, L, needs)
    grad = _aligned(grad)
    if plan.copies_x:
        x = x.contiguous()
    way_back = plan.backward(needs)
    if way_back.is_new:
        way_back.is_new = False
        if _graphs_take_products(plan):
            _, H_again, again = _products_forward(x, None, kept.A, kept.B, grad.dtype)
            _products_backward(grad, x, H_again, again, L, needs)
    return way_back(grad, x, H, kept.A, kept.B)


def _graphs_take_products(plan: launch.LaunchPlan) -> bool:
    """Whether a CUDA graph that is captured later would hold products, which the library has to be warm for by then."""
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return False
    return not tiles.captured_by_kernels(plan.rows, plan.columns, plan.precision)


def _products_forward(
    x: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, _Kept]:
    kept = _factors_of_products(A, B, dtype)
    H = x.to(dtype) @ kept.A
    y = H @ kept.B if bias is None else torch.addmm(bias.to(dtype), H, kept.B)
    return y, H, kept


def _factors_of_products(A: Tensor, B: Tensor, dtype: torch.dtype) -> _Kept:
    # concatenated, cast and scaled in one pass: H, dx and the gradient of S2s then need no scale
    terms, d_in, k = A.shape
    A_scaled = torch.empty((d_in, terms, k), dtype=dtype, device=A.device)
    A_scaled = torch.mul(A.transpose(0, 1), 1 / terms, out=A_scaled).view(d_in, terms * k)
    return _Kept(A_scaled, B.to(dtype), A.dtype)


def _products_backward(
    grad: Tensor, x: Tensor, H: Tensor, kept: _Kept, L: int, needs: tuple[bool, bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    A, B, dtype = kept.A, kept.B, kept.parameter_dtype
    needs_x, needs_S1, needs_S2, needs_bias = needs
    half = len(B) // 2
    dx = dS1 = dS2 = dbias = None
    if needs_x or needs_S1:
        dH = grad @ (B if needs_x else B[:half]).t()
        if needs_x:
            dx = (dH @ A.t()).to(x.dtype)
        if needs_S1:
            dA = _product(x.to(B.dtype).t(), dH[:, :half], dtype)
            by_term = dA.view(len(dA), L, half // L).transpose(0, 1)
            dS1 = torch.empty(by_term.shape, dtype=dtype, device=x.device)
            torch.mul(by_term, 1 / (2 * L), out=dS1)
    if needs_S2:
        dS2 = _product(H[:, half:].t(), grad, dtype).view(L, half // L, -1)
    if needs_bias:
        dbias = grad.sum(0, dtype=dtype)
    return dx, dS1, dS2, dbias


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """A @ b in dtype; of 16 bits into 32 without rounding in between."""
    if a.is_cuda and a.dtype in _HALF and dtype == torch.float32:
        return torch.mm(a, b, out_dtype=dtype)
    return torch.mm(a, b).to(dtype)


class _CudaLinear(torch.autograd.Function):
    """The output, and gradients for what learns and for nothing else."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        S1s: Tensor,
        S2s: Tensor,
        bias: Tensor | None,
        fixed: tuple[Tensor, Tensor, torch.dtype],
    ) -> Tensor:
        A, B, dtype = fixed
        y, H, kept = forward(x, bias, A, B, dtype)
        # S1s and S2s are needed for the gradient of x alone; they are saved for their version counters, and for second
        # derivatives
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(x, S1s, S2s, H)
        else:
            ctx.save_for_backward(x, None, None, H)
        ctx.kept, ctx.factors = kept, (A, B)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = gradients
        x, S1s, S2s, H = ctx.saved_tensors
        needs, (A, B) = ctx.needs_input_grad[:4], ctx.factors
        if torch.is_grad_enabled():
            # double backward: recompute by plain operations on tensors with a graph
            found = _differentiable(grad, x, S1s, S2s, A, B, needs)
        else:
            found = backward(grad, x, H, ctx.kept, len(A) // 2, needs)
        return (*found, None)


# as _CudaLinear.apply does, without its search for leftovers of transformations: `packed.applicable` rules them out
_apply: Any = super(torch.autograd.Function, _CudaLinear).apply


def _differentiable(
    grad: Tensor,
    x: Tensor,
    S1s: Tensor | None,
    S2s: Tensor | None,
    A: Tensor,
    B: Tensor,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, ...]:
    """What `backward` gives, as a function that has derivatives."""
    L, k = len(A) // 2, A.shape[2]
    B_terms = B.view(2 * L, k, -1)
    # without saved S no derivative depends on it
    S1s = A[:L].requires_grad_() if S1s is None else S1s
    S2s = B_terms[L:].requires_grad_() if S2s is None else S2s
    terms = (term.to(grad.dtype) for term in (S1s, B_terms[:L], A[L:], S2s))
    y = functional.sketched_linear(x.to(grad.dtype), *terms)
    wanted = [t for t, need in zip((x, S1s, S2s), needs[:3], strict=True) if need]
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True) if wanted else ())
    gradients = [next(found) if need else None for need in needs[:3]]
    return (*gradients, grad.sum(0).to(A.dtype) if needs[3] else None)
