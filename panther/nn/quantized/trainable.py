"""Quantized layers in training: floating-point weights, rounded to their grid in every forward pass.

Gradients pass through the rounding (straight-through; Bengio, Léonard and Courville, "Estimating or propagating
gradients through stochastic neurons", 2013).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from panther.linalg.levels import LARGEST, LARGEST_4_BITS
from panther.nn.quantized.blocks import BlockLinear, round_in_blocks
from panther.nn.quantized.conv import Int4Kernel, Int8Kernel
from panther.nn.quantized.grid import Grid
from panther.nn.quantized.int8 import LEVELS, Int8Linear


class TrainableWeight(nn.Module):
    """A trained weight on a fixed grid.

    Args:
        weight: (d_out, d_in) float32, on the grid or not.
        grid: of which the steps and ranges are kept, as float32.
    """

    step: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, weight: Tensor, grid: Grid) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().float().contiguous())
        for name in ("step", "low", "high"):
            self.register_buffer(name, getattr(grid, name).float().contiguous())
        self.block_size, self.paired = grid.block_size, grid.paired

    @property
    def grid(self) -> Grid:
        """The grid, on the device of the weight."""
        return Grid(self.step, self.low, self.high, self.block_size, self.paired)

    def forward(self) -> Tensor:
        """(d_out, d_in), the rounded weight."""
        return self.grid.straight_through(self.weight)

    @property
    def integers(self) -> Tensor:
        """(d_out, d_in) float32."""
        return self.grid.nearest(self.weight.detach())


class TrainableBlocks(nn.Module):
    """A `BlockLinear` in training.

    Args:
        layer: where the values are from; it is not changed, but its bias is trained in place.
    """

    def __init__(self, layer: BlockLinear) -> None:
        super().__init__()
        zero = layer.zero_points.float()
        grid = Grid(layer.weight_scale, -zero, 2**layer.bits - 1 - zero, layer.block_size)
        self.kernel = TrainableWeight(layer.weight, grid)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.activation_bits = layer.activation_bits
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Round the activations and the weight, and multiply."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.activation_bits is not None:
            with torch.no_grad():
                lost = round_in_blocks(wide, self.kernel.block_size) - wide
            wide = wide + lost
        return nn.functional.linear(wide, self.kernel(), self.bias).to(x.dtype)

    @torch.no_grad()
    def write_to(self, layer: BlockLinear) -> None:
        """Store the integers in the layer, in place."""
        grid = self.kernel.grid
        layer.store((self.kernel.integers - grid.each(grid.low, self.in_features)).to(torch.uint8))


class TrainableInt8(nn.Module):
    """An `Int8Linear` in training; the scale, zero point and smoothing of its inputs stay.

    Args:
        layer: where the values are from; it is not changed, but its bias is trained in place.
    """

    input_scale: Tensor
    input_zero_point: Tensor
    smoothing: Tensor | None

    def __init__(self, layer: Int8Linear) -> None:
        super().__init__()
        step = layer.weight_scale.unsqueeze(1)
        ends = torch.full_like(step, LARGEST)
        weight = layer.weight_int8.float() * step
        self.kernel = TrainableWeight(weight, Grid(step, -ends, ends, layer.in_features, paired=True))
        self.in_features, self.out_features = layer.in_features, layer.out_features
        for name in ("input_scale", "input_zero_point", "smoothing"):
            self.register_buffer(name, getattr(layer, name))
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Round the activations and the weight, and multiply."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        smoothed = wide if self.smoothing is None else wide * self.smoothing
        zero_point = self.input_zero_point.to(wide.dtype)
        clipped = (smoothed / self.input_scale).clamp(-zero_point, LEVELS - zero_point)
        with torch.no_grad():
            lost = torch.round(clipped) - clipped
        return nn.functional.linear((clipped + lost) * self.input_scale, self.kernel(), self.bias).to(x.dtype)

    @torch.no_grad()
    def write_to(self, layer: Int8Linear) -> None:
        """Store the integers in the layer, in place."""
        layer.weight_int8.copy_(self.kernel.integers)


class TrainableKernel(nn.Module):
    """A kernel of a `StoredConv` in training.

    Args:
        kernel: where the values are from; it is not changed.
    """

    def __init__(self, kernel: Int8Kernel | Int4Kernel) -> None:
        super().__init__()
        self.shape = kernel.shape
        step = kernel.scale.reshape(self.shape[0], -1)
        ends = torch.full_like(step, LARGEST if isinstance(kernel, Int8Kernel) else LARGEST_4_BITS)
        weight = kernel.weight.flatten(1)
        self.kernel = TrainableWeight(weight, Grid(step, -ends, ends, weight.shape[1] // step.shape[1]))

    @property
    def weight(self) -> Tensor:
        """(C_out, C_in/groups, *kernel), the rounded weight."""
        rounded: Tensor = self.kernel()
        return rounded.view(self.shape)

    @torch.no_grad()
    def write_to(self, kernel: Int8Kernel | Int4Kernel) -> None:
        """Store the integers in the kernel, in place."""
        found = type(kernel)(self.kernel.integers.to(torch.int8).view(self.shape), kernel.scale)
        for mine, trained in zip(kernel.buffers(), found.buffers(), strict=True):
            mine.copy_(trained)


Trainable = TrainableBlocks | TrainableInt8 | TrainableKernel


def trainable(layer: nn.Module) -> Trainable | None:
    """A trainable layer in place of a quantized one; None for other modules."""
    if isinstance(layer, BlockLinear):
        return TrainableBlocks(layer)
    if isinstance(layer, Int8Linear):
        return TrainableInt8(layer)
    if isinstance(layer, Int8Kernel | Int4Kernel):
        return TrainableKernel(layer)
    return None
