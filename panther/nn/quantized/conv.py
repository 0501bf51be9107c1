"""Convolutions with weights stored in 8 or 4 bits."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, conv2d

from panther.linalg.levels import LARGEST_4_BITS
from panther.nn.padding import padded
from panther.nn.quantized.checks import float_copy
from panther.nn.quantized.packing import pack, unpack

_LARGEST = 127
_ZERO_4_BITS = 8


class Int8Kernel(nn.Module):
    """Convolution weight in 8 bits, with one scale per output channel.

    Args:
        weight_int8: (C_out, C_in/groups, *kernel), int8.
        scale: (C_out,), float32.
    """

    weight_int8: Tensor
    scale: Tensor

    def __init__(self, weight_int8: Tensor, scale: Tensor) -> None:
        super().__init__()
        if weight_int8.dtype != torch.int8 or weight_int8.dim() not in (3, 4):
            raise ValueError(
                f"weight_int8 ({weight_int8.dtype}, {weight_int8.dim()} axes) must be a kernel of torch.int8, with "
                "3 or 4 axes"
            )
        self.register_buffer("weight_int8", weight_int8.contiguous())
        self.register_buffer("scale", float_copy(scale, (len(weight_int8),), "scale"))

    @classmethod
    def nearest(cls, weight: Tensor) -> Self:
        """Round a weight to 8 bits; the largest entry of each output channel sets its scale."""
        W = weight.detach().float()
        scale = W.flatten(1).abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / _LARGEST
        return cls(torch.round(W / _per_channel(scale, W)).to(torch.int8), scale)

    @property
    def weight(self) -> Tensor:
        """The weight as floating-point numbers."""
        floats = self.weight_int8.to(self.scale.dtype)
        return floats * _per_channel(self.scale, floats)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return tuple(self.weight_int8.shape)

    @property
    def rows(self) -> tuple[Tensor, Tensor]:
        """The integers (n, m) as int8, and the scale of each row, (n, 1)."""
        return self.weight_int8.flatten(1), self.scale.unsqueeze(1)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the integers and the scales."""
        return self.weight_int8.nbytes + self.scale.nbytes

    def extra_repr(self) -> str:
        """The shape."""
        return ", ".join(map(str, self.shape))


