"""Private names of torch and triton that the kernels use, each with the fallback if a release lacks it.

No other module of `panther.nn` reads a private name. A missing name costs speed, never the result.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def _empty_strided(size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(size, stride, dtype=dtype, device="cuda")


def _current_raw_stream(device: int) -> int:
    return int(torch.cuda.current_stream(device).cuda_stream)


def _fp32_precision(*_: str) -> str:
    return str(torch.backends.cuda.matmul.fp32_precision)


def _always(*_: object) -> bool:
    return True


_dynamo_guards: Any = getattr(getattr(torch._C, "_dynamo", None), "guards", None)

# (size, stride, dtype) → Tensor on the current device; called by compiler-generated code
empty_strided_cuda: Any = getattr(_dynamo_guards, "_empty_strided_cuda", _empty_strided)
# device index → handle of its current stream
current_raw_stream: Any = getattr(torch._C, "_cuda_getCurrentRawStream", _current_raw_stream)
# the public function without its check that CUDA is initialized
current_device: Any = getattr(torch._C, "_cuda_getDevice", torch.cuda.current_device)
# ("cuda", "matmul") → "tf32" or "ieee"; called by the public property
fp32_precision: Any = getattr(torch._C, "_get_fp32_precision_getter", _fp32_precision)
# whether vmap, grad, jvp or another torch.func transformation is active; unknown counts as active
functorch_transforms_active: Any = getattr(torch._C, "_are_functorch_transforms_active", _always)
# whether a tensor is left over from such a transformation and has no memory; unknown counts as such
is_dead_tensor_wrapper: Any = getattr(getattr(torch._C, "_functorch", None), "is_dead_tensor_wrapper", _always)


def transformed() -> bool:
    """Whether torch compiles, traces or transforms the computation rather than running it."""
    return bool(
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or functorch_transforms_active()
        or getattr(forward_ad, "_current_level", 0) >= 0
    )


def is_exporting() -> bool:
    """Whether torch.export traces; the public torch.compiler.is_exporting is always true under dynamo in torch 2.11."""
    return bool(getattr(torch.compiler, "_is_exporting_flag", False))


def compiles_cuda_graphs() -> bool:
    """Whether torch.compile captures its code in CUDA graphs, where launches cost nothing."""
    triton: Any = getattr(import_module("torch._inductor.config"), "triton", None)
    return bool(getattr(triton, "cudagraphs", False))


def compile_callees_only(function: Any) -> Any:
    """Decorate a function so that torch.compile compiles only its callees.

    Inlined into a larger function it is compiled as any other.
    """
    frames: Any = getattr(getattr(torch._C, "_dynamo", None), "eval_frame", None)
    action, strategy = getattr(frames, "_FrameAction", None), getattr(frames, "_FrameExecStrategy", None)
    setter = getattr(frames, "set_code_exec_strategy", None)
    if action is not None and strategy is not None and setter is not None:
        setter(function.__code__, strategy(action.SKIP, action.DEFAULT))
    return function


def launcher(compiled: Any) -> tuple[Callable[..., object], tuple[Any, ...]]:
    """The launch function of a kernel compiled by triton, and its arguments between the stream and the kernel's.

    ``compiled.run`` is Python around a C function that takes the same arguments and some more, and costs a few
    microseconds a launch. A twin that records its call shows those arguments. Where ``run`` has another form, it is
    used itself.
    """
    run: Any = compiled.run
    # no hooks for profilers
    between = (compiled.function, compiled.packed_metadata, None, None, None)
    needs_memory = any(getattr(run, name, 0) for name in ("global_scratch_size", "profile_scratch_size"))
    if hasattr(run, "launch") and not needs_memory:
        stream, argument = object(), object()
        taken: list[Any] = []
        twin = copy.copy(run)
        twin.launch = lambda *arguments: taken.extend(arguments)
        twin(1, 1, 1, stream, *between, argument)
        if taken[:4] == [1, 1, 1, stream] and taken[-1] is argument:
            return run.launch, tuple(taken[4:-1])
    return run, between
