"""A linear layer whose weight is stored in 4 or 8 bits, with a scale and a zero point for each block of a row."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from panther.nn.quantized.checks import float_copy
from panther.nn.quantized.packing import pack, unpack

BITS = (4, 8)
BLOCK_SIZES = (16, 32, 64, 128, 256)
# levels of 8-bit activations
_LARGEST = 127


class BlockLinear(nn.Module):
    """A linear layer with a weight of few bits: Ŵ = (level - zero point) · scale, y = x Ŵᵀ + bias.

    A block is `block_size` entries of a row of the weight, the last one of a row filled up where d_in is no multiple.
    It is what `com.microsoft::MatMulNBits` of onnxruntime computes. With activation_bits=8 each block of a row of x is
    first rounded to 8 bits on the scale of its own largest entry, x̂ = round(127 · x / max|x|) · max|x| / 127
    (accuracy_level 4). A row's output never depends on the other rows of its batch.

    Args:
        levels: (d_out, d_in) uint8, each below 2^bits.
        scale: (d_out, ⌈d_in / block_size⌉), float32.
        zero_point: of the same shape, uint8, each below 2^bits; None for 2^(bits - 1) everywhere, which takes no bytes.
        bits: 4 or 8.
        block_size: 16, 32, 64, 128 or 256.
        bias: (d_out,), or None.
        activation_bits: 8, or None for activations as they are.
    """

    weight_packed: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor | None

    def __init__(
        self,
        levels: Tensor,
        scale: Tensor,
        zero_point: Tensor | None = None,
        *,
        bits: int,
        block_size: int,
        bias: Tensor | None = None,
        activation_bits: int | None = None,
    ) -> None:
        super().__init__()
        if bits not in BITS:
            raise ValueError(f"bits ({bits!r}) must be one of {list(BITS)}")
        if block_size not in BLOCK_SIZES:
            raise ValueError(f"block_size ({block_size!r}) must be one of {list(BLOCK_SIZES)}")
        if activation_bits not in (None, 8):
            raise ValueError(f"activation_bits ({activation_bits!r}) must be 8 or None")
        check_levels(levels, bits, "levels")
        self.out_features, self.in_features = levels.shape
        self.bits, self.block_size, self.activation_bits = bits, block_size, activation_bits
        shape = (self.out_features, self.blocks)
        if zero_point is not None:
            check_levels(zero_point, bits, "zero_point")
            if tuple(zero_point.shape) != shape:
                raise ValueError(f"zero_point of shape {tuple(zero_point.shape)} must have shape {shape}")
        self.register_buffer("weight_packed", pack(self._filled(levels, zero_point), bits))
        self.register_buffer("weight_scale", float_copy(scale, shape, "scale"))
        self.register_buffer("weight_zero_point", None if zero_point is None else pack(zero_point, bits))
        self._set_bias(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Round the activations where they have 8 bits, and multiply by the weight."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.activation_bits is not None:
            wide = round_in_blocks(wide, self.block_size)
        bias = None if self.bias is None else self.bias.to(wide.dtype)
        return nn.functional.linear(wide, self.weight.to(wide.dtype), bias).to(x.dtype)

    def with_bias(self, bias: Tensor | None) -> BlockLinear:
        """A layer that shares this weight, with another bias."""
        other = BlockLinear.__new__(BlockLinear)
        nn.Module.__init__(other)
        other.out_features, other.in_features = self.out_features, self.in_features
        other.bits, other.block_size, other.activation_bits = self.bits, self.block_size, self.activation_bits
        for name, buffer in self._buffers.items():
            other.register_buffer(name, buffer)
        other._set_bias(bias)
        return other

    @torch.no_grad()
    def store(self, levels: Tensor) -> None:
        """Take other levels (d_out, d_in) of the same bits, in place; scales and zero points stay."""
        check_levels(levels, self.bits, "levels")
        zero_point = None if self.weight_zero_point is None else self.zero_points
        self.weight_packed.copy_(pack(self._filled(levels, zero_point), self.bits))

    @property
    def blocks(self) -> int:
        """Number of blocks of a row of the weight."""
        return -(-self.in_features // self.block_size)

    @property
    def levels(self) -> Tensor:
        """(d_out, d_in) uint8."""
        return unpack(self.weight_packed, self.bits, self.block_size).flatten(1)[:, : self.in_features]

    @property
    def zero_points(self) -> Tensor:
        """(d_out, blocks) uint8, also where they are implied."""
        if self.weight_zero_point is None:
            return torch.full_like(self.weight_scale, 2 ** (self.bits - 1), dtype=torch.uint8)
        return unpack(self.weight_zero_point, self.bits, self.blocks)

    @property
    def weight(self) -> Tensor:
        """(d_out, d_in), the weight as floating-point numbers."""
        levels = unpack(self.weight_packed, self.bits, self.block_size).to(self.weight_scale.dtype)
        zero_points = self.zero_points.to(levels.dtype)
        dense = (levels - zero_points.unsqueeze(-1)) * self.weight_scale.unsqueeze(-1)
        return dense.flatten(1)[:, : self.in_features]

    @property
    def stored_bytes(self) -> int:
        """Bytes of the weight, its scales and zero points, and the bias."""
        return sum(tensor.nbytes for tensor in (*self.buffers(), *self.parameters()))

    def extra_repr(self) -> str:
        """The sizes and the format."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"bits={self.bits}, block_size={self.block_size}, activation_bits={self.activation_bits}"
        )

    def _set_bias(self, bias: Tensor | None) -> None:
        bias = None if bias is None else float_copy(bias, (self.out_features,), "bias")
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def _filled(self, levels: Tensor, zero_point: Tensor | None) -> Tensor:
        """(d_out, blocks, block_size): what fills the last block is zero as a number."""
        blocks = in_blocks(levels, self.block_size)
        used = self.in_features - (self.blocks - 1) * self.block_size
        if zero_point is None:
            blocks[:, -1, used:] = 2 ** (self.bits - 1)
        else:
            blocks[:, -1, used:] = zero_point[:, -1:]
        return blocks


