"""Embeddings in blocks of 4 bits as GatherBlockQuantized of onnxruntime."""

from __future__ import annotations

import onnx_ir as ir
from torch import Tensor

from panther.export.graph.constants import Builder
from panther.export.graph.nodes import first_input, replace_node
from panther.export.graph.sketched import layer_of
from panther.nn.quantized import BlockEmbedding

OP, DOMAIN = "GatherBlockQuantized", "com.microsoft"


def look_up(graph: ir.Graph, builder: Builder, node: ir.Node, table: BlockEmbedding, name: str) -> None:
    """Replace a node by GatherBlockQuantized(table, indices), which unpacks only the rows that it looks up.

    Args:
        graph: the graph of the node.
        builder: writes the constants of the graph.
        node: its first input are the indices.
        table: the embedding.
        name: a unique name for the new node.
    """

    def stored(tensor: Tensor, part: str) -> ir.Value:
        # equal constants with the same name are stored once
        return builder.initializer(tensor.cpu().numpy(), f"{layer_of(node)}.{part}")

    values = [
        stored(table.weight_packed, "weight_packed"),
        first_input(node),
        stored(table.weight_scale, "weight_scale"),
        stored(table.weight_zero_point, "weight_zero_point"),
    ]
    attributes = {"bits": table.bits, "block_size": table.block_size, "gather_axis": 0, "quantize_axis": 1}
    replace_node(node, ir.node(OP, values, attributes, domain=DOMAIN, name=f"{name}/{OP}"))
    graph.opset_imports.setdefault(DOMAIN, 1)
