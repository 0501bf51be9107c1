"""Execution of a sketched layer on a CUDA device.

Both implementations compute y = (x @ A) @ B / (2L) + bias, and gradients only for trainable parameters; tests hold
them to the same oracle. One uses library matrix products. The other uses our kernels (`panther.nn.kernels.launch`),
which take fewer launches, and less time for memory-bound layers. `panther.nn.kernels.tiles` chooses between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from panther.nn import functional
from panther.nn.kernels import devices, launch, private_names, products, tiles
from panther.nn.kernels.products import Kept, as_rows

BACKENDS = ("auto", "kernels", "products")
# Kinds of inputs (layer shape, rows, types) that get compiled kernels when they are first met, and the calls before
# which further ones do not. Compiling the kernels of a kind takes seconds, and saves some 50 microseconds a call: it
# never pays in a model whose many ranks meet batches of many lengths.
FIRST_KINDS = 64
CALLS_BEFORE_COMPILING = 4096
_HALF = (torch.float16, torch.bfloat16)
_backend = "auto"
_NOT_CAPTURED = False
_kinds_used = 0
_current_device = private_names.current_device
_fp32_precision = private_names.fp32_precision


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Choose the implementation of sketched layers on CUDA devices, for all threads.

    Args:
        name: ``"auto"``, the default: our kernels where they were measured to be faster, on devices like the measured
            one; ``"kernels"``: wherever they can run; ``"products"``: nowhere.

    Raises:
        ValueError: name is unknown.
        RuntimeError: kernels are requested without triton.
    """
    global _backend  # noqa: PLW0603
    if name not in BACKENDS:
        raise ValueError(f"name ({name!r}) must be one of {', '.join(map(repr, BACKENDS))}")
    if name == "kernels" and devices.triton_kernels() is None:
        raise RuntimeError("the backend 'kernels' needs the package triton, which does not import")
    before, _backend = _backend, name
    try:
        yield
    finally:
        _backend = before


def chosen_backend() -> str:
    """The name that `backend` has set."""
    return _backend


def linear(
    x: Tensor, S1s: Tensor, S2s: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, dtype: torch.dtype
) -> Tensor:
    """Apply a sketched linear layer to x, (..., d_in), computing in dtype; A and B as in `kernels.packed.Packed`."""
    learning = torch.is_grad_enabled() and (
        x.requires_grad or S1s.requires_grad or S2s.requires_grad or (bias is not None and bias.requires_grad)
    )
    if learning:
        if casts_first(x, A, B, bias, dtype):
            x = x.to(dtype)
        return _apply(x, S1s, S2s, bias, (A, B, dtype))  # type: ignore[no-any-return]
    y = forward(as_rows(x), bias, A, B, dtype, learning=False)[0]
    return y if x.dim() == 2 else y.view(*x.shape[:-1], y.shape[1])


def _precision(x: Tensor, dtype: torch.dtype) -> str | None:
    """Precision of our kernels in dtype on the device of x, as in `tiles.kernels_win`; None if unsupported."""
    if not x.is_cuda:
        return None
    if dtype in _HALF:
        return "half"
    if dtype == torch.float32:
        return "tf32" if _fp32_precision("cuda", "matmul") == "tf32" else "ieee"
    return None


@lru_cache(maxsize=4096)
def _prepared(backend: str, learning: bool, captured: bool, *kind: Any) -> launch.LaunchPlan | None:
    """The cached launch plan for inputs of a kind; None if our kernels are not used, or are unsupported.

    Args:
        backend: name of the backend.
        learning: whether a backward pass follows.
        captured: whether a CUDA graph is being captured.
        kind: the arguments of `launch.LaunchPlan` up to the device, which are all that a compiled kernel is made for.
    """
    rows, x_dtype, _, (terms, d_in, k), d_out, parameter_dtype, _, _, precision, device = kind
    if backend == "products" or not rows or x_dtype not in launch.DTYPES or parameter_dtype not in launch.DTYPES:
        return None
    if backend == "auto" and not tiles.kernels_win(
        rows, d_in, d_out, terms * k, precision, learning=learning, captured=captured
    ):
        return None
    limits = devices.device(device)
    if devices.triton_kernels() is None or limits is None:
        return None
    if backend == "auto" and not limits.is_measured:
        return None
    return launch.LaunchPlan(learning, *(*kind, limits))


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
    """The launch plan of our kernels for aligned and contiguous tensors like these; None for products.

    Args:
        x: the input; only its type and device are used.
        rows: number of rows N.
        A_shape, d_out, parameter_dtype, bias_dtype, dtype: as for `launch.LaunchPlan`.
        backend: as for `backend`.
        learning: whether a backward pass follows.
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
    """The launch plan for x, (N, d_in), A, (2L, d_in, k), and B, (2Lk, d_out); None for products."""
    precision = _precision(x, dtype)
    if precision is None:
        return None
    captured = torch.cuda.is_current_stream_capturing()
    plan = _prepared(
        backend, learning, captured,
        x.shape[0], x.dtype, x.stride(), A.shape, B.shape[1], A.dtype, None if bias is None else bias.dtype,
        dtype, precision, x.device.index,
    )  # fmt: skip
    # a captured call is replayed often: compiling pays
    if plan is None or (plan.is_new and backend == "auto" and not captured and _is_rare(plan)):
        return None
    return plan if _are_aligned(plan, x, A, B, bias) else None


def _is_rare(plan: launch.LaunchPlan) -> bool:
    """Whether the kind of a new plan was met too rarely to compile kernels for it; counts this call."""
    plan.calls += 1
    return _kinds_used >= FIRST_KINDS and plan.calls <= CALLS_BEFORE_COMPILING


def casts_first(x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None, dtype: torch.dtype) -> bool:
    """Whether x is cast before the autograd function, whose backward pass then keeps it only in the products' type."""
    return x.dtype != dtype and _plan_for(as_rows(x), A, B, bias, dtype, _backend, learning=True) is None


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


