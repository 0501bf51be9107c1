"""Layers in static int8 as integer products on fixed scales.

See docs/decisions/0068-static-int8.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from panther.export.graph.constants import Array, Builder
from panther.export.graph.nodes import first_input, graph_of, replace_node
from panther.nn.quantized import Int8Linear

# onnxruntime operator: integers in, floats out, with a scale per column and the bias in one kernel
OP, DOMAIN = "MatMulIntegerToFloat", "com.microsoft"


@dataclass
class IntegerProducts:
    """Writes the nodes of layers in static int8; shared parts are written once."""

    graph: ir.Graph
    builder: Builder
    inputs: dict[tuple[int, float, int, bytes], ir.Value] = field(default_factory=dict)
    arrays: dict[int, list[Array]] = field(default_factory=dict)

    def product(self, node: ir.Node, layer: Int8Linear, name: str) -> None:
        """Replace a node by x̂ = QuantizeLinear(x · smoothing), MatMulIntegerToFloat(x̂, Ŵ)."""
        # a nested graph sees the values around it, but not the reverse
        if graph_of(node) is not self.graph:
            self.inputs = {}
        x = first_input(node)
        weight, columns, zeros = self._weight(layer)
        scale, zero_point = _scalar(layer.input_scale, np.float32), _scalar(layer.input_zero_point, np.uint8)
        values = [
            self._rounded(x, layer, name, scale, zero_point, node),
            self.builder.shared(weight, f"{name}.weight_int8"),
            self.builder.initializer(scale, f"{name}.input_scale"),
            self.builder.shared(columns, f"{name}.weight_scale"),
            self.builder.initializer(zero_point, f"{name}.input_zero_point"),
            self.builder.initializer(zeros, f"panther.zeros_{len(zeros)}"),
        ]
        if layer.bias is not None:
            values.append(self.builder.initializer(layer.bias.detach().cpu().float().numpy(), f"{name}.bias"))
        replace_node(node, ir.node(OP, values, domain=DOMAIN, name=f"{name}/{OP}"))
        self.graph.opset_imports.setdefault(DOMAIN, 1)

    def _rounded(
        self, x: ir.Value, layer: Int8Linear, name: str, scale: Array, zero_point: Array, before: ir.Node
    ) -> ir.Value:
        smoothing = None if layer.smoothing is None else layer.smoothing.cpu().float().numpy()
        key = (id(x), float(scale), int(zero_point), b"" if smoothing is None else smoothing.tobytes())
        if key not in self.inputs:
            nodes = []
            if smoothing is not None:
                factor = self.builder.initializer(smoothing, f"{name}.smoothing")
                nodes.append(ir.node("Mul", [x, factor], name=f"{name}/Mul"))
                nodes[0].outputs[0].type = x.type
                nodes[0].outputs[0].shape = x.shape
            ends = [
                self.builder.initializer(scale, f"{name}.input_scale"),
                self.builder.initializer(zero_point, f"{name}.input_zero_point"),
            ]
            source = nodes[0].outputs[0] if nodes else x
            nodes.append(ir.node("QuantizeLinear", [source, *ends], name=f"{name}/QuantizeLinear"))
            graph_of(before).insert_before(before, nodes)
            self.inputs[key] = nodes[-1].outputs[0]
        return self.inputs[key]

    def _weight(self, layer: Int8Linear) -> list[Array]:
        """(d_in, d_out) int8, (d_out,) scales and zeros; the same objects for layers that share them."""
        key = id(layer.weight_int8)
        if key not in self.arrays:
            weight = np.ascontiguousarray(layer.weight_int8.cpu().numpy().T)
            columns = layer.weight_scale.cpu().float().numpy()
            self.arrays[key] = [weight, columns, np.zeros(len(columns), np.int8)]
        return self.arrays[key]


def _scalar(tensor: object, dtype: type[np.generic]) -> Array:
    return np.asarray(tensor, dtype=dtype).reshape(())
