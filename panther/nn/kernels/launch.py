"""Launch plans of the Triton kernels: prepared once for a layer and a number of rows, then repeated at little cost.

A product with a factor is a shrink (x @ A, from many features to few columns) or an expand (H @ B, from few columns to
many features); `panther.nn.kernels.triton_kernels` has the kernels, `panther.nn.kernels.tiles` their tiles.

See docs/decisions/0043-launch-through-the-driver.md.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from panther.nn.kernels import devices, private_names, tiles

DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}
# entries that one program of the reduction kernel sums
SUM_BLOCK = 1024
# entries of the factors that a program lays out
LAYOUT_BLOCK = 2048
Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]


# Positional arguments halve the time of these calls; on a GPU a layer's time is mostly spent on the host.
_empty = private_names.empty_strided_cuda
_current_stream = private_names.current_raw_stream
_current_device = private_names.current_device


def casts(rows: int, parameter_dtype: torch.dtype, dtype: torch.dtype) -> bool:
    """Whether A and B have to be cast to dtype first: each block of rows reads their tiles again."""
    return parameter_dtype != dtype and rows > tiles.FEW_BLOCKS_ROWS


class Launch:
    """A kernel with its grid, numbers and constants. The first call compiles it, the next ones go to the driver."""

    __slots__ = ("_between", "_constants", "_kernel", "_launch", "_numbers", "_programs", "_rest", "_warps")

    def __init__(
        self, kernel: Any, programs: int, numbers: tuple[float, ...], constants: dict[str, Any], num_warps: int
    ) -> None:
        self._kernel, self._programs, self._warps = kernel, programs, num_warps
        # in the order of the signature, as the driver expects
        self._constants = {name: constants[name] for name in kernel.arg_names if name in constants}
        self._numbers = numbers
        self._rest = (*numbers, *self._constants.values())
        self._launch: Any = None
        self._between: tuple[Any, ...] = ()

    @property
    def is_compiled(self) -> bool:
        """Whether the first call has been made."""
        return self._launch is not None

    def __call__(self, stream: int, *tensors: Tensor) -> None:
        """Launch on the current stream, whose handle is given; types and alignment of the tensors must not change."""
        if self._launch is not None:
            # as addresses: asking the driver for them takes longer
            addresses = [tensor.data_ptr() for tensor in tensors]
            self._launch(self._programs, 1, 1, stream, *self._between, *addresses, *self._rest)
            return
        grid = (self._programs, 1, 1)
        compiled = self._kernel[grid](*tensors, *self._numbers, **self._constants, num_warps=self._warps)
        self._launch, self._between = private_names.launcher(compiled)


class LaunchPlan:
    """Forward and backward launches of a layer for inputs of one shape, type and stride.

    All values that a launch needs are fields, computed once: host time per launch decides the speed of small layers.

    Args:
        learning: whether a backward pass follows.
        rows: N.
        x_dtype, x_stride: data type and strides of x, (N, d_in).
        A_shape: (2L, d_in, k).
        d_out: of B, (2Lk, d_out).
        parameter_dtype: of the parameters and their gradients.
        bias_dtype: data type of the bias; None without one.
        dtype: data type of the products.
        precision: ``"half"``, ``"tf32"`` or ``"ieee"``: arithmetic of the matrix units for that type.
        device: index of the CUDA device.
        limits: properties of the device that bound the tiles.

    Attributes:
        copies_x: whether x has to be made contiguous first.
        casts: whether A and B have to be cast first.
        is_new: whether it was never launched.
        calls: number of calls for such inputs while it was new.
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
        limits: devices.Device,
    ) -> None:
        self.kernels = devices.triton_kernels()
        self.is_new, self.learning, self.calls = True, learning, 0
        self.dtype, self.parameter_dtype, self.x_dtype = dtype, parameter_dtype, x_dtype
        self.precision = precision
        self.device, self.limits = device, limits
        terms, self.d_in, self.k = A_shape
        self.rows, self.d_out = rows, d_out
        self.L, self.columns = terms // 2, terms * self.k
        self.copies_x = x_stride[1] != 1
        self.x_stride = self.d_in if self.copies_x else x_stride[0]
        self.casts = casts(rows, parameter_dtype, dtype)
        self.scale = 1 / terms
        self.x_bytes, self.W_bytes = x_dtype.itemsize, (dtype if self.casts else parameter_dtype).itemsize
        # strides of features, terms and entries
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
            self.limits,
            precision=precision,
            readers=d_out,
            learning=learning,
        )
        self.H = SplitK(self, shrink, self.columns)
        expand = tiles.expand_tiles(
            rows, d_out, self.columns, self.H.entry_bytes, self.W_bytes, self.limits, precision=precision
        )
        self._y = _layout((rows, d_out), dtype)
        self._shrink = Launch(
            self.kernels.forward_shrink,
            shrink.programs,
            (rows, self.d_in, self.columns, self.x_stride, *self.A_strides, shrink.split_size, self.scale),
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
        """The output, (N, d_out), and the partial sums of H = x @ A / (2L), (length, N, 2Lk), for the backward pass."""
        stream = _current_stream(self.device)
        H = self.H.empty()
        self._shrink(stream, x, A, H)
        H = self.H.reduced(stream, H)
        y = _empty(*self._y)
        self._expand(stream, H, B, y if bias is None else bias, y)
        return y, H

    def backward(self, needs: tuple[bool, bool, bool, bool]) -> Backward:
        """The launch for the requested gradients of x, S1s, S2s and the bias."""
        backward = self._backward.get(needs)
        if backward is None:
            backward = self._backward[needs] = Backward(self, needs)
        return backward


class FactorLayout:
    """One launch that makes the factors of `kernels.products`: side by side, scaled and cast.

    Args:
        A_shape: (2L, d_in, k).
        d_out: of B, (2Lk, d_out).
        bias_dtype: None without one.
        dtype: of the results.
        device: its index.
    """

    def __init__(
        self,
        A_shape: tuple[int, int, int],
        d_out: int,
        bias_dtype: torch.dtype | None,
        dtype: torch.dtype,
        device: int,
    ) -> None:
        terms, d_in, k = A_shape
        columns = terms * k
        self.device = device
        self.casts_bias = bias_dtype is not None and bias_dtype != dtype
        self._A, self._B, self._bias = (_layout(size, dtype) for size in ((d_in, columns), (columns, d_out), (d_out,)))
        of_A, of_B, of_bias = (
            -(-size // LAYOUT_BLOCK) for size in (d_in * columns, columns * d_out, d_out * self.casts_bias)
        )
        self.launch = Launch(
            devices.triton_kernels().lay_out,
            of_A + of_B + of_bias,
            (of_A, of_A + of_B, d_in, columns, d_out, 1 / terms),
            {"K": k, "BLOCK": LAYOUT_BLOCK},
            4,
        )

    def __call__(self, A: Tensor, B: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """A, (d_in, 2Lk), B and the bias, in the type of the products."""
        A_side, B_side = _empty(*self._A), _empty(*self._B)
        if bias is None or not self.casts_bias:
            # no program reads the pointers in the place of the biases
            self.launch(_current_stream(self.device), A, B, A, A_side, B_side, A_side)
            return A_side, B_side, bias
        bias_cast = _empty(*self._bias)
        self.launch(_current_stream(self.device), A, B, bias, A_side, B_side, bias_cast)
        return A_side, B_side, bias_cast


@lru_cache(maxsize=1024)
def _factor_layout(_: torch.dtype, *kind: Any) -> FactorLayout | None:
    device = devices.device(kind[-1])
    if devices.triton_kernels() is None or device is None or not device.is_measured:
        return None
    return FactorLayout(*kind)


def factor_layout(A: Tensor, B: Tensor, bias: Tensor | None, dtype: torch.dtype) -> FactorLayout | None:
    """The launch for contiguous factors like these; None where it can't be used, or would be compiled in a capture."""
    if not A.is_cuda or A.dtype not in DTYPES or dtype not in DTYPES or not A.numel():
        return None
    addresses, bias_dtype = A.data_ptr() | B.data_ptr(), None
    if bias is not None:
        addresses, bias_dtype = addresses | bias.data_ptr(), bias.dtype
    found = _factor_layout(A.dtype, A.shape, B.shape[1], bias_dtype, dtype, A.device.index)
    if found is None or addresses % 16 or found.device != _current_device():
        return None
    if not found.launch.is_compiled and torch.cuda.is_current_stream_capturing():
        return None
    return found


class SplitK:
    """Split-K partial sums of a shrink kernel, reduced by the consumer kernel or by a separate reduction kernel.

    Attributes:
        splits, dtype: of what the consumer kernel reads.
        entry_bytes: size of an entry there, times the splits.
        length: of the tensor that is read, (length, N, columns); it begins with the splits that are read.
    """

    def __init__(self, plan: LaunchPlan, shrink: tiles.ShrinkTiles, columns: int) -> None:
        size = plan.rows * columns
        self._partial = _layout((shrink.splits, plan.rows, columns), torch.float32 if shrink.splits > 1 else plan.dtype)
        self.splits = 1 if shrink.reduced else shrink.splits
        self.dtype = torch.float32 if self.splits > 1 else plan.dtype
        self.entry_bytes = self.dtype.itemsize * self.splits
        # without a backward pass the sum overwrites the first partial sum
        in_place = shrink.reduced and self.dtype == torch.float32 and not plan.learning
        self.length = shrink.splits if in_place else self.splits
        self._reduction: Launch | None = None
        self._reduced = None if in_place else _layout((1, plan.rows, columns), self.dtype)
        if shrink.reduced:
            constants = {"SPLITS": shrink.splits, "BLOCK": SUM_BLOCK}
            self._reduction = Launch(plan.kernels.reduce_splits, -(-size // SUM_BLOCK), (size,), constants, 4)

    def empty(self) -> Tensor:
        """Allocate the partial sums."""
        partial: Tensor = _empty(*self._partial)
        return partial

    def reduced(self, stream: int, partial: Tensor) -> Tensor:
        """Launch the reduction if there is one; returns the input of the consumer kernel."""
        if self._reduction is None:
            return partial
        H = partial if self._reduced is None else _empty(*self._reduced)
        self._reduction(stream, partial, H)
        return H


class Backward:
    """The gradients of some of x, S1s, S2s and the bias."""

    def __init__(self, plan: LaunchPlan, needs: tuple[bool, bool, bool, bool]) -> None:
        self.is_new = True
        self.device, self.needs = plan.device, needs
        needs_x, needs_S1, needs_S2, needs_bias = needs
        rows, half, itemsize = plan.rows, plan.columns // 2, plan.dtype.itemsize
        # without the gradient of x, only the learnable half of dH is used
        columns = plan.columns if needs_x else half
        shrink = tiles.shrink_tiles(
            rows, plan.d_out, columns, itemsize, plan.W_bytes, plan.limits,
            precision=plan.precision, readers=(needs_x + needs_S1) * plan.d_in,
        )  # fmt: skip
        shrinking = shrink.programs if needs_x or needs_S1 else 0
        sums = tiles.reduce_tiles(
            rows, plan.d_out, half, itemsize, plan.H.entry_bytes, plan.limits, precision=plan.precision
        )
        self._first = Launch(
            plan.kernels.backward_shrink,
            shrinking + (sums.programs if needs_S2 or needs_bias else 0),
            (
                shrinking, rows, plan.d_out, columns, plan.columns, plan.d_out, *plan.B_strides, shrink.split_size,
                plan.scale, *plan.B_strides,
            ),
            plan.common
            | {"H_SPLITS": plan.H.splits, "HAS_BIAS": needs_bias}
            | _shrink_constants(shrink)
            | _reduce_constants(sums),
            shrink.warps,
        )  # fmt: skip
        self._dH = SplitK(plan, shrink, columns)
        expand = tiles.expand_tiles(
            rows, plan.d_in, columns, self._dH.entry_bytes, plan.W_bytes, plan.limits,
            precision=plan.precision, beside=needs_S1,
        )  # fmt: skip
        expanding = expand.programs if needs_x else 0
        sums = tiles.reduce_tiles(
            rows, plan.d_in, half, plan.x_bytes, self._dH.entry_bytes, plan.limits, precision=plan.precision
        )
        self._second = Launch(
            plan.kernels.backward_expand,
            expanding + (sums.programs if needs_S1 else 0),
            (
                expanding, rows, plan.d_in, columns, half, plan.x_stride, *plan.A_strides, expand.rows_each,
                *plan.A_strides,
            ),
            plan.common | {"SPLITS": self._dH.splits} | _expand_constants(expand) | _reduce_constants(sums),
            expand.warps,
        )  # fmt: skip
        L, k, dtype = plan.L, plan.k, plan.parameter_dtype
        self._dx = _layout((rows, plan.d_in), plan.x_dtype)
        self._dS1 = _layout((L, plan.d_in, k), dtype)
        self._dS2 = _layout((L, k, plan.d_out), dtype)
        self._dbias = _layout((plan.d_out,), dtype)

    def __call__(
        self, grad: Tensor, x: Tensor, H: Tensor, A: Tensor, B: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of x, S1s, S2s and the bias; None for those that were not requested."""
        needs_x, needs_S1, needs_S2, needs_bias = self.needs
        stream = _current_stream(self.device)
        dH = self._dH.empty()
        dS2 = _empty(*self._dS2) if needs_S2 or needs_bias else dH
        dbias = _empty(*self._dbias) if needs_bias else dS2
        # at least one gradient is requested, so there is something to launch
        self._first(stream, grad, B, dH, H, dS2, dbias)
        if needs_x or needs_S1:
            dH = self._dH.reduced(stream, dH)
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
