"""Lowering: replace sketched nodes by plain ONNX products, as planned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from torch import Tensor

from panther.export.graph.constants import (
    Array,
    Builder,
    Constant,
    Levels,
    Plain,
    Product,
    SideBySide,
    Signs,
    transposed,
)
from panther.export.graph.names import make_unique
from panther.export.graph.nodes import first_input, graph_of
from panther.export.graph.placeholders import DOMAIN
from panther.export.graph.sketched import OP, WEIGHT_OP, is_op, layer_of
from panther.export.graph.trace import Traced
from panther.linalg import sign_bits
from panther.linalg.levels import integer_levels
from panther.nn import SKLinear

TWO_PRODUCTS, DENSE = "two_products", "dense"


@dataclass(eq=False)
class Site:
    """One linear map of the graph, y = (x @ A) @ B + bias, and where it is used.

    Usually one sketched layer; sketched layers that follow each other directly are one map.

    Attributes:
        layers: names of the layers, in order; the first name of tied layers.
        A: (in_features, rank) constant.
        B: (rank, out_features) constant, 1/(2L) folded in.
        bias: (out_features,) or None.
        nodes: the nodes that compute it; for several layers, the nodes of the last layer.
        tied_biases: by name the biases of further layers that share A and B.
    """

    layers: list[str]
    A: Constant
    B: Constant
    bias: Array | None
    nodes: list[ir.Node] = field(default_factory=list)
    tied_biases: dict[str, Array | None] = field(default_factory=dict)
    _dense: dict[bool, Constant] = field(default_factory=dict, init=False, repr=False)

    @property
    def name(self) -> str:
        """Name of its constants in the graph."""
        return "+".join(self.layers)

    @property
    def in_features(self) -> int:
        """Size of the last axis of x."""
        return self.A.shape[0]

    @property
    def out_features(self) -> int:
        """Size of the last axis of y."""
        return self.B.shape[1]

    def shapes(self, plan: str) -> list[tuple[int, int]]:
        """The shapes of the matrices that a plan multiplies by."""
        return [(self.in_features, self.out_features)] if plan == DENSE else [self.A.shape, self.B.shape]

    def weights(self, plan: str) -> int:
        """Entries of the resident matrices, which are also the multiply-adds for one row."""
        return sum(rows * columns for rows, columns in self.shapes(plan))

    def dense(self, *, transposed_: bool = False) -> Constant:
        """A @ B, (in_features, out_features), or its transpose; the same object each time, as it is stored once."""
        if transposed_ not in self._dense:
            W = Product(self.A, self.B)
            self._dense[transposed_] = transposed(W) if transposed_ else W
        return self._dense[transposed_]

    def bias_at(self, node: ir.Node) -> Array | None:
        """The bias that one of its nodes adds."""
        return self.tied_biases.get(layer_of(node), self.bias)

    def input(self, node: ir.Node) -> ir.Value:
        """The x of one of its nodes."""
        for _ in self.layers[1:]:
            node = _producer(node)
        return first_input(node)


def find_sites(
    traced: Traced, *, dtype: type[np.floating] = np.float32, merge: bool = True, balance: bool = False
) -> list[Site]:
    """The linear maps of a traced graph in order; directly connected layers are one.

    A chain x·A₁·B₁·A₂·B₂ is two products by (A₁·B₁·A₂, B₂) of rank r₂ or by (A₁, B₁·A₂·B₂) of rank r₁. Either takes
    fewer multiply-adds than the four products; the smaller rank takes the fewest.

    Args:
        traced: is not changed.
        dtype: of the constants.
        merge: whether directly connected layers become one site.
        balance: as for `factor_constants`.
    """
    sites: dict[str, Site] = {}
    biases: dict[int, Array] = {}
    for node in traced.model.graph.all_nodes():
        if is_op(node, OP):
            name = layer_of(node)
            first = traced.tied[name]
            if first not in sites:
                layer = traced.layers[first]
                factors = factor_constants(layer, dtype=dtype, balance=balance)
                sites[first] = Site([first], *factors, _bias(layer, biases, dtype))
            if name != first:
                sites[first].tied_biases[name] = _bias(traced.layers[name], biases, dtype)
            sites[first].nodes.append(node)
    if not merge:
        return list(sites.values())
    merged: dict[int, Site] = {}
    for site in sites.values():
        before = _only_source(site, merged)
        whole = site if before is None else _merge(before, site)
        merged.update({id(node): whole for node in site.nodes})
        if before is not None:
            merged = {key: value for key, value in merged.items() if value is not before}
    return list(dict.fromkeys(merged.values()))


def lower(
    traced: Traced, sites: list[Site], plans: Mapping[str, str], *, fold: bool, transpose_dense: bool = False
) -> None:
    """Replace each site's nodes in place by the products of its plan.

    Args:
        traced: whose graph is changed.
        sites: as `find_sites` gave them.
        plans: a plan for each site's name.
        fold: store constants in their compact form, to be folded at load; as plain matrices when False.
        transpose_dense: store the weight of dense layers as (d_out, d_in), as nn.Linear does, and transpose it in the
            product: on CUDA, one row takes up to a quarter less time.
    """
    graph = traced.model.graph
    builder = Builder(graph, fold=fold)
    for site in sites:
        dense = plans[site.name] == DENSE
        gemm = dense and transpose_dense and all(_is_matrix(site.input(node)) for node in site.nodes)
        matrices = _matrices(builder, site, dense=dense, transpose=gemm)
        for index, node in enumerate(site.nodes):
            name = f"{site.name}/{index}" if index else site.name
            bias = site.bias_at(node)
            added = [] if bias is None else [builder.shared(bias, f"{layer_of(node)}.bias")]
            if gemm:
                _replace_by_gemm(node, site.input(node), matrices + added, name=name)
            else:
                _replace(node, site.input(node), matrices + added, has_bias=bool(added), name=name)
    _lower_weights(traced, sites, builder)
    builder.finish()
    # first layers of chains: their outputs are no longer used
    for node in reversed(list(graph.all_nodes())):
        if (is_op(node, OP) or is_op(node, WEIGHT_OP)) and node.graph is not None:
            node.graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
    graph.opset_imports.pop(DOMAIN, None)
    make_unique(graph)


def _lower_weights(traced: Traced, sites: list[Site], builder: Builder) -> None:
    """Insert the dense weight (d_out, d_in) where a model reads a sketched layer's weight as a tensor."""
    read = {site.layers[0]: site for site in sites if len(site.layers) == 1}
    for node in list(traced.model.graph.all_nodes()):
        weight = node.outputs[0]
        if not is_op(node, WEIGHT_OP) or not (weight.uses() or weight.is_graph_output()):
            continue
        name = traced.tied[layer_of(node)]
        if name not in read:
            half = weight.dtype == ir.DataType.FLOAT16
            factors = factor_constants(traced.layers[name], dtype=np.float16 if half else np.float32)
            read[name] = Site([name], *factors, None)
        # computed from A and B, which the file already holds
        W = builder.add(read[name].dense(), f"{name}.W")
        constant = builder.node("Transpose", [W], f"{name}.weight", perm=[1, 0])
        constant.type, constant.shape = weight.type, weight.shape
        if weight.is_graph_output():
            copied = ir.Value(type=weight.type, shape=weight.shape)
            nodes = [ir.node("Identity", [constant], outputs=[copied], name=f"{name}/weight")]
            ir.convenience.replace_nodes_and_values(graph_of(node), node, [node], nodes, [weight], [copied])
        else:
            ir.convenience.replace_all_uses_with(weight, constant)


