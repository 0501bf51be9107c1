"""The launches of our kernels for one layer and one number of rows, prepared once and repeated at little cost."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from panther.nn import tiles

DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}
# entries that a program adds up
SUM_BLOCK = 1024
Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]


def _empty_strided(size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(size, stride, dtype=dtype, device="cuda")


# private ones of torch, as the code of its compiler calls them: with no keyword to parse they take half the time, and a
# call of a layer is mostly such times. Memory comes from the current device.
_empty = getattr(torch._C._dynamo.guards, "_empty_strided_cuda", _empty_strided)
_current_stream: Any = getattr(torch._C, "_cuda_getCurrentRawStream", None)


@cache
def triton_kernels() -> Any:
    """The module of kernels; None where triton is not installed or does not import."""
    if importlib.util.find_spec("triton") is None:
        return None
    try:
        return importlib.import_module("panther.nn.triton_kernels")
    except ImportError:
        return None


@cache
def processors(device: int) -> int:
    """Multiprocessors of a device whose shared memory our tiles fit in; 0 for another one."""
    if torch.version.cuda is None:
        return 0
    properties = torch.cuda.get_device_properties(device)
    fits = properties.major >= 9 and getattr(properties, "shared_memory_per_block_optin", 0) >= 227 * 1024
    return int(properties.multi_processor_count) if fits else 0


def casts(rows: int, parameter_dtype: torch.dtype, dtype: torch.dtype) -> bool:
    """Whether A and B have to be cast to dtype first: tiles of them are read again for each block of rows."""
    return parameter_dtype != dtype and rows > tiles.FEW_BLOCKS_ROWS


class Launch:
    """A kernel with its grid, numbers and constants. The first call compiles it, the next ones go to the driver."""

    __slots__ = ("_between", "_constants", "_kernel", "_launch", "_numbers", "_programs", "_rest", "_warps")

    def __init__(
        self, kernel: Any, programs: int, numbers: tuple[float, ...], constants: dict[str, Any], num_warps: int
    ) -> None:
        self._kernel, self._programs, self._warps = kernel, programs, num_warps
        # in the order of the signature, as the driver takes them
        self._constants = {name: constants[name] for name in kernel.arg_names if name in constants}
        self._numbers = numbers
        self._rest = (*numbers, *self._constants.values())
        self._launch: Any = None
        self._between: tuple[Any, ...] = ()

    def __call__(self, stream: int, *tensors: Tensor) -> None:
        """Launch on the current stream, whose handle is given; types and alignment of the tensors must not change."""
        if self._launch is not None:
            # as addresses: the driver's side takes longer to ask for them
            addresses = [tensor.data_ptr() for tensor in tensors]
            self._launch(self._programs, 1, 1, stream, *self._between, *addresses, *self._rest)
            return
        grid = (self._programs, 1, 1)
        compiled = self._kernel[grid](*tensors, *self._numbers, **self._constants, num_warps=self._warps)
        self._launch, self._between = launcher(compiled)


def launcher(compiled: Any) -> tuple[Callable[..., object], tuple[Any, ...]]:
    """What launches a kernel that triton has compiled, and what that takes between the stream and the arguments.

    ``compiled.run`` is Python around a function of C, which takes the same and some more: a few microseconds a launch.
    So it is let call something that takes that down. Where it is not of that form it is taken itself.
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


