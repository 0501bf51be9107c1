"""A sketched layer on a CUDA device with terms that are not adjacent in memory, such as those that FSDP gathers.

The factors are copies that each pass makes. They are not kept from the forward to the backward pass, between which FSDP
frees the gathered parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from panther.nn.kernels import cuda, packed, private_names
from panther.nn.kernels.products import as_rows


def applicable(x: Tensor, S1s: Tensor, U1s: Tensor, U2s: Tensor, S2s: Tensor) -> bool:
    """Whether `linear` takes these: without a transformation, all on one CUDA device, with U fixed."""
    return (
        x.is_cuda
        and packed.applicable(x)
        and all(term.device == x.device and _is_usable(term) for term in (S1s, U1s, U2s, S2s))
        and not (U1s.requires_grad or U2s.requires_grad)
        and S1s.numel() > 0
    )


def _is_usable(term: Tensor) -> bool:
    return packed.is_plain(term) and not private_names.is_dead_tensor_wrapper(term)


def linear(
    x: Tensor, S1s: Tensor, U1s: Tensor, U2s: Tensor, S2s: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Apply a sketched linear layer to x, (..., d_in), computing in dtype; the terms are as in `functional`."""
    with torch.no_grad():
        A, B = packed.joined(S1s, U1s, U2s, S2s)
    if not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, S1s, S2s, bias))):
        return cuda.linear(x, S1s, S2s, bias, A, B, dtype)
    if cuda.casts_first(x, A, B, bias, dtype):
        x = x.to(dtype)
    y: Tensor = _LinearOfCopies.apply(x, S1s, S2s, bias, (U1s, U2s), (A, B, dtype))  # type: ignore[no-untyped-call]
    return y


class _LinearOfCopies(torch.autograd.Function):
    """The output, and gradients only for trainable parameters and x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        S1s: Tensor,
        S2s: Tensor,
        bias: Tensor | None,
        fixed: tuple[Tensor, Tensor],
        factors: tuple[Tensor, Tensor, torch.dtype],
    ) -> Tensor:
        A, B, ctx.dtype = factors
        y, H, kept = cuda.forward(as_rows(x), bias, A, B, ctx.dtype)
        ctx.save_for_backward(x, S1s, *fixed, S2s, H)
        ctx.plan = kept.plan
        return y if x.dim() == 2 else y.view(*x.shape[:-1], y.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = gradients
        x, S1s, U1s, U2s, S2s, H = ctx.saved_tensors
        with torch.no_grad():
            A, B = packed.joined(S1s, U1s, U2s, S2s)
        needs = ctx.needs_input_grad[:4]
        if torch.is_grad_enabled():
            # double backward: recompute by plain operations on tensors with a graph
            found = cuda.differentiable_gradients(grad, x, S1s, S2s, A, B, needs)
        else:
            kept = cuda.kept_for_backward(ctx.plan, A, B, ctx.dtype)
            found = cuda.backward(as_rows(grad), as_rows(x), H, kept, len(S1s), needs)
            if x.dim() != 2 and found[0] is not None:
                found = (found[0].view(x.shape), *found[1:])
        return (*found, None, None)
