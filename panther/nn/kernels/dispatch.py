"""`sketched_linear`: the choice between the fast paths of a sketched layer and plain operations."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any, Protocol

from torch import Tensor

from panther.nn import functional
from panther.nn.kernels import apart, compiled, packed

Kernel = Callable[[Tensor, Any], Tensor]


class SketchedLayer(Protocol):
    """A layer that holds sketched terms; see ``panther.nn.kernels.storage.PackedStorage``."""

    _packed: packed.Packed | None
    _parameters: dict[str, Tensor | None]
    _buffers: dict[str, Tensor | None]
    S1s: Tensor
    S2s: Tensor
    U1s: Tensor
    U2s: Tensor
    bias: Tensor | None


def sketched_linear(x: Tensor, layer: SketchedLayer) -> Tensor:
    """Apply a sketched layer by the fastest applicable way: packed or copied factors, compiled, or plain operations.

    Args:
        x: (..., d_in).
        layer: holds the terms.

    Returns:
        y of shape (..., d_out).
    """
    # a torch.fx proxy is no Tensor
    is_tensor, factors = isinstance(x, Tensor), layer._packed
    if is_tensor and factors is not None and packed.applicable(x):
        # read from the dicts: attribute access of nn.Module is measurable at batch 1
        parameters, buffers = layer._parameters, layer._buffers
        S1s, S2s = parameters.get("S1s"), parameters.get("S2s")
        if factors.holds(S1s, buffers.get("U1s"), buffers.get("U2s"), S2s):
            bias = parameters["bias"] if "bias" in parameters else layer.bias  # noqa: SIM401  layer.bias is slow
            return packed.packed_linear(x, S1s, S2s, bias, factors)  # type: ignore[arg-type]
    # once each: a parametrization computes them at each access
    S1s, U1s, U2s, S2s, bias = layer.S1s, layer.U1s, layer.U2s, layer.S2s, layer.bias
    if is_tensor and U1s.dtype != S1s.dtype:
        # FSDP's mixed precision casts parameters but not buffers
        U1s, U2s = U1s.to(S1s.dtype), U2s.to(S1s.dtype)
    if is_tensor and x.is_cuda:
        if compiled.by_torch_compile():
            # only plain tensors are packed
            plain = factors is not None and type(x) is Tensor
            return compiled.linear(x, S1s, U1s, U2s, S2s, bias, plain=plain)
        dtype = compiled.computing_dtype(x, S1s)
        if dtype is not None and apart.applicable(x, S1s, U1s, U2s, S2s):
            return apart.linear(x, S1s, U1s, U2s, S2s, bias, dtype)
    return functional.sketched_linear(x, S1s, U1s, U2s, S2s, bias)


@cache
def kernel_of(in_features: int, out_features: int, num_terms: int, low_rank: int) -> Kernel:
    """`sketched_linear` as a function with a code object for layers of one size.

    torch.compile keeps what it compiled by code object, eight variants at most, and compiles a layer alone where a hook
    surrounds it, as FSDP's do: with one code object for all layers, every size after the eighth would run uncompiled.
    """
    name = f"sketched_linear_{in_features}x{out_features}_L{num_terms}_k{low_rank}"
    code = sketched_linear.__code__.replace(co_name=name)
    return FunctionType(code, sketched_linear.__globals__, name)
