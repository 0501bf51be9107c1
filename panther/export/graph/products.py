"""Lowering of quantized nodes to the products and look-ups of onnxruntime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import onnx
import onnx_ir as ir

from panther.export.errors import ExportError
from panther.export.graph import blocks, int8, tables
from panther.export.graph.constants import Builder
from panther.export.graph.nodes import all_nodes, first_input, graph_of, replace_node
from panther.export.graph.placeholders import QUANTIZED_OP, QuantizedLayer
from panther.export.graph.sketched import is_op, layer_of
from panther.export.graph.trace import Traced
from panther.nn.quantized import BlockEmbedding, BlockLinear

_Kind = tuple[str, blocks.Signature]


def lower_products(traced: Traced) -> None:
    """Replace each quantized layer's nodes in place by one product or look-up."""
    graph = traced.model.graph
    builder = Builder(graph, fold=False)
    integers, of_blocks = int8.IntegerProducts(graph, builder), blocks.BlockProducts(graph, builder)
    for node, layer, name in _products(traced):
        if isinstance(layer, BlockLinear):
            of_blocks.product(node, layer, name)
        elif isinstance(layer, BlockEmbedding):
            tables.look_up(graph, builder, node, layer, name)
        else:
            integers.product(node, layer, name)
    builder.finish()


def lower_dense(traced: Traced) -> None:
    """Replace quantized nodes by products and look-ups with their float weights; two factors by one product."""
    graph = traced.model.graph
    builder = Builder(graph, fold=False)
    products = list(_products(traced))
    pairs = _pairs(traced, [node for node, _, _ in products])
    for node, layer, name in products:
        if node in pairs.values():
            continue
        if isinstance(layer, BlockEmbedding):
            rows = builder.initializer(layer.weight.cpu().float().numpy(), f"{layer_of(node)}.weight")
            replace_node(node, ir.node("Gather", [rows, first_input(node)], name=f"{name}/Gather"))
            continue
        W, source = layer.weight.detach(), node
        if node in pairs:
            source = pairs[node]
            W = W @ traced.quantized[layer_of(source)].weight.detach()
        weight = builder.initializer(W.cpu().float().numpy().T, f"{name}.weight")
        product = ir.node("MatMul", [first_input(source), weight], name=f"{name}/MatMul")
        if layer.bias is None:
            replace_node(node, product)
            continue
        product.outputs[0].type, product.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
        bias = builder.initializer(layer.bias.detach().cpu().float().numpy(), f"{name}.bias")
        graph_of(node).insert_before(node, product)
        replace_node(node, ir.node("Add", [product.outputs[0], bias], name=f"{name}/Add"))
    for first in pairs.values():
        graph_of(first).remove(first, safe=True)
    builder.finish()


def _pairs(traced: Traced, nodes: Sequence[ir.Node]) -> dict[ir.Node, ir.Node]:
    """Node of the first factor by the node of the second factor, if only the second reads the first's output."""
    found = {}
    for node in nodes:
        before = first_input(node).producer()
        name = traced.factors.get(layer_of(node))
        if name is not None and before in nodes and before is not None and layer_of(before) == name:
            output = before.outputs[0]
            if len(output.uses()) == 1 and not output.is_graph_output():
                found[node] = before
    return found


def check_products(optimized: onnx.ModelProto, layers: Mapping[str, QuantizedLayer], used: Counter[str]) -> None:
    """Check that the optimized graph multiplies the quantized layers as planned.

    Args:
        optimized: the graph that onnxruntime runs.
        layers: the quantized layers by name.
        used: number of products of each layer, by its name.

    Raises:
        ExportError: a product is missing.
    """
    found, planned = Counter(map(_kind_of, all_nodes(optimized.graph))), Counter[_Kind]()
    for name, count in used.items():
        planned[_kind(layers[name])] += count
    for kind, count in planned.items():
        if found[kind] < count:
            raise ExportError(
                f"onnxruntime's graph has {found[kind]} {_words(kind)}, but {count} were planned; nothing was written"
            )


def _kind(layer: QuantizedLayer) -> _Kind:
    """The operator of a layer, and the properties that distinguish it from others of that operator."""
    if isinstance(layer, BlockLinear):
        return blocks.OP, blocks.signature(layer)
    return (tables.OP if isinstance(layer, BlockEmbedding) else int8.OP), ()


def _kind_of(node: onnx.NodeProto) -> _Kind:
    return node.op_type, blocks.signature_of(node) if node.op_type == blocks.OP else ()


def _words(kind: _Kind) -> str:
    operator, sizes = kind
    if operator == blocks.OP:
        d_in, d_out, bits, *_ = sizes
        return f"products {d_in}x{d_out} of {bits} bits in blocks"
    return "products of 8-bit integers" if operator == int8.OP else "look-ups in tables of 4 bits"


def uses(traced: Traced) -> Counter[str]:
    """How many nodes each quantized layer has in a graph that is not lowered yet."""
    return Counter(layer_of(node) for node in traced.model.graph.all_nodes() if is_op(node, QUANTIZED_OP))


def dense_entries(layer: QuantizedLayer) -> int:
    """Number of entries of the float weight that it replaces."""
    if isinstance(layer, BlockEmbedding):
        return layer.num_embeddings * layer.embedding_dim
    return layer.in_features * layer.out_features


def block_shapes(layers: Mapping[str, QuantizedLayer], used: Counter[str]) -> Counter[tuple[int, int]]:
    """(d_in, d_out) of the weights in blocks that a graph multiplies by, each counted once."""
    found = {id(layer.weight_packed): layer for name in used if isinstance(layer := layers[name], BlockLinear)}
    return Counter((layer.in_features, layer.out_features) for layer in found.values())


def _products(traced: Traced) -> Iterator[tuple[ir.Node, QuantizedLayer, str]]:
    """The nodes of quantized layers, each with its layer and a name that no other has."""
    seen: Counter[str] = Counter()
    for node in list(traced.model.graph.all_nodes()):
        if is_op(node, QUANTIZED_OP):
            name = layer_of(node)
            yield node, traced.quantized[name], f"{name}/{seen[name]}" if seen[name] else name
            seen[name] += 1
