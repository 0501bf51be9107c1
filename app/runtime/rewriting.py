"""Rewrite models in memory if onnxruntime or the protocol does not support them unchanged.

- Classifiers of scikit-learn, LightGBM and CatBoost end in ``ZipMap``, which outputs a sequence of maps. The output
  becomes the tensor of probabilities, and the names of the classes go into the metadata.
- ``StringNormalizer`` requires the locale en_US.UTF-8, which slim images lack. It gets C.UTF-8, which maps the same
  letters.

Source: onnx.proto3, onnx-ml.proto3.
"""

import json
from pathlib import Path
from typing import Any

from app.runtime import protobuf
from app.runtime.protobuf import BYTES, VARINT, Message
from app.system.files import read_regular

CLASSES_KEY = "panther.classes"
"""Metadata of a rewritten model: the names of the classes by output, as JSON."""
_LOCALE = b"C.UTF-8"
_NO_LOCALE = "Failed to construct locale"
_MAPS = "seq(map("

# Field numbers of ModelProto, GraphProto, NodeProto, AttributeProto, ValueInfoProto and their parts.
_GRAPH, _OPSETS, _METADATA = 7, 8, 14
_NODES, _INPUTS, _OUTPUTS, _INITIALIZERS = 1, 11, 12, 5
_NODE_INPUTS, _NODE_OUTPUTS, _OP_TYPE, _ATTRIBUTES, _DOMAIN = 1, 2, 4, 5, 7
_ATTRIBUTE_NAME, _STRING, _INTS, _STRINGS, _KIND = 1, 4, 8, 9, 20
_NAME, _TYPE = 1, 2
_TENSOR_TYPE, _ELEMENT, _SHAPE, _DIMENSIONS, _SIZE, _SYMBOL = 1, 1, 2, 1, 1, 2
_FLOAT, _IS_STRING = 1, 3
_OPSET = 13  # of the default domain, if a model declares none


def ends_in_maps(session: Any) -> bool:
    """Whether an output of a session is a sequence of maps."""
    return any(node.type.startswith(_MAPS) for node in session.get_outputs())


def lacks_locale(error: Exception) -> bool:
    """Whether a session failed because this machine lacks the locale that the model requires."""
    return _NO_LOCALE in str(error)


def with_locale(content: bytes) -> bytes:
    """Rewrite ``StringNormalizer`` nodes to a locale that every glibc has.

    Raises:
        ValueError: The bytes are not a model.
    """
    model = protobuf.parse(content)
    return _with_graph(model, [_normalized(field) for field in _graph(model)])


def without_maps(content: bytes) -> bytes:
    """Rewrite ``ZipMap`` nodes to pass on their input tensor.

    Raises:
        ValueError: The bytes are not a model, or a ``ZipMap`` names no classes.
    """
    model = protobuf.parse(content)
    graph, classes = _graph(model), {}
    first = next((_dimension(value) for value in protobuf.submessages(graph, _INPUTS)), [])
    fields: Message = []
    for number, wire, value in graph:
        node = protobuf.parse(value) if number == _NODES and isinstance(value, bytes) else []
        if protobuf.texts(node, _OP_TYPE) == ["ZipMap"]:
            (output,) = protobuf.texts(node, _NODE_OUTPUTS)
            classes[output] = _class_names(node)
            value = protobuf.serialise(_identity(node))  # noqa: PLW2901 - the rewritten field
        fields.append((number, wire, value))
    fields = [_tensor_output(field, classes, first) for field in fields]
    entry: Message = [(1, BYTES, CLASSES_KEY.encode()), (2, BYTES, json.dumps(classes).encode())]
    model = [*_with_default_domain(model), (_METADATA, BYTES, protobuf.serialise(entry))]
    return _with_graph(model, fields)


def class_names(metadata: str | None) -> dict[str, list[str]]:
    """The names of the classes by output, as ``without_maps`` wrote them; empty if nothing was rewritten."""
    return {} if metadata is None else dict(json.loads(metadata))


def unranked(path: Path) -> frozenset[str]:
    """Inputs and outputs of a model without any shape; onnxruntime reports them as scalars.

    Raises:
        OSError, ValueError: The file is not readable or not a model.
    """
    graph = _graph(protobuf.parse(read_regular(path)))
    found = set()
    for number in (_INPUTS, _OUTPUTS):
        for value in protobuf.submessages(graph, number):
            for tensor in _tensor_types(value):
                if not protobuf.raw(tensor, _SHAPE):
                    found.update(protobuf.texts(value, _NAME))
    return frozenset(found)


