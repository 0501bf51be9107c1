"""Embeddings that can be stored in 8 or 4 bits, and why others can't."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from panther.convert.layers import Place
from panther.nn.quantized import BlockEmbedding, Int8Embedding
from panther.quantize.grid import block_grid

# smaller tables, such as positions and token types, save too little for a node in the graph
_SMALLEST_BYTES = 65536
# block size of 4-bit tables
_BLOCK_SIZE = 64


@dataclass(frozen=True)
class Table:
    """An embedding of the model, and its place.

    Attributes:
        place: its module's place in the model.
        reason: why it stays in float32; None if it is quantized.
        bits: 8, a scale a row; or 4, a scale and a zero point for each block of a row.
    """

    place: Place
    reason: str | None
    bits: int = 8

    @property
    def embedding(self) -> nn.Embedding:
        """The module."""
        module = self.place.module
        if not isinstance(module, nn.Embedding):
            raise TypeError(f"{self.place.names[0]} ({type(module).__name__}) is not an nn.Embedding")
        return module

    @property
    def how(self) -> str:
        """The format in words."""
        return "a scale a row" if self.bits == 8 else f"blocks of {_BLOCK_SIZE}"

    @property
    def stored_bytes(self) -> int:
        """Bytes of the quantized table."""
        rows, width = self.embedding.weight.shape
        if self.bits == 8:
            return rows * (width + 4)
        blocks = -(-width // _BLOCK_SIZE)
        return rows * (width // 2 + 4 * blocks + -(-blocks // 2))

    def finer(self) -> Table:
        """A copy with 8 bits instead of 4, or float32 instead of 8."""
        if self.reason is None and self.bits == 4:
            return dataclasses.replace(self, bits=8)
        return dataclasses.replace(self, reason=self.reason or "8-bit embeddings alone cost more than max_error")

    def quantized(self) -> nn.Module:
        """The quantized embedding."""
        if self.bits == 8:
            return Int8Embedding.from_embedding(self.embedding)
        W = self.embedding.weight.detach().float()
        grid = block_grid(W, torch.ones(W.shape[1], device=W.device), bits=4, block_size=_BLOCK_SIZE)
        levels, zero = (grid.nearest(W) - grid.each(grid.low, W.shape[1])).to(torch.uint8), -grid.low
        padding = self.embedding.padding_idx
        return BlockEmbedding(levels, grid.step, zero.to(torch.uint8), block_size=_BLOCK_SIZE, padding_idx=padding)


def find(model: nn.Module, bits: int = 8) -> list[Table]:
    """Every nn.Embedding of a model, in its order; those of an odd width get 8 bits in place of 4."""
    places: dict[int, Place] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Embedding) and name:
            places.setdefault(id(module), Place(module, [])).names.append(name)
    holders: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    tables = [Table(place, _reason(place.module, holders), bits) for place in places.values()]
    return [dataclasses.replace(each, bits=8) if each.embedding.embedding_dim % 2 else each for each in tables]


def _reason(module: nn.Module, holders: dict[int, int]) -> str | None:
    """Why an embedding stays in float32, or None."""
    weight = module._parameters.get("weight")
    reason = None
    if parametrize.is_parametrized(module) or not isinstance(weight, Tensor):
        reason = "its weight is computed from other parameters"
    elif type(module).forward is not nn.Embedding.forward or "forward" in module.__dict__:
        reason = f"{type(module).__name__} does more than nn.Embedding in its forward"
    elif getattr(module, "max_norm", None) is not None:
        reason = "its max_norm changes the table during the lookup"
    elif weight.is_meta or not bool(weight.isfinite().all()):
        reason = "its weight holds values that are not finite, or no values"
    elif holders[id(weight)] > 1:
        reason = "its weight is also that of another module"
    else:
        reason = too_small(weight)
    return reason


def too_small(weight: Tensor) -> str | None:
    """Why a table of that size stays in float32, or None."""
    return f"small: {weight.nbytes:,} bytes, below {_SMALLEST_BYTES:,}" if weight.nbytes < _SMALLEST_BYTES else None
