"""Linear layers in blocks of 4 or 8 bits as MatMulNBits nodes of onnxruntime.

See docs/decisions/0069-weights-in-blocks.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx
import onnx_ir as ir
from torch import Tensor

from panther.export.graph.constants import Array, Builder
from panther.export.graph.nodes import first_input, replace_node
from panther.nn.quantized import BlockLinear

OP, DOMAIN = "MatMulNBits", "com.microsoft"
# onnxruntime's accuracy levels: float activations, or 8 bits with a scale for each block of a row
_FLOAT, _INT8 = 1, 4

Signature = tuple[int, ...]


@dataclass
class BlockProducts:
    """Writes the nodes of layers in blocks; shared parts are written once."""

    graph: ir.Graph
    builder: Builder
    arrays: dict[int, Array] = field(default_factory=dict)

    def product(self, node: ir.Node, layer: BlockLinear, name: str) -> None:
        """Replace a node by MatMulNBits(x, Ŵ), which adds the bias."""
        zeros = layer.weight_zero_point
        values: list[ir.Value | None] = [
            first_input(node),
            self._shared(layer.weight_packed, f"{name}.weight_packed"),
            self._shared(layer.weight_scale, f"{name}.weight_scale"),
            None if zeros is None else self._shared(zeros, f"{name}.weight_zero_point"),
        ]
        if layer.bias is not None:
            # the fifth input, a column order, is not used
            values += [None, self.builder.initializer(layer.bias.detach().cpu().float().numpy(), f"{name}.bias")]
        while values[-1] is None:
            values.pop()
        attributes = dict(zip(("K", "N", "bits", "block_size", "accuracy_level"), signature(layer), strict=True))
        replace_node(node, ir.node(OP, values, attributes, domain=DOMAIN, name=f"{name}/{OP}"))
        self.graph.opset_imports.setdefault(DOMAIN, 1)

    def _shared(self, tensor: Tensor, name: str) -> ir.Value:
        """A constant; the same object for layers that share it."""
        array = self.arrays.setdefault(id(tensor), tensor.cpu().numpy())
        return self.builder.shared(array, name)


def signature(layer: BlockLinear) -> Signature:
    """K (d_in), N (d_out), bits, block size and accuracy level of the MatMulNBits node of a layer."""
    level = _FLOAT if layer.activation_bits is None else _INT8
    return layer.in_features, layer.out_features, layer.bits, layer.block_size, level


def signature_of(node: onnx.NodeProto) -> Signature:
    """The signature of a node."""
    found = {attribute.name: attribute.i for attribute in node.attribute}
    return tuple(found.get(name, 0) for name in ("K", "N", "bits", "block_size", "accuracy_level"))
