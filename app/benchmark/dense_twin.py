"""The dense twin of a loaded model: the same graph with one random matrix per sketched layer instead of two.

It is made from the optimized graph of onnxruntime: its folded constants are the matrices A and B of each layer.
Field numbers are those of onnx.proto.

See docs/decisions/0030-dense-twin-by-graph-editing.md.
"""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime as ort

from app.errors import BenchmarkError
from app.runtime import protobuf
from app.runtime.card import Card, Layer
from app.runtime.protobuf import BYTES, VARINT, Message

_GRAPH = 7  # of ModelProto
_NODE, _INITIALIZER, _OUTPUT = 1, 5, 12  # of GraphProto
_IN, _OUT, _NAME, _OP = 1, 2, 3, 4  # of NodeProto
_DIMS, _TYPE, _TENSOR_NAME, _RAW = 1, 2, 8, 9  # of TensorProto
_TYPES = {1: "<f4", 10: "<f2"}
_PRODUCTS = {"MatMul", "Gemm"}


@dataclass
class Site:
    """Sketched layers that the graph computes by one pair of matrices; several if a chain was merged."""

    layers: list[Layer] = field(default_factory=list)

    @property
    def sizes(self) -> list[int]:
        """Number of features before the first layer and after each."""
        return [self.layers[0].in_features, *(layer.out_features for layer in self.layers)]

    def fits(self, rows: int, rank: int, columns: int) -> bool:
        """Whether matrices of (rows, rank) and (rank, columns) match this site."""
        first = self.layers[0]
        known = len(self.layers) > 1 or rank == 2 * first.num_terms * first.low_rank
        return known and (rows, columns) == (self.sizes[0], self.sizes[-1])


def sites(card: Card) -> list[Site]:
    """The sites of a card that are not already dense, in its order."""
    found = {layer.name: Site([layer]) for layer in card.layers if layer.plan == "two_products"}
    for layer in card.layers:
        if layer.plan == "merged" and layer.merged_into in found:
            found[layer.merged_into].layers.append(layer)
    return list(found.values())


def twin_weights(wanted: list[Site]) -> int:
    """Number of elements in the dense matrices of the sites."""
    return sum(rows * columns for site in wanted for rows, columns in zip(site.sizes, site.sizes[1:], strict=False))


@contextmanager
def in_memory(name: str) -> Iterator[str]:
    """Path of a file in memory, because the served file system is read-only."""
    descriptor = os.memfd_create(name)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def folded(path: Path) -> bytes:
    """The graph of a file with folded constants.

    Raises:
        BenchmarkError: The runtime cannot write it.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    try:
        with in_memory("folded") as target:
            options.optimized_model_filepath = target
            ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            return Path(target).read_bytes()
    except Exception as error:  # onnxruntime raises many kinds
        raise BenchmarkError("onnxruntime can't write the graph of this model") from error


def dense_twin(model: bytes, wanted: list[Site], rng: np.random.Generator) -> bytes:
    """Replace every pair of matrices of a site by a random matrix.

    Args:
        model: Model with folded constants, see ``folded``.
        wanted: The sites, see ``sites``.
        rng: Generator of the weights.

    Raises:
        BenchmarkError: A site is not found in the graph.
    """
    document = protobuf.parse(model)
    (graph,) = protobuf.submessages(document, _GRAPH)
    nodes = protobuf.submessages(graph, _NODE)
    tensors = {protobuf.texts(tensor, _TENSOR_NAME)[0]: tensor for tensor in protobuf.submessages(graph, _INITIALIZER)}
    shapes = {name: protobuf.integers(tensor, _DIMS) for name, tensor in tensors.items()}
    makers = {output: node for node in nodes for output in protobuf.texts(node, _OUT)}
    uses = Counter(name for node in nodes for name in protobuf.texts(node, _IN))
    left = list(wanted)
    made: dict[tuple[str, str], list[str]] = {}
    dead: set[int] = set()
    fresh: list[Message] = []
    new_nodes: list[Message] = []
    for node in nodes:
        pair = _pair(node, makers, shapes)
        if pair is None:
            new_nodes.append(node)
            continue
        first, a, b = pair
        names = made.get((a, b))
        if names is None:
            site = next((one for one in left if one.fits(shapes[a][0], shapes[a][1], shapes[b][1])), None)
            kind = protobuf.integers(tensors[b], _TYPE)
            if site is None or kind[0] not in _TYPES:
                new_nodes.append(node)
                continue
            left.remove(site)
            names = made[a, b] = [f"{site.layers[0].name}.dense{index}" for index in range(len(site.layers))]
            shape = zip(site.sizes, site.sizes[1:], strict=False)
            fresh += [_random(name, size, kind[0], rng) for name, size in zip(names, shape, strict=True)]
        if uses[protobuf.texts(first, _OUT)[0]] == 1:
            dead.add(id(first))
        new_nodes += _chain(node, protobuf.texts(first, _IN)[0], names)
    if left:
        raise BenchmarkError(f"layer {left[0].layers[0].name!r} is not in the running graph: it has no dense twin")
    new_nodes = [node for node in new_nodes if id(node) not in dead]
    used = {name for node in new_nodes for name in protobuf.texts(node, _IN)}
    used |= {name for output in protobuf.submessages(graph, _OUTPUT) for name in protobuf.texts(output, 1)}
    kept = [tensor for name, tensor in tensors.items() if name in used] + fresh
    rest = [part for part in graph if part[0] not in {_NODE, _INITIALIZER}]
    whole: Message = [(_NODE, BYTES, protobuf.serialise(node)) for node in new_nodes]
    whole += [(_INITIALIZER, BYTES, protobuf.serialise(tensor)) for tensor in kept]
    return protobuf.serialise(
        [part for part in document if part[0] != _GRAPH] + [(_GRAPH, BYTES, protobuf.serialise(whole + rest))]
    )


def _pair(node: Message, makers: dict[str, Message], shapes: dict[str, list[int]]) -> tuple[Message, str, str] | None:
    """The product before this one, and the constants A and B, if both are products by a constant matrix."""
    if protobuf.texts(node, _OP)[0] not in _PRODUCTS:
        return None
    source, b = protobuf.texts(node, _IN)[:2]
    first = makers.get(source)
    if first is None or protobuf.texts(first, _OP)[0] != "MatMul":
        return None
    a = protobuf.texts(first, _IN)[1]
    left, right = shapes.get(a, []), shapes.get(b, [])
    return (first, a, b) if len(left) == len(right) == 2 and left[1] == right[0] else None


def _random(name: str, shape: tuple[int, int], kind: int, rng: np.random.Generator) -> Message:
    weight = rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[0]))
    return [
        *((_DIMS, VARINT, size) for size in shape),
        (_TYPE, VARINT, kind),
        (_TENSOR_NAME, BYTES, name.encode()),
        (_RAW, BYTES, weight.astype(_TYPES[kind]).tobytes()),
    ]


def _chain(node: Message, source: str, names: list[str]) -> Iterator[Message]:
    """A product per matrix; the last one is the node itself, with another matrix."""
    (output,) = protobuf.texts(node, _OUT)
    for index, name in enumerate(names[:-1]):
        step = f"{output}/dense{index}"
        yield [
            (_IN, BYTES, source.encode()),
            (_IN, BYTES, name.encode()),
            (_OUT, BYTES, step.encode()),
            (_OP, BYTES, b"MatMul"),
        ]
        source = step
    inputs = [source, names[-1], *protobuf.texts(node, _IN)[2:]]
    yield [*((_IN, BYTES, name.encode()) for name in inputs), *(part for part in node if part[0] != _IN)]