class Steps:
    """Forward and backward of a layer for inputs of one shape, type and stride.

    Args:
        learning: whether there is a way back.
        rows: N.
        x_dtype, x_stride: of x, (N, d_in).
        A_shape: (2L, d_in, k).
        d_out: of B, (2Lk, d_out).
        parameter_dtype: of the parameters and their gradients.
        bias_dtype: None without one.
        dtype: that products are computed in.
        precision: ``"half"``, ``"tf32"`` or ``"ieee"``, how the units of the device take that type.
        device: its index.

    Attributes:
        copies_x: whether x has to be laid out anew first, since the entries of a row don't follow each other.
        casts: whether A and B have to be cast first.
    """

    def __init__(
        self,
        learning: bool,
        rows: int,
        x_dtype: torch.dtype,
        x_stride: tuple[int, ...],
        A_shape: tuple[int, ...],
        d_out: int,
        parameter_dtype: torch.dtype,
        bias_dtype: torch.dtype | None,
        dtype: torch.dtype,
        precision: str,
        device: int,
    ) -> None:
        self.kernels = triton_kernels()
        self.is_new, self.learning = True, learning
        self.dtype, self.parameter_dtype, self.x_dtype = dtype, parameter_dtype, x_dtype
        self.precision = precision
        self.device, self.processors = device, processors(device)
        terms, self.d_in, self.k = A_shape
        self.rows, self.d_out = rows, d_out
        self.L, self.columns = terms // 2, terms * self.k
        self.copies_x = x_stride[1] != 1
        self.x_stride = self.d_in if self.copies_x else x_stride[0]
        self.casts = casts(rows, parameter_dtype, dtype)
        self.scale = 1 / terms
        self.x_bytes, self.W_bytes = x_dtype.itemsize, (dtype if self.casts else parameter_dtype).itemsize
        # strides of a feature, a term and an entry of it
        self.A_strides = (self.k, self.d_in * self.k, 1)
        self.B_strides = (1, self.k * d_out, d_out)
        self.common = {
            "K": self.k,
            "DTYPE": getattr(self.kernels.tl, DTYPES[dtype]),
            "PRECISION": "tf32" if precision == "tf32" else "ieee",
        }
        shrink = tiles.shrink_tiles(
            rows,
            self.d_in,
            self.columns,
            self.x_bytes,
            self.W_bytes,
            self.processors,
            precision=precision,
            readers=d_out,
            learning=learning,
        )
        self.H = Shares(self, shrink, self.columns)
        expand = tiles.expand_tiles(
            rows, d_out, self.columns, self.H.entry_bytes, self.W_bytes, self.processors, precision=precision
        )
        self._y = _layout((rows, d_out), dtype)
        self._shrink = Launch(
            self.kernels.forward_shrink,
            shrink.programs,
            (rows, self.d_in, self.columns, self.x_stride, *self.A_strides, shrink.share, self.scale),
            self.common | _shrink_constants(shrink),
            shrink.warps,
        )
        self._expand = Launch(
            self.kernels.forward_expand,
            expand.programs,
            (rows, d_out, self.columns, *self.B_strides, expand.rows_each),
            self.common | {"SPLITS": self.H.splits, "HAS_BIAS": bias_dtype is not None} | _expand_constants(expand),
            expand.warps,
        )
        self._backward: dict[tuple[bool, ...], Backward] = {}

    def forward(self, x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """The output, (N, d_out), and H = x @ A / (2L) in shares, (length, N, 2Lk), for the way back."""
        stream = _current_stream(self.device)
        H = self.H.empty()
        self._shrink(stream, x, A, H)
        H = self.H.summed(stream, H)
        y = _empty(*self._y)
        self._expand(stream, H, B, y if bias is None else bias, y)
        return y, H

    def backward(self, needs: tuple[bool, bool, bool, bool]) -> Backward:
        """What gives the gradients that are asked for, of x, S1s, S2s and the bias."""
        backward = self._backward.get(needs)
        if backward is None:
            backward = self._backward[needs] = Backward(self, needs)
        return backward


class Shares:
    """The product of a shrinking kernel: in shares that whoever reads it adds up, or added up at once.

    Attributes:
        splits, dtype: of what is read.
        entry_bytes: what an entry takes to read.
        length: of the tensor that is read, (length, N, columns); it begins with the shares that are read.
    """

    def __init__(self, steps: Steps, shrink: tiles.ShrinkTiles, columns: int) -> None:
        size = steps.rows * columns
        self._shares = _layout(
            (shrink.splits, steps.rows, columns), torch.float32 if shrink.splits > 1 else steps.dtype
        )
        self.splits = 1 if shrink.summed else shrink.splits
        self.dtype = torch.float32 if self.splits > 1 else steps.dtype
        self.entry_bytes = self.dtype.itemsize * self.splits
        # where nobody keeps it, the sum takes the place of the first share
        in_place = shrink.summed and self.dtype == torch.float32 and not steps.learning
        self.length = shrink.splits if in_place else self.splits
        self._sum: Launch | None = None
        self._summed = None if in_place else _layout((1, steps.rows, columns), self.dtype)
        if shrink.summed:
            constants = {"SPLITS": shrink.splits, "BLOCK": SUM_BLOCK}
            self._sum = Launch(steps.kernels.sum_shares, -(-size // SUM_BLOCK), (size,), constants, 4)

    def empty(self) -> Tensor:
        """Memory for the shares."""
        return _empty(*self._shares)

    def summed(self, stream: int, shares: Tensor) -> Tensor:
        """What is read, of the shares."""
        if self._sum is None:
            return shares
        H = shares if self._summed is None else _empty(*self._summed)
        self._sum(stream, shares, H)
        return H


class Backward:
    """The gradients of some of x, S1s, S2s and the bias."""

    def __init__(self, steps: Steps, needs: tuple[bool, bool, bool, bool]) -> None:
        self.is_new = True
        self.device, self.needs = steps.device, needs
        needs_x, needs_S1, needs_S2, needs_bias = needs
        rows, half, itemsize = steps.rows, steps.columns // 2, steps.dtype.itemsize
        # without the gradient of x, only the learnable half of dH is used
        columns = steps.columns if needs_x else half
        shrink = tiles.shrink_tiles(
            rows, steps.d_out, columns, itemsize, steps.W_bytes, steps.processors,
            precision=steps.precision, readers=(needs_x + needs_S1) * steps.d_in,
        )  # fmt: skip
        shrinking = shrink.programs if needs_x or needs_S1 else 0
        sums = tiles.reduce_tiles(rows, steps.d_out, half, itemsize, steps.H.entry_bytes, precision=steps.precision)
        self._first = Launch(
            steps.kernels.backward_shrink,
            shrinking + (sums.programs if needs_S2 or needs_bias else 0),
            (
                shrinking, rows, steps.d_out, columns, steps.columns, steps.d_out, *steps.B_strides, shrink.share,
                steps.scale, *steps.B_strides,
            ),
            steps.common
            | {"H_SPLITS": steps.H.splits, "HAS_BIAS": needs_bias}
            | _shrink_constants(shrink)
            | _reduce_constants(sums),
            shrink.warps,
        )  # fmt: skip
        self._dH = Shares(steps, shrink, columns)
        expand = tiles.expand_tiles(
            rows, steps.d_in, columns, self._dH.entry_bytes, steps.W_bytes, steps.processors,
            precision=steps.precision, beside=needs_S1,
        )  # fmt: skip
        expanding = expand.programs if needs_x else 0
        sums = tiles.reduce_tiles(
            rows, steps.d_in, half, steps.x_bytes, self._dH.entry_bytes, precision=steps.precision
        )
        self._second = Launch(
            steps.kernels.backward_expand,
            expanding + (sums.programs if needs_S1 else 0),
            (
                expanding, rows, steps.d_in, columns, half, steps.x_stride, *steps.A_strides, expand.rows_each,
                *steps.A_strides,
            ),
            steps.common | {"SPLITS": self._dH.splits} | _expand_constants(expand) | _reduce_constants(sums),
            expand.warps,
        )  # fmt: skip
        L, k, dtype = steps.L, steps.k, steps.parameter_dtype
        self._dx = _layout((rows, steps.d_in), steps.x_dtype)
        self._dS1 = _layout((L, steps.d_in, k), dtype)
        self._dS2 = _layout((L, k, steps.d_out), dtype)
        self._dbias = _layout((steps.d_out,), dtype)

    def __call__(
        self, grad: Tensor, x: Tensor, H: Tensor, A: Tensor, B: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of x, S1s, S2s and the bias; None for what was not asked for."""
        needs_x, needs_S1, needs_S2, needs_bias = self.needs
        stream = _current_stream(self.device)
        dH = self._dH.empty()
        dS2 = _empty(*self._dS2) if needs_S2 or needs_bias else dH
        dbias = _empty(*self._dbias) if needs_bias else dS2
        # a gradient at least is asked for, so there is something to launch
        self._first(stream, grad, B, dH, H, dS2, dbias)
        if needs_x or needs_S1:
            dH = self._dH.summed(stream, dH)
        dx = _empty(*self._dx) if needs_x else dH
        dS1 = _empty(*self._dS1) if needs_S1 else dH
        if needs_x or needs_S1:
            self._second(stream, dH, A, dx, x, dS1)
        return (
            dx if needs_x else None,
            dS1 if needs_S1 else None,
            dS2 if needs_S2 else None,
            dbias if needs_bias else None,
        )


def _layout(size: tuple[int, ...], dtype: torch.dtype) -> Layout:
    """Size, strides and type of a contiguous tensor."""
    stride = tuple(math.prod(size[axis + 1 :]) for axis in range(len(size)))
    return size, stride, dtype


def _shrink_constants(t: tiles.ShrinkTiles) -> dict[str, Any]:
    return {
        "BM": t.BM, "BF": t.BF, "BC": t.BC, "STAGES": t.stages, "FULL_F": t.full_features, "FULL_C": t.full_columns
    }  # fmt: skip


def _expand_constants(t: tiles.ExpandTiles) -> dict[str, Any]:
    return {
        "BM": t.BM,
        "BF": t.BF,
        "BC": t.BC,
        "STAGES": t.stages,
        "FULL_F": t.full_features,
        "FULL_C": t.full_columns,
        "ONE_TILE": t.one_tile,
        "STORE": t.store,
    }


def _reduce_constants(t: tiles.ReduceTiles) -> dict[str, Any]:
    return {
        "R_BR": t.BR, "R_BF": t.BF, "R_BC": t.BC, "R_STAGES": t.stages, "R_FULL_F": t.full_features
    }  # fmt: skip