def in_blocks(x: Tensor, block_size: int) -> Tensor:
    """(…, d) → (…, blocks, block_size), filled up with zeros."""
    blocks = -(-x.shape[-1] // block_size)
    filled = nn.functional.pad(x, (0, blocks * block_size - x.shape[-1]))
    return filled.reshape(*x.shape[:-1], blocks, block_size)


def round_in_blocks(x: Tensor, block_size: int) -> Tensor:
    """Activations in 8 bits as floating-point numbers, each block of a row on the scale of its own largest entry."""
    blocks = in_blocks(x, block_size)
    largest = blocks.abs().amax(-1, keepdim=True)
    inverse = torch.where(largest > 0, _LARGEST / largest, 0.0)
    rounded = torch.round(blocks * inverse) * (largest / _LARGEST)
    return rounded.flatten(-2)[..., : x.shape[-1]]


def block_bytes(d_out: int, d_in: int, *, bits: int, block_size: int, zero_points: bool = True) -> int:
    """Bytes of a `BlockLinear` without its bias.

    >>> block_bytes(3, 100, bits=4, block_size=64)
    219
    """
    blocks = -(-d_in // block_size)
    zeros = -(-blocks * bits // 8) if zero_points else 0
    return d_out * (blocks * block_size * bits // 8 + 4 * blocks + zeros)


def check_levels(levels: Tensor, bits: int, name: str) -> None:
    """Check that a matrix holds integers of some bits.

    Raises:
        ValueError: it is none of uint8, or one is too large.
    """
    if levels.dtype != torch.uint8 or levels.dim() != 2 or not levels.numel():
        raise ValueError(f"{name} ({levels.dtype}, shape {tuple(levels.shape)}) must be a matrix of torch.uint8")
    largest = int(levels.max())
    if largest >= 2**bits:
        raise ValueError(f"{name} hold {largest}; with {bits} bits they must be below {2**bits}")