class Int4Kernel(nn.Module):
    """Convolution weight in 4 bits, with one scale per block of an output channel's entries.

    Args:
        integers: (C_out, C_in/groups, *kernel), int8 from -7 to 7.
        scale: (C_out, blocks), float32; the number of entries of an output channel is divisible by blocks.
    """

    weight_packed: Tensor
    scale: Tensor
    shape: tuple[int, ...]

    def __init__(self, integers: Tensor, scale: Tensor) -> None:
        super().__init__()
        fits = integers.dtype == torch.int8 and bool((integers.abs() <= LARGEST_4_BITS).all())
        if not fits or integers.dim() not in (3, 4):
            raise ValueError(
                f"integers ({integers.dtype}, {integers.dim()} axes) must be a kernel of torch.int8 from -7 to 7, with "
                "3 or 4 axes"
            )
        self.shape = tuple(integers.shape)
        entries = math.prod(self.shape[1:])
        if scale.dim() != 2 or entries % scale.shape[1]:
            raise ValueError(
                f"scale of shape {tuple(scale.shape)} must be (C_out, blocks), blocks a divisor of {entries} entries"
            )
        self.block_size = entries // scale.shape[1]
        levels = (integers.flatten(1) + _ZERO_4_BITS).to(torch.uint8)
        self.register_buffer("weight_packed", pack(levels, 4))
        self.register_buffer("scale", float_copy(scale, (self.shape[0], scale.shape[1]), "scale"))

    @property
    def weight(self) -> Tensor:
        """The weight as floating-point numbers."""
        integers, scale = self.rows
        return (integers.to(scale.dtype) * scale).view(self.shape)

    @property
    def rows(self) -> tuple[Tensor, Tensor]:
        """The integers (n, m) as int8, and the scale of each row, (n, 1)."""
        levels = unpack(self.weight_packed, 4, math.prod(self.shape[1:])).to(torch.int8) - _ZERO_4_BITS
        return levels.reshape(-1, self.block_size), self.scale.reshape(-1, 1)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the integers and the scales."""
        return self.weight_packed.nbytes + self.scale.nbytes

    def extra_repr(self) -> str:
        """The shape and the size of a block."""
        return f"{', '.join(map(str, self.shape))}, block_size={self.block_size}"


StoredKernel = Int8Kernel | Int4Kernel


class StoredConv(nn.Module):
    """A convolution, or two in sequence, one of them 1x1, with weights in 8 or 4 bits; it computes in float32.

    An exported file holds the integers. onnxruntime unpacks them once, when it loads the file. Memory and speed are
    those of float weights; activations are not rounded.

    Args:
        conv: source of sizes, options, device and training mode; it is not changed.
        first: the weight of the only or the first convolution.
        second: the weight of the second convolution; None for a single one.
        bias: (C_out,) or None; it is copied.

    Attributes:
        weight: (C_out, C_in/groups, *kernel), the equivalent dense weight, computed on each access.

    Raises:
        ValueError: the weights do not match the sizes of the convolution.
    """

    def __init__(
        self,
        conv: nn.Conv1d | nn.Conv2d,
        first: StoredKernel,
        second: StoredKernel | None = None,
        *,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = conv.in_channels, conv.out_channels, conv.groups
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.padding, self.padding_mode = conv.padding, conv.padding_mode
        self.axes = len(conv.kernel_size)
        self.first, self.second = first, second
        self._check()
        kept = None if bias is None else float_copy(bias, (self.out_channels,), "bias")
        self.bias = None if kept is None else nn.Parameter(kept, requires_grad=False)
        self.to(conv.weight.device).train(conv.training)

    @property
    def rank(self) -> int | None:
        """Channels between two convolutions; None for a single one."""
        return None if self.second is None else self.first.shape[0]

    @property
    def kernels(self) -> list[tuple[StoredKernel, bool]]:
        """The weights in sequence, each with a flag: it has the stride, padding and dilation of the layer."""
        if self.second is None:
            return [(self.first, True)]
        # the first of two 1x1 convolutions, so the second has fewer positions
        kernel_first = self.first.shape[2:] == self.kernel_size
        return [(self.first, kernel_first), (self.second, not kernel_first)]

    def forward(self, x: Tensor) -> Tensor:
        """Map x of shape (N, in_channels, *spatial), or without N, to (N, out_channels, *spatial)."""
        y, padding = padded(x.float(), self)
        of_axes = conv1d if self.axes == 1 else conv2d
        last = self.kernels[-1][0]
        for kernel, whole in self.kernels:
            bias = self.bias if kernel is last else None
            if whole:
                y = of_axes(y, kernel.weight, bias, self.stride, padding, self.dilation, self.groups)
            else:
                y = of_axes(y, kernel.weight, bias)
        return y.to(x.dtype)

    @property
    def weight(self) -> Tensor:
        """The dense weight."""
        return self.dense_weight()

    def dense_weight(self) -> Tensor:
        """The weight of the equivalent nn.Conv2d (nn.Conv1d)."""
        if self.second is None:
            return self.first.weight
        first, second = self.first.weight, self.second.weight
        positions = self.kernel_size
        if self.kernels[0][1]:
            return (second.flatten(1) @ first.flatten(1)).view(self.out_channels, self.in_channels, *positions)
        dense = torch.einsum("orp,rc->ocp", second.flatten(2), first.flatten(1))
        return dense.reshape(self.out_channels, self.in_channels, *positions)

    @property
    def dense_entries(self) -> int:
        """Entries of the dense weight."""
        return self.out_channels * (self.in_channels // self.groups) * math.prod(self.kernel_size)

    @property
    def stored_entries(self) -> int:
        """Entries of the stored weights."""
        return sum(math.prod(kernel.shape) for kernel, _ in self.kernels)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the weights, their scales and the bias."""
        return sum(tensor.nbytes for tensor in (*self.buffers(), *self.parameters()))

    def extra_repr(self) -> str:
        """The sizes, formatted as in the repr of nn.Conv2d."""
        rank = "" if self.rank is None else f", rank={self.rank}"
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"groups={self.groups}, bias={self.bias is not None}{rank}"
        )

    def _check(self) -> None:
        shapes = [kernel.shape for kernel, _ in self.kernels]
        points = (1,) * self.axes
        if self.second is None:
            wanted = [(self.out_channels, self.in_channels // self.groups, *self.kernel_size)]
        else:
            if self.groups > 1:
                raise ValueError(f"a convolution of {self.groups} groups has one weight; give no second")
            rank = shapes[0][0]
            sizes = (self.kernel_size, points) if self.kernels[0][1] else (points, self.kernel_size)
            wanted = [(rank, self.in_channels, *sizes[0]), (self.out_channels, rank, *sizes[1])]
        if shapes != wanted:
            raise ValueError(f"weights of shape {shapes} must have shape {wanted}")


def _per_channel(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.view(-1, *(1,) * (weight.dim() - 1))