def _graph(model: Message) -> Message:
    graphs = protobuf.submessages(model, _GRAPH)
    if len(graphs) != 1:
        raise ValueError("the file has no graph")
    return graphs[0]


def _with_graph(model: Message, graph: Message) -> bytes:
    rest = [field for field in model if field[0] != _GRAPH]
    return protobuf.serialise([*rest, (_GRAPH, BYTES, protobuf.serialise(graph))])


def _with_default_domain(model: Message) -> Message:
    """Add a version of the default domain, which ``Identity`` requires."""
    domains = [protobuf.texts(opset, 1) for opset in protobuf.submessages(model, _OPSETS)]
    if [""] in domains or [] in domains or ["ai.onnx"] in domains:
        return model
    return [*model, (_OPSETS, BYTES, protobuf.serialise([(1, BYTES, b""), (2, VARINT, _OPSET)]))]


def _identity(node: Message) -> Message:
    """A node rewritten to the ``Identity`` of its input."""
    kept = [field for field in node if field[0] not in {_OP_TYPE, _ATTRIBUTES, _DOMAIN}]
    return [*kept, (_OP_TYPE, BYTES, b"Identity")]


def _class_names(node: Message) -> list[str]:
    """The class names in the attributes of a ``ZipMap``; integers as decimal strings."""
    for attribute in protobuf.submessages(node, _ATTRIBUTES):
        (name,) = protobuf.texts(attribute, _ATTRIBUTE_NAME)
        if name == "classlabels_strings":
            return protobuf.texts(attribute, _STRINGS)
        if name == "classlabels_int64s":
            return [str(value - 2**64 if value >= 2**63 else value) for value in protobuf.integers(attribute, _INTS)]
    raise ValueError("a ZipMap names no classes")


def _tensor_types(value_info: Message) -> list[Message]:
    return [
        tensor
        for kind in protobuf.submessages(value_info, _TYPE)
        for tensor in protobuf.submessages(kind, _TENSOR_TYPE)
    ]


def _dimension(value_info: Message) -> Message:
    """The first dimension of an input if it is dynamic; otherwise an unnamed dynamic dimension."""
    for tensor in _tensor_types(value_info):
        for shape in protobuf.submessages(tensor, _SHAPE):
            for dimension in protobuf.submessages(shape, _DIMENSIONS):
                return [field for field in dimension if field[0] == _SYMBOL]
    return []


def _tensor_output(
    field: tuple[int, int, int | bytes], classes: dict[str, list[str]], first: Message
) -> tuple[int, int, int | bytes]:
    """An output of the graph as a tensor of probabilities, if a ``ZipMap`` made it."""
    number, wire, value = field
    if number != _OUTPUTS or not isinstance(value, bytes):
        return field
    (name,) = protobuf.texts(protobuf.parse(value), _NAME)
    if name not in classes:
        return field
    dimensions: list[Message] = [first, [(_SIZE, VARINT, len(classes[name]))]]
    shape: Message = [(_DIMENSIONS, BYTES, protobuf.serialise(dimension)) for dimension in dimensions]
    tensor: Message = [(_ELEMENT, VARINT, _FLOAT), (_SHAPE, BYTES, protobuf.serialise(shape))]
    kind: Message = [(_TENSOR_TYPE, BYTES, protobuf.serialise(tensor))]
    info: Message = [(_NAME, BYTES, name.encode()), (_TYPE, BYTES, protobuf.serialise(kind))]
    return number, wire, protobuf.serialise(info)


def _normalized(field: tuple[int, int, int | bytes]) -> tuple[int, int, int | bytes]:
    """A node with an available locale, if it is a ``StringNormalizer``."""
    number, wire, value = field
    if number != _NODES or not isinstance(value, bytes):
        return field
    node = protobuf.parse(value)
    if protobuf.texts(node, _OP_TYPE) != ["StringNormalizer"]:
        return field
    kept = [
        (known, kind, content)
        for known, kind, content in node
        if known != _ATTRIBUTES
        or not isinstance(content, bytes)
        or protobuf.texts(protobuf.parse(content), _ATTRIBUTE_NAME) != ["locale"]
    ]
    locale: Message = [
        (_ATTRIBUTE_NAME, BYTES, b"locale"),
        (_STRING, BYTES, _LOCALE),
        (_KIND, VARINT, _IS_STRING),
    ]
    return number, wire, protobuf.serialise([*kept, (_ATTRIBUTES, BYTES, protobuf.serialise(locale))])
