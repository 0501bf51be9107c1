"""Sketched linear layers in a graph: a placeholder for each while a model is traced, and the nodes that it leaves."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch import Tensor, nn

from panther.export.graph.placeholders import DOMAIN, layers_of
from panther.nn import SKLinear
from panther.nn.hooks import computes_weights, take_hooks

OP, WEIGHT_OP = "SketchedLinear", "DenseWeight"


class Placeholder(nn.Module):
    """Replaces a sketched layer while the model is traced."""

    def __init__(self, layer: SKLinear, name: str) -> None:
        super().__init__()
        self.S1s, self.U1s, self.U2s, self.S2s = (
            nn.Parameter(tensor.detach().contiguous(), requires_grad=False)
            for tensor in (layer.S1s, layer.U1s, layer.U2s, layer.S2s)
        )
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)
        # code around the layer may read its sizes
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.num_terms, self.low_rank = layer.num_terms, layer.low_rank
        self.name = name
        if not computes_weights(layer):
            take_hooks(self, layer)

    def forward(self, x: Tensor) -> Tensor:
        """Leave one node in the graph."""
        if x.shape[-1] != self.in_features:
            raise ValueError(f"x of shape {tuple(x.shape)} must end in in_features ({self.in_features})")
        terms = (x, self.S1s, self.U1s, self.U2s, self.S2s)
        return self._node(
            OP,
            terms if self.bias is None else (*terms, self.bias),
            dtype=x.dtype,
            shape=(*x.shape[:-1], self.out_features),
        )

    @property
    def weight(self) -> Tensor:
        """The dense weight, (out_features, in_features): a node whose constant is folded when the file is loaded."""
        terms = (self.S1s, self.U1s, self.U2s, self.S2s)
        return self._node(WEIGHT_OP, terms, dtype=self.S1s.dtype, shape=(self.out_features, self.in_features))

    def dense_weight(self) -> Tensor:
        """The dense weight; see `weight`."""
        return self.weight

    def _node(self, op: str, inputs: Sequence[Tensor], *, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
        symbolic: Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{op}", inputs, attrs={"layer": self.name}, dtype=dtype, shape=shape, version=1
        )
        return symbolic


def is_op(node: ir.Node, op: str) -> bool:
    """Whether a node is one of those that a sketched layer leaves in the graph."""
    return (node.domain, node.op_type) == (DOMAIN, op)


def layer_of(node: ir.Node) -> str:
    """The name of the sketched layer that left a node."""
    return str(node.attributes["layer"].as_string())


def sketched_layers(model: nn.Module) -> dict[str, SKLinear]:
    """The sketched linear layers of a model by their dotted name, as `layers_of`."""
    return layers_of(model, SKLinear)


def tied_layers(model: nn.Module) -> dict[str, str]:
    """For each sketched layer by name, the first one with the same four matrices; itself if it is not tied.

    Layers are tied by their Parameters S1s and S2s; U1s and U2s are buffers, of which a module keeps its own copies
    where the model's type was changed.
    """
    first: dict[tuple[int, int], list[str]] = {}
    result: dict[str, str] = {}
    layers = sketched_layers(model)
    for name, layer in layers.items():
        S1s, S2s = layer._parameters.get("S1s"), layer._parameters.get("S2s")
        if S1s is None or S2s is None:
            # computed from other parameters, as by pruning
            result[name] = name
            continue
        known = first.setdefault((id(S1s), id(S2s)), [])
        same = next((other for other in known if _same_sketch(layer, layers[other])), None)
        if same is None:
            known.append(name)
        result[name] = same or name
    return result


def _same_sketch(one: SKLinear, other: SKLinear) -> bool:
    pairs = ((one.U1s, other.U1s), (one.U2s, other.U2s))
    return all(ours is theirs or torch.equal(ours, theirs) for ours, theirs in pairs)
