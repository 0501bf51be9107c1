"""Placeholders for quantized layers while a model is traced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from panther.nn.hooks import take_hooks
from panther.nn.low_rank import Int8LowRank
from panther.nn.quantized import BlockEmbedding, BlockLinear, FactoredLinear, Int8Linear

DOMAIN, QUANTIZED_OP = "panther", "QuantizedLayer"
QuantizedLayer = Int8Linear | BlockLinear | BlockEmbedding
Layer = TypeVar("Layer", bound=nn.Module)


class QuantizedPlaceholder(nn.Module):
    """Replaces a quantized layer while the model is traced; its constants are added afterwards."""

    def __init__(self, layer: Int8Linear | BlockLinear, name: str) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.name = name
        take_hooks(self, layer)

    def forward(self, x: Tensor) -> Tensor:
        """Leave one node in the graph."""
        if x.shape[-1] != self.in_features:
            raise ValueError(f"x of shape {tuple(x.shape)} must end in in_features ({self.in_features})")
        return _node(x, self.name, x.dtype, (*x.shape[:-1], self.out_features))


def layers_of(model: nn.Module, kind: type[Layer]) -> dict[str, Layer]:
    """The layers of a kind in a model by their dotted name; a layer in several places is named once.

    A layer that is the whole model has the name of its class.
    """
    return {name or type(module).__name__: module for name, module in model.named_modules() if isinstance(module, kind)}


class TablePlaceholder(nn.Module):
    """Replaces an embedding in blocks of 4 bits while the model is traced."""

    def __init__(self, layer: BlockEmbedding, name: str) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = layer.num_embeddings, layer.embedding_dim
        self.padding_idx, self.name = layer.padding_idx, name
        take_hooks(self, layer)

    def forward(self, indices: Tensor) -> Tensor:
        """Leave one node in the graph."""
        return _node(indices, self.name, torch.float32, (*indices.shape, self.embedding_dim))


def placeholder(layer: QuantizedLayer, name: str) -> nn.Module:
    """A placeholder module for a layer of a dotted name."""
    return TablePlaceholder(layer, name) if isinstance(layer, BlockEmbedding) else QuantizedPlaceholder(layer, name)


def _node(x: Tensor, name: str, dtype: torch.dtype, shape: Sequence[int | torch.SymInt]) -> Tensor:
    symbolic: Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{QUANTIZED_OP}", [x], attrs={"layer": name}, dtype=dtype, shape=shape, version=1
    )
    return symbolic


def quantized_factors(model: nn.Module) -> dict[str, str]:
    """Name of the first factor of each low-rank layer by the name of its second factor, as in `quantized_layers`."""
    found = {}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, Int8LowRank):
            found[f"{prefix}second"] = f"{prefix}first"
        elif isinstance(module, FactoredLinear):
            found[f"{prefix}up"] = f"{prefix}down"
    return found


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    """The quantized layers of a model that become one node, by their dotted name, as `sketched_layers`."""
    return {
        name or type(module).__name__: module
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLayer)
    }