def _matrices(builder: Builder, site: Site, *, dense: bool, transpose: bool) -> list[ir.Value]:
    """The matrices that x is multiplied by, in order."""
    if dense:
        return [builder.add(site.dense(transposed_=transpose), f"{site.name}.W")]
    return [builder.add(site.A, f"{site.name}.A"), builder.add(site.B, f"{site.name}.B")]


def _bias(layer: SKLinear, known: dict[int, Array], dtype: type[np.floating]) -> Array | None:
    """The bias of a layer; layers that share it get the same object."""
    if layer.bias is None:
        return None
    array = _array(layer.bias, 1.0, dtype)
    parameter = layer._parameters.get("bias")
    # a parametrized bias is a new tensor at each access
    return array if parameter is None else known.setdefault(id(parameter), array)


def factor_constants(
    layer: SKLinear, *, dtype: type[np.floating] = np.float32, balance: bool = False
) -> tuple[Constant, Constant]:
    """A and B of a layer as constants, 1/(2L) folded into B.

    Sign matrices take one bit an entry in the file, integers times steps one byte.

    Args:
        layer: whose terms they are.
        dtype: of the constants.
        balance: scale the halves S1 and U2 of A to the same mean square, and B the other way. Where x @ A is quantized
            in blocks, entries of one block should be of one size: x·U is several times x·S after training from scratch.
    """
    scale = 1 / (2 * layer.num_terms)
    S1, U2 = (terms.transpose(0, 1).flatten(1) for terms in (layer.S1s, layer.U2s))
    U1, S2 = (terms.flatten(0, 1) for terms in (layer.U1s, layer.S2s))
    a, b = (_mean_square_root(S1), _mean_square_root(U2)) if balance else (1.0, 1.0)
    A = SideBySide((_constant(S1, 1 / a, dtype), _constant(U2, 1 / b, dtype)), axis=1)
    B = SideBySide((_constant(U1, a * scale, dtype), _constant(S2, b * scale, dtype)), axis=0)
    return A, B


