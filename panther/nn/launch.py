"""The launches of our kernels for one layer and one number of rows, prepared once and repeated at little cost."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from panther.nn import tiles

DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}
_STEPS: dict[tuple[Any, ...], Steps] = {}
_MOST_STEPS = 4096


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


class Launch:
    """A kernel with its grid and constants. The first call compiles it, the next ones go straight to the driver."""

    __slots__ = ("_compiled", "_constants", "_grid", "_kernel", "_stream", "_values", "_warps")

    def __init__(self, kernel: Any, programs: int, constants: dict[str, Any], num_warps: int) -> None:
        self._kernel = kernel
        self._grid = (programs, 1, 1)
        # in the order of the signature, as the driver takes them
        self._constants = {name: constants[name] for name in kernel.arg_names if name in constants}
        self._values = tuple(self._constants.values())
        self._warps = num_warps
        self._compiled: Any = None
        self._stream: Any = None

    def __call__(self, *arguments: Any) -> None:
        """Launch with tensors and numbers; the numbers and the types and alignment of the tensors must not change."""
        if self._compiled is not None:
            self._compiled[self._grid](*arguments, *self._values, stream=self._stream())
            return
        compiled = self._kernel[self._grid](*arguments, **self._constants, num_warps=self._warps)
        driver = importlib.import_module("triton.runtime.driver").driver.active
        self._stream = partial(driver.get_current_stream, driver.get_current_device())
        self._compiled = compiled


class Steps:
    """Forward and backward of a layer for inputs of one shape, type and stride.

    Args:
        rows: N.
        A: (2L, d_in, k).
        B: (2Lk, d_out).
        x_dtype, x_stride: of x, (N, d_in); its last axis is contiguous.
        dtype: that products are computed in; float32 stands for tf32.
        bias_dtype: None without one.
        parameter_dtype: of the gradients of S1s, S2s and the bias; A and B may have been cast.
        device_processors: multiprocessors of the device.
    """

    def __init__(
        self,
        rows: int,
        A: Tensor,
        B: Tensor,
        x_dtype: torch.dtype,
        x_stride: int,
        dtype: torch.dtype,
        bias_dtype: torch.dtype | None,
        parameter_dtype: torch.dtype,
        device_processors: int,
    ) -> None:
        self.kernels = triton_kernels()
        self.is_new = True
        self.dtype, self.parameter_dtype = dtype, parameter_dtype
        self.rows, self.x_stride = rows, x_stride
        terms, self.d_in, self.k = A.shape
        self.L = terms // 2
        self.columns, self.d_out = B.shape
        self.processors = device_processors
        self.scale = 1 / terms
        self.x_bytes, self.W_bytes = x_dtype.itemsize, A.dtype.itemsize
        # strides of a feature, a term and an entry of it
        self.A_strides = (self.k, self.d_in * self.k, 1)
        self.B_strides = (1, self.k * self.d_out, self.d_out)
        self.common = {
            "K": self.k,
            "DTYPE": getattr(self.kernels.tl, DTYPES[dtype]),
            "PRECISION": "tf32" if dtype == torch.float32 else "ieee",
        }
        shrink = tiles.shrink_tiles(rows, self.d_in, self.columns, self.x_bytes, self.W_bytes, device_processors)
        self.splits, self.share = shrink.splits, shrink.share
        self.H_dtype = torch.float32 if self.splits > 1 else dtype
        H_bytes = self.H_dtype.itemsize * self.splits
        expand = tiles.expand_tiles(rows, self.d_out, self.columns, H_bytes, self.W_bytes, device_processors)
        self.rows_each = expand.rows_each
        self._shrink = Launch(
            self.kernels.forward_shrink, shrink.programs, self.common | _shrink_constants(shrink), shrink.warps
        )
        constants = self.common | {"SPLITS": self.splits, "HAS_BIAS": bias_dtype is not None}
        self._expand = Launch(
            self.kernels.forward_expand, expand.programs, constants | _expand_constants(expand), expand.warps
        )
        self._backward: dict[tuple[bool, ...], Backward] = {}

    def forward(self, x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """The output, (N, d_out), and H = x @ A / (2L) in shares, (splits, N, 2Lk), for the way back."""
        H = torch.empty((self.splits, self.rows, self.columns), dtype=self.H_dtype, device=x.device)
        y = torch.empty((self.rows, self.d_out), dtype=self.dtype, device=x.device)
        self._shrink(
            x, A, H, self.rows, self.d_in, self.columns, self.x_stride, *self.A_strides, self.share, self.scale
        )
        self._expand(
            H, B, y if bias is None else bias, y, self.rows, self.d_out, self.columns, *self.B_strides, self.rows_each
        )
        return y, H

    def backward(self, needs: tuple[bool, bool, bool, bool]) -> Backward:
        """What gives the gradients that are asked for, of x, S1s, S2s and the bias."""
        backward = self._backward.get(needs)
        if backward is None:
            backward = self._backward[needs] = Backward(self, needs)
        return backward


class Backward:
    """The gradients of some of x, S1s, S2s and the bias."""

    def __init__(self, steps: Steps, needs: tuple[bool, bool, bool, bool]) -> None:
        self.steps, self.needs = steps, needs
        self.is_new = True
        needs_x, needs_S1, needs_S2, needs_bias = needs
        rows, half, itemsize = steps.rows, steps.columns // 2, steps.dtype.itemsize
        # without the gradient of x, only the learnable half of dH is used
        self.columns = steps.columns if needs_x else half
        shrink = tiles.shrink_tiles(rows, steps.d_out, self.columns, itemsize, steps.W_bytes, steps.processors)
        self.splits, self.share = shrink.splits, shrink.share
        self.shrinking = shrink.programs if needs_x or needs_S1 else 0
        sums = tiles.reduce_tiles(rows, steps.d_out, half, itemsize, steps.H_dtype.itemsize * steps.splits)
        constants = steps.common | {"H_SPLITS": steps.splits, "HAS_BIAS": needs_bias}
        self._first = Launch(
            steps.kernels.backward_shrink,
            self.shrinking + (sums.programs if needs_S2 or needs_bias else 0),
            constants | _shrink_constants(shrink) | _reduce_constants(sums),
            shrink.warps,
        )
        self.dH_dtype = torch.float32 if self.splits > 1 else steps.dtype
        dH_bytes = self.dH_dtype.itemsize * self.splits
        expand = tiles.expand_tiles(rows, steps.d_in, self.columns, dH_bytes, steps.W_bytes, steps.processors)
        self.rows_each = expand.rows_each
        self.expanding = expand.programs if needs_x else 0
        sums = tiles.reduce_tiles(rows, steps.d_in, half, steps.x_bytes, dH_bytes)
        self._second = Launch(
            steps.kernels.backward_expand,
            self.expanding + (sums.programs if needs_S1 else 0),
            steps.common | {"SPLITS": self.splits} | _expand_constants(expand) | _reduce_constants(sums),
            expand.warps,
        )

    def __call__(
        self, grad: Tensor, x: Tensor, H: Tensor, A: Tensor, B: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of x, S1s, S2s and the bias; None for what was not asked for."""
        steps, dtype = self.steps, self.steps.parameter_dtype
        needs_x, needs_S1, needs_S2, needs_bias = self.needs
        L, k, rows = steps.L, steps.k, steps.rows
        new, device = torch.empty, x.device
        dH = new((self.splits, rows, self.columns), dtype=self.dH_dtype, device=device)
        dS2 = new((L, k, steps.d_out), dtype=dtype, device=device) if needs_S2 or needs_bias else dH
        dbias = new((steps.d_out,), dtype=dtype, device=device) if needs_bias else dS2
        # a gradient at least is asked for, so there is something to launch
        self._first(
            grad, B, dH, H, dS2, dbias, self.shrinking, rows, steps.d_out, self.columns, steps.columns, steps.d_out,
            *steps.B_strides, self.share, steps.scale, *steps.B_strides,
        )  # fmt: skip
        dx = new((rows, steps.d_in), dtype=x.dtype, device=device) if needs_x else dH
        dS1 = new((L, steps.d_in, k), dtype=dtype, device=device) if needs_S1 else dH
        if needs_x or needs_S1:
            self._second(
                dH, A, dx, x, dS1, self.expanding, rows, steps.d_in, self.columns, steps.columns // 2, steps.x_stride,
                *steps.A_strides, self.rows_each, *steps.A_strides,
            )  # fmt: skip
        return (
            dx if needs_x else None,
            dS1 if needs_S1 else None,
            dS2 if needs_S2 else None,
            dbias if needs_bias else None,
        )


def prepared(
    x: Tensor, A: Tensor, B: Tensor, bias: Tensor | None, dtype: torch.dtype, parameter_dtype: torch.dtype
) -> Steps:
    """The launches for inputs like these, made at the first call of their kind; arguments as for `Steps`."""
    device = x.device.index
    bias_dtype = None if bias is None else bias.dtype
    rows, stride = len(x), x.stride(0)
    # everything that a compiled kernel takes for granted
    key = (rows, stride, x.dtype, A.shape, B.shape[1], A.dtype, bias_dtype, parameter_dtype, dtype, device)
    steps = _STEPS.get(key)
    if steps is None:
        if len(_STEPS) >= _MOST_STEPS:
            _STEPS.clear()
        steps = Steps(rows, A, B, x.dtype, stride, dtype, bias_dtype, parameter_dtype, processors(device))
        _STEPS[key] = steps
    return steps


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
