"""Nodes of a graph: location, inputs and replacement."""

from __future__ import annotations

import onnx
import onnx_ir as ir


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph of a node.

    Raises:
        TypeError: it is in no graph.
    """
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        raise TypeError(f"node {node.name!r} is in no graph")
    return graph


def first_input(node: ir.Node) -> ir.Value:
    """The first input of a node.

    Raises:
        TypeError: it has none.
    """
    x = node.inputs[0]
    if x is None:
        raise TypeError(f"node {node.name!r} has no input")
    return x


def replace_node(node: ir.Node, new: ir.Node) -> None:
    """Put a node in the place of another; its output takes over name, type and shape."""
    old, output = node.outputs[0], new.outputs[0]
    output.type, output.shape = old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph_of(node), node, [node], [new], [old], [output])


def all_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes of a graph and of the graphs nested in it."""
    found = []
    for node in graph.node:
        found.append(node)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += all_nodes(attribute.g)
    return found
