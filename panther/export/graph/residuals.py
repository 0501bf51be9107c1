"""Residual additions before a LayerNormalization, kept apart from it on the CPU.

See docs/decisions/0098-fastest-int8.md.
"""

from __future__ import annotations

import onnx_ir as ir

from panther.export.graph.nodes import replace_node

_NORM = "LayerNormalization"


def keep_residuals_apart(graph: ir.Graph) -> None:
    """Write h = x + y before LayerNormalization(h) as Sum, in place.

    onnxruntime fuses an Add there into SkipLayerNormalization, whose CPU kernel is not vectorized: it takes several
    times as long as both operators. It does not fuse a Sum.
    """
    for node in list(graph.all_nodes()):
        if _is_fused(node):
            replace_node(node, ir.node("Sum", list(node.inputs), name=node.name))


def _is_fused(node: ir.Node) -> bool:
    """Whether a node is an Add of two float32 tensors that only a LayerNormalization reads."""
    if node.op_type != "Add" or node.domain not in ("", "ai.onnx") or node.outputs[0].dtype != ir.DataType.FLOAT:
        return False
    output = node.outputs[0]
    if output.is_graph_output() or any(value is None or value.const_value is not None for value in node.inputs):
        return False
    return [(use.node.op_type, use.idx) for use in output.uses()] == [(_NORM, 0)]