def forward(
    x: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, dtype: torch.dtype, *, learning: bool = True
) -> tuple[Tensor, Tensor, Kept]:
    """The output, H = x @ A / (2L) in the form that `backward` takes, and its further tensors.

    With library products, the scale is in the fixed halves of the factors (`products.factors`): only the half of H that
    `backward` reads is divided by 2L.
    """
    plan = _plan_for(x, A, B, bias, dtype, _backend, learning=learning)
    if plan is None:
        return products.forward(x, bias, A, B, dtype, learning=learning)
    kept = kept_for_backward(plan, A, B, dtype)
    if plan.is_new:
        _begin(plan)
        if _graphs_take_products(plan):
            products.forward(x, bias, kept.A, kept.B, dtype, learning=learning)
    y, H = _run(plan, x, kept.A, kept.B, bias)
    return y, H, kept


def kept_for_backward(plan: launch.LaunchPlan | None, A: Tensor, B: Tensor, dtype: torch.dtype) -> Kept:
    """The tensors besides H that `forward` returns for `backward`, with the plan of its kernels; None for products."""
    if plan is None:
        A_side, B_side, _ = products.factors(A, B, None, dtype)
        return Kept(A_side, B_side, A.dtype)
    if plan.casts:
        A, B = A.to(dtype), B.to(dtype)
    return Kept(A, B, plan.parameter_dtype, plan)


def _begin(plan: launch.LaunchPlan) -> None:
    """Count a kind that is used for the first time."""
    global _kinds_used  # noqa: PLW0603
    plan.is_new = False
    _kinds_used += 1


def _run(plan: launch.LaunchPlan, x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    if plan.copies_x:
        x = x.contiguous()
    if plan.device == _current_device():
        return plan.forward(x, A, B, bias)
    with torch.cuda.device(plan.device):
        return plan.forward(x, A, B, bias)


def backward(
    grad: Tensor, x: Tensor, H: Tensor, kept: Kept, L: int, needs: tuple[bool, bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, S1s, S2s and the bias; None for those that are not needed.

    The device must be the current one; the autograd engine makes it current.
    """
    plan = kept.plan
    if plan is None:
        return products.backward(grad, x, H, kept, L, needs)
    grad = _aligned(grad)
    if plan.copies_x:
        x = x.contiguous()
    gradients = plan.backward(needs)
    if gradients.is_new:
        gradients.is_new = False
        if _graphs_take_products(plan):
            _, H_again, again = products.forward(x, None, kept.A, kept.B, grad.dtype)
            products.backward(grad, x, H_again, again, L, needs)
    return gradients(grad, x, H, kept.A, kept.B)


def _graphs_take_products(plan: launch.LaunchPlan) -> bool:
    """Whether a later CUDA graph would contain products, so the library must be warmed up before its capture."""
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return False
    return not tiles.captured_by_kernels(plan.rows, plan.columns, plan.precision)


class _CudaLinear(torch.autograd.Function):
    """The output, and gradients only for trainable parameters and x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        S1s: Tensor,
        S2s: Tensor,
        bias: Tensor | None,
        factors: tuple[Tensor, Tensor, torch.dtype],
    ) -> Tensor:
        A, B, dtype = factors
        y, H, kept = forward(as_rows(x), bias, A, B, dtype)
        # S1s and S2s are needed for the gradient of x alone; they are saved for their version counters, and for second
        # derivatives
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(x, S1s, S2s, H)
        else:
            ctx.save_for_backward(x, None, None, H)
        ctx.kept, ctx.factors = kept, (A, B)
        # reshaping here adds no autograd nodes
        return y if x.dim() == 2 else y.view(*x.shape[:-1], y.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = gradients
        x, S1s, S2s, H = ctx.saved_tensors
        needs, (A, B) = ctx.needs_input_grad[:4], ctx.factors
        if torch.is_grad_enabled():
            # double backward: recompute by plain operations on tensors with a graph
            found = differentiable_gradients(grad, x, S1s, S2s, A, B, needs)
        else:
            found = backward(as_rows(grad), as_rows(x), H, ctx.kept, A.shape[0] // 2, needs)
            if x.dim() != 2 and found[0] is not None:
                found = (found[0].view(x.shape), *found[1:])
        return (*found, None)


# as _CudaLinear.apply does, without its search for leftovers of transformations: `packed.applicable` rules them out
_apply: Any = super(torch.autograd.Function, _CudaLinear).apply


def differentiable_gradients(
    grad: Tensor,
    x: Tensor,
    S1s: Tensor | None,
    S2s: Tensor | None,
    A: Tensor,
    B: Tensor,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, ...]:
    """The gradients of `backward` as a differentiable function."""
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
    return (*gradients, as_rows(grad).sum(0).to(A.dtype) if needs[3] else None)
