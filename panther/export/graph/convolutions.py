"""Sketched convolutions, and those in few bits, in a graph: placeholders while a model is traced, then Conv nodes.

See docs/decisions/0073-conversion-of-convolutions.md and docs/decisions/0089-convolutions-in-8-bits.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from panther.export.errors import ExportError
from panther.export.graph.constants import Array, Builder
from panther.export.graph.kernels import Kernel, Stored, composed
from panther.export.graph.nodes import first_input, graph_of
from panther.export.graph.placeholders import DOMAIN, layers_of
from panther.nn import functional
from panther.nn.hooks import computes_weights, take_hooks
from panther.nn.padding import own_padding, padded
from panther.nn.quantized import StoredConv
from panther.nn.sketched_conv import SketchedConv

CONV_OP = "SketchedConv"
ExportedConv = SketchedConv | StoredConv
# what onnxruntime makes of a Conv: with an activation, or over blocks of channels
_CONV_OPS = frozenset({"Conv", "FusedConv", "NhwcFusedConv"})


class ConvPlaceholder(nn.Module):
    """Replaces a convolution while the model is traced; its constants are added afterwards."""

    def __init__(self, layer: ExportedConv, name: str) -> None:
        super().__init__()
        # code around the layer may read its sizes
        self.in_channels, self.out_channels, self.groups = layer.in_channels, layer.out_channels, layer.groups
        self.kernel_size, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        self.padding, self.padding_mode = layer.padding, layer.padding_mode
        self.axes, self.name = layer.axes, name
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)
        # a list, so that it is not registered as a submodule
        self._layer = [layer]
        if not computes_weights(layer):
            take_hooks(self, layer)

    @property
    def weight(self) -> Tensor:
        """The dense weight, for code that asks for its type or reads it."""
        return self._layer[0].dense_weight().detach()

    def forward(self, x: Tensor) -> Tensor:
        """Leave one node in the graph, and padding that a Conv node does not have."""
        if x.dim() == self.axes + 1:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        if x.shape[1] != self.in_channels:
            raise ValueError(f"x of shape {tuple(x.shape)} must have in_channels ({self.in_channels}) on its axis 1")
        x, _ = padded(x, self._layer[0])
        spatial = output_sizes(self._layer[0], x.shape[2:])
        symbolic: Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{CONV_OP}",
            [x],
            attrs={"layer": self.name},
            dtype=x.dtype,
            shape=(x.shape[0], self.out_channels, *spatial),
            version=1,
        )
        return symbolic


def conv_layers(model: nn.Module) -> dict[str, ExportedConv]:
    """The sketched convolutions of a model and those in few bits by their dotted name, as `layers_of`."""
    return {**layers_of(model, SketchedConv), **layers_of(model, StoredConv)}


def output_sizes(layer: ExportedConv, sizes: Sequence[int]) -> list[int]:
    """Spatial sizes of the output for an input to which all padding except `own_padding` was applied."""
    padding = own_padding(layer) or (0,) * layer.axes
    every = zip(sizes, padding, layer.dilation, layer.kernel_size, layer.stride, strict=True)
    return [(size + 2 * pad - apart * (kernel - 1) - 1) // step + 1 for size, pad, apart, kernel, step in every]


@dataclass(frozen=True)
class Step:
    """One Conv node.

    Attributes:
        name: suffix of the name of its constant, after the layer's name.
        weight: (C_out, C_in/groups, *kernel).
        strided: whether it has the stride, the padding and the dilation of the layer.
    """

    name: str
    weight: Array | Kernel
    strided: bool


def branches(layer: ExportedConv, dtype: type[np.floating], *, dense: bool, fold: bool) -> list[list[Step]]:
    """The convolutions of a layer, in sequence; the outputs of several branches are added.

    Args:
        layer: the layer.
        dtype: of the constants.
        dense: one convolution in place of those of its factors.
        fold: its weight as factors, which are multiplied when the file is loaded.
    """
    if dense:
        factors = composed(layer) if fold and isinstance(layer, SketchedConv) and dtype is np.float32 else None
        return [[Step("W", _array(layer.dense_weight(), dtype) if factors is None else factors, strided=True)]]
    if isinstance(layer, StoredConv):
        kernels = [(Stored(kernel, np.dtype(dtype)), whole) for kernel, whole in layer.kernels]
        return [[Step(f"W{i}", kernel, strided=whole) for i, (kernel, whole) in enumerate(kernels)]]
    S1s, U1s, U2s, S2s = layer.all_terms()
    scale, points = 1 / (2 * layer.num_terms), [1] * layer.axes
    up = None if U1s is None else functional.up_weight(U1s) * scale
    down = None if U2s is None else functional.down_weight(U2s, layer.groups) * scale
    up, down = (None if W is None else W.reshape(*W.shape, *points) for W in (up, down))
    if S1s is not None and up is not None and down is not None and S2s is not None and _is_pointwise(layer):
        # one convolution to all intermediate channels and one back, like the two products of a linear layer
        A, B = torch.cat([S1s, down]), torch.cat([up, S2s], dim=1)
        return [[Step("A", _array(A, dtype), strided=True), Step("B", _array(B, dtype), strided=False)]]
    found = []
    if S1s is not None and up is not None:
        found.append([Step("S1", _array(S1s, dtype), strided=True), Step("U1", _array(up, dtype), strided=False)])
    if S2s is not None and down is not None:
        found.append([Step("U2", _array(down, dtype), strided=False), Step("S2", _array(S2s, dtype), strided=True)])
    return found


def weights(layer: ExportedConv, *, dense: bool) -> int:
    """Number of entries of the weights of a plan."""
    if isinstance(layer, StoredConv):
        return layer.dense_entries if dense else layer.stored_entries
    count = layer.parameter_count()
    bias = 0 if layer.bias is None else layer.out_channels
    return (count.dense if dense else count.stored) - bias


def lower_convolutions(
    graph: ir.Graph,
    layers: Mapping[str, ExportedConv],
    dense: Mapping[str, bool],
    dtype: type[np.floating],
    *,
    fold: bool = False,
) -> None:
    """Replace the nodes of sketched convolutions, and of those in few bits, in place by Conv nodes.

    Args:
        graph: is changed.
        layers: by name.
        dense: for each name whether it is computed by one convolution.
        dtype: of the constants.
        fold: as for `branches`.
    """
    builder = Builder(graph, fold=fold)
    made: dict[str, list[list[Step]]] = {}
    constants: dict[str, list[list[ir.Value]]] = {}
    biases: dict[int, Array] = {}
    seen: Counter[str] = Counter()
    for node in list(graph.all_nodes()):
        if (node.domain, node.op_type) != (DOMAIN, CONV_OP):
            continue
        name = str(node.attributes["layer"].as_string())
        layer = layers[name]
        if name not in made:
            made[name] = branches(layer, dtype, dense=dense[name], fold=fold)
            constants[name] = [[_constant(builder, step, f"{name}.{step.name}") for step in b] for b in made[name]]
        bias = None
        if layer.bias is not None:
            array = biases.setdefault(id(layer._parameters.get("bias", name)), _array(layer.bias, dtype))
            bias = builder.shared(array, f"{name}.bias")
        prefix = f"{name}/{seen[name]}" if seen[name] else name
        seen[name] += 1
        _replace(node, _nodes(node, layer, made[name], constants[name], bias, prefix))
    builder.finish()
    graph.opset_imports.pop(DOMAIN, None)


def check_convolutions(optimized: onnx.ModelProto, written: ir.Graph) -> None:
    """Check that the optimized graph has every written convolution.

    Raises:
        ExportError: it has fewer, other than those over constants alone.
    """
    constant: set[int] = set()
    planned = 0
    for node in written.all_nodes():
        if all(value is None or value.const_value is not None or id(value) in constant for value in node.inputs):
            constant.update(map(id, node.outputs))
        elif node.op_type == "Conv":
            planned += 1
    found = sum(node.op_type in _CONV_OPS for node in optimized.graph.node)
    found += sum(
        node.op_type in _CONV_OPS
        for outer in optimized.graph.node
        for attribute in outer.attribute
        for node in attribute.g.node
    )
    if found < planned:
        raise ExportError(
            f"onnxruntime's graph has {found} convolutions, but {planned} were planned; nothing was written"
        )


def _is_pointwise(layer: SketchedConv) -> bool:
    return layer.groups == 1 and all(size == 1 for size in layer.kernel_size)


def _nodes(
    node: ir.Node,
    layer: ExportedConv,
    steps: Sequence[Sequence[Step]],
    constants: Sequence[Sequence[ir.Value]],
    bias: ir.Value | None,
    name: str,
) -> list[ir.Node]:
    """The nodes that compute what a node of a layer does, the result last."""
    made: list[ir.Node] = []
    ends: list[ir.Value] = []
    for branch, weights in zip(steps, constants, strict=True):
        value = first_input(node)
        for step, weight in zip(branch, weights, strict=True):
            # the bias is added once, by the last convolution of the first branch
            inputs = [value, weight, *([bias] if bias is not None and not ends and step is branch[-1] else [])]
            conv = ir.node("Conv", inputs, _attributes(layer, step), name=f"{name}/Conv{len(made)}")
            made.append(conv)
            value = conv.outputs[0]
        ends.append(value)
    while len(ends) > 1:
        made.append(ir.node("Add", ends[:2], name=f"{name}/Add"))
        ends[:2] = [made[-1].outputs[0]]
    for index, new in enumerate(made):
        new.outputs[0].name, new.outputs[0].type = f"{name}.conv{index}", node.outputs[0].type
    return made


def _replace(node: ir.Node, nodes: list[ir.Node]) -> None:
    old, new = node.outputs[0], nodes[-1].outputs[0]
    new.shape = old.shape
    ir.convenience.replace_nodes_and_values(graph_of(node), node, [node], nodes, [old], [new])


def _constant(builder: Builder, step: Step, name: str) -> ir.Value:
    """The weight of a step."""
    if isinstance(step.weight, np.ndarray):
        return builder.shared(step.weight, name)
    return step.weight.emit(builder, name)


def _attributes(layer: ExportedConv, step: Step) -> dict[str, Any]:
    plain = [1] * layer.axes
    found: dict[str, Any] = {"group": layer.groups, "kernel_shape": list(step.weight.shape[2:])}
    if step.strided:
        # the graph already has any other padding as a node
        padding = own_padding(layer) or (0,) * layer.axes
        found |= {"strides": list(layer.stride), "dilations": list(layer.dilation), "pads": [*padding, *padding]}
    else:
        found |= {"strides": plain, "dilations": plain, "pads": [0] * (2 * layer.axes)}
    return found


def _array(tensor: Tensor, dtype: type[np.floating]) -> Array:
    return tensor.detach().cpu().float().contiguous().numpy().astype(dtype)
