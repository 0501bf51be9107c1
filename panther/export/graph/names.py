"""Unique names of values: inputs and outputs keep the caller's, others are renamed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir


def name_inputs_and_outputs(graph: ir.Graph, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Name the inputs and outputs of a graph.

    An output that is an input, a constant, or another output as well becomes a copy, since a value has one name.
    """
    for value, name in zip(graph.inputs, inputs, strict=True):
        value.name = name
    for index, name in enumerate(outputs):
        value = graph.outputs[index]
        if value.is_graph_input() or value.is_initializer() or any(value is other for other in graph.outputs[:index]):
            copied = ir.Value(shape=value.shape, type=value.type)
            graph.append(ir.node("Identity", [value], outputs=[copied], name=f"{name}/Identity"))
            graph.outputs[index] = value = copied
        value.name = name


def make_unique(graph: ir.Graph) -> None:
    """Rename values that share a name with an input, an output or another value; nested graphs see outer names."""
    ends = {id(value) for value in (*graph.inputs, *graph.outputs)}
    taken = {value.name or "" for value in (*graph.inputs, *graph.outputs)}
    values = [value for value in _values(graph) if id(value) not in ends]
    used = taken | {value.name for value in values if value.name}
    for value in values:
        name = value.name or "value"
        if value.name is None or name in taken:
            number = 1
            while f"{name}_{number}" in used:
                number += 1
            name = value.name = f"{name}_{number}"
            used.add(name)
        taken.add(name)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Values defined in a graph and its nested graphs, each once, without the inputs of the outermost graph."""
    yield from list(graph.initializers.values())
    for node in graph:
        yield from node.outputs
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                inner = attribute.as_graph()
                yield from inner.inputs
                yield from _values(inner)