def _mean_square_root(matrix: Tensor) -> float:
    return float(matrix.detach().double().square().mean().sqrt()) or 1.0


def _constant(matrix: Tensor, scale: float, dtype: type[np.floating]) -> Constant:
    magnitude = sign_bits.sign_magnitude(matrix)
    if magnitude is None:
        found = integer_levels(matrix.detach().cpu())
        if found is None:
            return Plain(_array(matrix, scale, dtype))
        return Levels(found[0].numpy(), _array(found[1], scale, np.float32), np.dtype(dtype))
    rows, columns = matrix.shape
    scaled = _array(matrix.detach().abs().flatten()[:1], scale, dtype).reshape(())
    return Signs(sign_bits.pack_signs(matrix).numpy(), scaled, (rows, columns))


def _array(tensor: Tensor, scale: float, dtype: type[np.floating]) -> Array:
    """Scale in float32, then round to the type of the graph."""
    return (tensor.detach().cpu().float() * scale).contiguous().numpy().astype(dtype)


def _merge(first: Site, second: Site) -> Site:
    (_, rank1), (_, rank2) = first.A.shape, second.A.shape
    between = Product(first.B, second.A)
    A: Constant
    B: Constant
    if rank2 <= rank1:
        A, B = Product(first.A, between), second.B
    else:
        A, B = first.A, Product(between, second.B)
    bias, before = second.bias_at(second.nodes[0]), first.bias_at(first.nodes[0])
    if before is not None:
        through = before.astype(np.float64) @ second.A.value() @ second.B.value()
        bias = (through + (0 if bias is None else bias)).astype(before.dtype)
    return Site([*first.layers, *second.layers], A, B, bias, second.nodes)


def _only_source(site: Site, sites: Mapping[int, Site]) -> Site | None:
    """The site that feeds this one and nothing else."""
    if len(site.nodes) != 1:
        return None
    x = first_input(site.nodes[0])
    producer = x.producer()
    before = sites.get(id(producer))
    if before is None or len(before.nodes) != 1 or len(x.uses()) != 1 or x.is_graph_output():
        return None
    return before


def _replace(node: ir.Node, x: ir.Value, factors: list[ir.Value], *, has_bias: bool, name: str) -> None:
    output = node.outputs[0]
    nodes: list[ir.Node] = []
    value = x
    for index, factor in enumerate(factors):
        op = "Add" if has_bias and index == len(factors) - 1 else "MatMul"
        # a separate name: the layer's constants have the plain ones
        result = ir.Value(name=f"{name}.{op.lower()}{index}", type=output.type)
        nodes.append(ir.node(op, [value, factor], outputs=[result], name=f"{name}/{op}{index}"))
        value = result
    value.shape = output.shape
    ir.convenience.replace_nodes_and_values(graph_of(node), node, [node], nodes, [output], [value])


def _replace_by_gemm(node: ir.Node, x: ir.Value, factors: list[ir.Value], *, name: str) -> None:
    output = node.outputs[0]
    result = ir.Value(name=f"{name}.gemm", type=output.type, shape=output.shape)
    gemm = ir.node("Gemm", [x, *factors], {"transB": 1}, outputs=[result], name=f"{name}/Gemm")
    ir.convenience.replace_nodes_and_values(graph_of(node), node, [node], [gemm], [output], [result])


def _is_matrix(value: ir.Value) -> bool:
    return value.shape is not None and value.shape.rank() == 2


def _producer(node: ir.Node) -> ir.Node:
    producer = first_input(node).producer()
    if producer is None:
        raise TypeError(f"the input of node {node.name!r} is computed by no node")
    return producer
