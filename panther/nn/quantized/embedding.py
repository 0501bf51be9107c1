"""Embeddings whose rows are stored in 8 or 4 bits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from panther.nn.quantized.blocks import BLOCK_SIZES, check_levels, in_blocks
from panther.nn.quantized.checks import float_copy
from panther.nn.quantized.packing import pack, unpack


class Int8Embedding(nn.Module):
    """An embedding whose rows are stored in 8 bits, with one scale a row.

    Args:
        weight_int8: (num_embeddings, embedding_dim), int8.
        scale: (num_embeddings,), float32.
        padding_idx: as of nn.Embedding.
    """

    weight_int8: Tensor
    scale: Tensor

    def __init__(self, weight_int8: Tensor, scale: Tensor, padding_idx: int | None = None) -> None:
        super().__init__()
        if weight_int8.dtype != torch.int8 or weight_int8.dim() != 2:
            raise ValueError(
                f"weight_int8 ({weight_int8.dtype}, {weight_int8.dim()} axes) must be a matrix of torch.int8"
            )
        self.num_embeddings, self.embedding_dim = weight_int8.shape
        self.padding_idx = padding_idx
        self.register_buffer("weight_int8", weight_int8.contiguous())
        self.register_buffer("scale", float_copy(scale, (self.num_embeddings,), "scale"))

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding) -> Int8Embedding:
        """Round the rows of an embedding, each on the scale of its largest entry."""
        W = embedding.weight.detach().float()
        scale = W.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        return cls(torch.round(W / scale.unsqueeze(1)).to(torch.int8), scale, embedding.padding_idx)

    def forward(self, indices: Tensor) -> Tensor:
        """Look rows up, and scale them."""
        rows = nn.functional.embedding(indices, self.weight_int8).to(self.scale.dtype)
        return rows * nn.functional.embedding(indices, self.scale.unsqueeze(1))

    @property
    def weight(self) -> Tensor:
        """(num_embeddings, embedding_dim), the 8-bit table as floating-point numbers."""
        return self.weight_int8.to(self.scale.dtype) * self.scale.unsqueeze(1)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the table and its scales."""
        return self.weight_int8.nbytes + self.scale.nbytes

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.num_embeddings}, {self.embedding_dim}"


class BlockEmbedding(nn.Module):
    """An embedding whose rows are stored in 4 bits, with a scale and a zero point for each block of a row.

    It is what `com.microsoft::GatherBlockQuantized` of onnxruntime computes.

    Args:
        levels: (num_embeddings, embedding_dim) uint8, each below 16; embedding_dim even.
        scale: (num_embeddings, ⌈embedding_dim / block_size⌉), float32.
        zero_point: of the same shape, uint8, each below 16.
        block_size: 16, 32, 64, 128 or 256.
        padding_idx: as of nn.Embedding.
    """

    weight_packed: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor
    bits = 4

    def __init__(
        self, levels: Tensor, scale: Tensor, zero_point: Tensor, *, block_size: int, padding_idx: int | None = None
    ) -> None:
        super().__init__()
        if block_size not in BLOCK_SIZES:
            raise ValueError(f"block_size ({block_size!r}) must be one of {list(BLOCK_SIZES)}")
        check_levels(levels, self.bits, "levels")
        check_levels(zero_point, self.bits, "zero_point")
        self.num_embeddings, self.embedding_dim = levels.shape
        if self.embedding_dim % 2:
            raise ValueError(f"the width of levels ({self.embedding_dim}) must be even: two levels share a byte")
        self.block_size, self.padding_idx = block_size, padding_idx
        shape = (self.num_embeddings, -(-self.embedding_dim // block_size))
        if tuple(zero_point.shape) != shape:
            raise ValueError(f"zero_point of shape {tuple(zero_point.shape)} must have shape {shape}")
        self.register_buffer("weight_packed", pack(levels, self.bits))
        self.register_buffer("weight_scale", float_copy(scale, shape, "scale"))
        self.register_buffer("weight_zero_point", pack(zero_point, self.bits))

    def forward(self, indices: Tensor) -> Tensor:
        """Look rows up, unpack and scale them."""
        packed, scale, zero_point = (
            nn.functional.embedding(indices, table)
            for table in (self.weight_packed, self.weight_scale, self.weight_zero_point)
        )
        return self._floats(packed, scale, zero_point)

    @property
    def weight(self) -> Tensor:
        """(num_embeddings, embedding_dim), the table as floating-point numbers."""
        return self._floats(self.weight_packed, self.weight_scale, self.weight_zero_point)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the table, its scales and zero points."""
        return sum(tensor.nbytes for tensor in self.buffers())

    def extra_repr(self) -> str:
        """The sizes and the format."""
        return f"{self.num_embeddings}, {self.embedding_dim}, bits={self.bits}, block_size={self.block_size}"

    def _floats(self, packed: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        zeros = unpack(zero_point, self.bits, scale.shape[-1])
        blocks = in_blocks(unpack(packed, self.bits, self.embedding_dim).to(scale.dtype), self.block_size)
        return ((blocks - zeros.unsqueeze(-1)) * scale.unsqueeze(-1)).flatten(-2)[..., : self.embedding_dim]
