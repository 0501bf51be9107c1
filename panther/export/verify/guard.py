"""The guard: checks that the graph that onnxruntime runs, after its own optimization, is the planned one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import onnx
import onnx_ir as ir
from torch import nn

from panther.export.errors import ExportError
from panther.export.graph.lower import DENSE, Site

Shape = tuple[int, int]
_PRODUCTS = frozenset({"MatMul", "Gemm", "FusedGemm", "FusedMatMul", "MatMulNBits", "MatMulInteger", "QGemm"})


def check_values(model: nn.Module) -> None:
    """Check that a model's weights are finite; buffers may hold infinities, as attention masks do.

    Raises:
        ExportError: a parameter holds NaN or an infinity as float32, or a buffer NaN.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta or not tensor.is_floating_point():
            continue
        wrong = tensor.isnan() if not isinstance(tensor, nn.Parameter) else ~tensor.isfinite()
        if bool(wrong.any()):
            raise ExportError(
                f"{name!r} holds values that are not finite as float32 ({int(wrong.sum())} of {tensor.numel()}); "
                "nothing was written"
            )


def check_graph(
    optimized: onnx.ModelProto, sites: Sequence[Site], plans: Mapping[str, str], others: Counter[Shape]
) -> None:
    """Check that the optimized graph holds the planned products, with nothing densified or left to unpack.

    Args:
        optimized: what onnxruntime runs.
        sites: the linear maps of sketched layers that are computed at each run.
        plans: a plan for each site's name.
        others: shapes of the constant matrices of products that belong to no site, before optimization.

    Raises:
        ExportError: a planned product is not there, a matrix of a dense layer is there that was to be two products,
            or constants are computed again at every run.
    """
    found = product_shapes(optimized.graph)
    planned = Counter(shape for site in sites for shape in site.shapes(plans[site.name]))
    for site in sites:
        for shape in site.shapes(plans[site.name]):
            if found[shape] < planned[shape]:
                raise ExportError(
                    f"layer {site.name!r}: onnxruntime's graph has {found[shape]} products by constants of shape "
                    f"{shape}, but {planned[shape]} were planned; nothing was written"
                )
        dense = site.shapes(DENSE)[0]
        if found[dense] > planned[dense] + others[dense]:
            raise ExportError(
                f"layer {site.name!r}: onnxruntime folded its factors into a dense {dense[0]}x{dense[1]} matrix; "
                "nothing was written"
            )
    leftover = sorted(set(_unpacking_nodes(optimized.graph)))
    if leftover:
        raise ExportError(
            f"onnxruntime computes constants again at every run: {', '.join(leftover)}; nothing was written"
        )


def product_shapes(graph: onnx.GraphProto) -> Counter[Shape]:
    """How many constant matrices of each (rows, columns) the products of a graph multiply by, each counted once."""
    shapes = {initializer.name: tuple(initializer.dims) for initializer in graph.initializer}
    seen: dict[str, Shape] = {}
    for node in _nodes(graph):
        if node.op_type not in _PRODUCTS or len(node.input) < 2:
            continue
        name = node.input[1]
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type == "MatMulNBits":
            seen[name] = (attributes["K"], attributes["N"])
        elif len(shapes.get(name, ())) == 2:
            rows, columns = shapes[name]
            seen[name] = (columns, rows) if attributes.get("transB") else (rows, columns)
    return Counter(seen.values())


def constant_products(graph: ir.Graph) -> Counter[Shape]:
    """Constant products of a graph that is still being made.

    A matrix that is used as it is and by a Transpose counts twice: onnxruntime folds the Transpose into a second one.
    """
    seen: dict[tuple[int, bool], Shape] = {}
    # includes values computed from constants alone, such as a parametrized weight, which are folded at load
    constant = constant_values(graph)
    for node in graph.all_nodes():
        if node.op_type not in _PRODUCTS or len(node.inputs) < 2 or node.inputs[1] is None:
            continue
        matrix = node.inputs[1]
        transposed = "transB" in node.attributes and node.attributes["transB"].as_int() == 1
        producer = matrix.producer()
        by_transpose = False
        if producer is not None and producer.op_type == "Transpose" and producer.inputs[0] is not None:
            matrix, transposed, by_transpose = producer.inputs[0], not transposed, True
        shape = matrix.shape
        known = matrix.const_value is not None or id(matrix) in constant
        if known and shape is not None and shape.rank() == 2 and shape.is_static():
            rows, columns = shape.numpy()
            seen[id(matrix), by_transpose] = (columns, rows) if transposed else (rows, columns)
    return Counter(seen.values())


def constant_values(graph: ir.Graph) -> set[int]:
    """The ids of the values that nodes compute from constants alone."""
    constant: set[int] = set()
    for node in graph.all_nodes():
        if all(value is None or value.const_value is not None or id(value) in constant for value in node.inputs):
            constant.update(map(id, node.outputs))
    return constant


def runtime_sites(graph: ir.Graph, sites: Sequence[Site]) -> list[Site]:
    """The sites that are computed at each run; a layer over constants, as over a table of positions, is folded at load.

    Args:
        graph: before it is lowered.
        sites: as `find_sites` gave them.
    """
    constant = constant_values(graph)

    def varies(value: ir.Value) -> bool:
        return value.const_value is None and id(value) not in constant

    return [site for site in sites if any(varies(site.input(node)) for node in site.nodes)]


def _unpacking_nodes(graph: onnx.GraphProto) -> Iterator[str]:
    """Nodes that compute something from a constant matrix and other constants, such as packed signs.

    Where the CPU has no kernel for float16, it casts scalars and vectors to float32 at every run; they cost nothing.
    """
    rank = {initializer.name: len(initializer.dims) for initializer in graph.initializer}
    for node in graph.node:
        names = [name for name in node.input if name]
        if all(name in rank for name in names) and any(rank[name] == 2 for name in names):
            yield f"{node.op_type} {node.name!r}"


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)
