"""The parts of an ONNX file that the proof reads: graphs, nodes, functions and small constants.

Attributes are parsed on demand, which skips the millions of numbers in a tree ensemble. Source:
onnx.proto3.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from app.runtime.independence.reader import (
    Budget,
    Content,
    Fields,
    Span,
    content,
    contents,
    fields,
    first_text,
    floats,
    integer,
    signed,
    text,
    texts,
)

MAX_ELEMENTS = 1024
_EXTERNAL = 1
# Types of constants that are read: float, int32, int64, bool, double. Shape arithmetic uses no other type.
_TYPES: dict[int, str] = {1: "<f4", 6: "<i4", 7: "<i8", 9: "<?", 11: "<f8"}
_LISTS, _ATTRIBUTE = (1, 2), 5  # of NodeProto: inputs, outputs; attributes
_NAMES = {3: "name", 4: "op_type", 7: "domain", 8: "overload"}
_TENSOR_TYPE, _SEQUENCE_TYPE, _OPTIONAL_TYPE = 1, 4, 9

Array = npt.NDArray[np.object_]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A constant: its shape, and its elements if there are few."""

    name: str
    shape: tuple[int, ...]
    elements: Array | None


@dataclass(frozen=True, slots=True)
class ValueInfo:
    """An input or output of the graph. A dimension is a size, a name, or None; ``shape`` None is an unknown rank."""

    name: str
    shape: tuple[int | str | None, ...] | None
    is_tensor: bool


@dataclass(frozen=True)
class Attribute:
    """One attribute of a node, parsed on demand."""

    message: Fields
    budget: Budget

    @property
    def reference(self) -> str:
        """Name of the function attribute that supplies the value."""
        return text(self.message, 21)

    @property
    def kind(self) -> int:
        """Type of the value, ``AttributeProto.AttributeType``."""
        return integer(self.message, 20)

    def integer(self) -> int:
        """The integer value."""
        return integer(self.message, 3)

    def number(self) -> float:
        """The floating-point value."""
        found = floats(self.message, 2)
        return found[-1] if found else 0.0

    def string(self) -> str:
        """The string value."""
        return text(self.message, 4)

    def integers(self) -> list[int]:
        """The list of integers."""
        return signed(self.message, 8)

    def numbers(self) -> list[float]:
        """The list of floating-point numbers."""
        return floats(self.message, 7)

    def strings(self) -> list[str]:
        """The list of strings."""
        return texts(self.message, 9)

    def tensor(self) -> TensorInfo | None:
        """The tensor value."""
        found = content(self.message, 5)
        return None if found is None else read_tensor(found, self.budget)

    @cached_property
    def graph(self) -> "Graph | None":
        """The graph value."""
        found = content(self.message, 6)
        return None if found is None else Graph(fields(found, self.budget), self.budget)


class Node:
    """A call of an operator.

    Attributes:
        inputs: Names of the inputs; an omitted input has an empty name.
        outputs: Names of the outputs.
        name: Name of the node, often empty.
        op_type: Name of the operator.
        domain: Domain of the operator; the domain of ONNX itself is empty.
        overload: Selects among functions with the same name.
    """

    __slots__ = (
        "_budget",
        "_messages",
        "_parsed",
        "_unread",
        "domain",
        "inputs",
        "name",
        "op_type",
        "outputs",
        "overload",
    )

    def __init__(self, message: Fields, budget: Budget) -> None:
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self.name = self.op_type = self.domain = self.overload = ""
        self._unread: list[Content] = []
        self._messages: dict[str, Content] | None = None
        self._parsed: dict[str, Attribute] = {}
        self._budget = budget
        for number, _, value in message:
            if isinstance(value, int):
                continue
            if number == _ATTRIBUTE:
                self._unread.append(value)
            elif number in _LISTS or number in _NAMES:
                if isinstance(value, Span):
                    raise ValueError("a node name is longer than 4 kB, the limit")
                if number in _LISTS:
                    (self.inputs if number == 1 else self.outputs).append(value.decode())
                else:
                    setattr(self, _NAMES[number], value.decode())
        if self.domain == "ai.onnx":
            self.domain = ""

    def attribute(self, name: str) -> Attribute | None:
        """An attribute, or None if the node does not have it."""
        if self._messages is None:
            self._messages = self._named()
        message = self._messages.get(name)
        if message is not None and name not in self._parsed:
            self._parsed[name] = Attribute(fields(message, self._budget), self._budget)
        return self._parsed.get(name)

    def _named(self) -> dict[str, Content]:
        found: dict[str, Content] = {}
        for message in self._unread:
            name = first_text(message, 1, self._budget)
            if name is None:
                name = text(fields(message, self._budget), 1)
            if name in found:
                raise ValueError(f"the attribute {name!r} is given twice")
            found[name] = message
        return found


@dataclass(frozen=True)
class Graph:
    """The main graph, or the body of an If, Loop or Scan."""

    message: Fields
    budget: Budget

    @property
    def node_count(self) -> int:
        """Number of nodes, without reading them."""
        return len(contents(self.message, 1))

    @cached_property
    def nodes(self) -> list[Node]:
        """Nodes in order."""
        return [Node(fields(message, self.budget), self.budget) for message in contents(self.message, 1)]

    @cached_property
    def constants(self) -> list[TensorInfo]:
        """Initializers, dense and sparse."""
        dense = [read_tensor(message, self.budget) for message in contents(self.message, 5)]
        return dense + [_read_sparse(message, self.budget) for message in contents(self.message, 15)]

    @cached_property
    def inputs(self) -> list[ValueInfo]:
        """Graph inputs."""
        return [_read_value(message, self.budget) for message in contents(self.message, 11)]

    @cached_property
    def outputs(self) -> list[ValueInfo]:
        """Graph outputs."""
        return [_read_value(message, self.budget) for message in contents(self.message, 12)]


@dataclass(frozen=True)
class Function:
    """A function that the model defines."""

    inputs: list[str]
    outputs: list[str]
    names: list[str]
    attributes: dict[str, Attribute]
    nodes: list[Node]
    versions: dict[str, int]


@dataclass(frozen=True)
class ModelFile:
    """An ONNX file: its graph, its functions by (domain, name, overload), and the version of each operator set."""

    graph: Graph
    versions: dict[str, int]
    functions: dict[tuple[str, str, str], Function] = field(default_factory=dict)


def read_model(source: Span) -> ModelFile:
    """Read the model of a file.

    Raises:
        ValueError: The data is not a valid ONNX file.
    """
    budget = Budget()
    message = fields(source, budget)
    graph = content(message, 7)
    versions = _versions(message, 8, budget)
    if graph is None or not versions:
        raise ValueError("the file has no graph" if graph is None else "the file declares no operator set")
    functions = {}
    for found in contents(message, 25):
        function = fields(found, budget)
        key = text(function, 10), text(function, 1), text(function, 13)
        if key in functions:
            raise ValueError(f"the function {key[1]!r} is defined twice")
        defaults = [Attribute(fields(one, budget), budget) for one in contents(function, 11)]
        functions[key] = Function(
            texts(function, 4),
            texts(function, 5),
            texts(function, 6),
            {text(one.message, 1): one for one in defaults},
            [Node(fields(node, budget), budget) for node in contents(function, 7)],
            _versions(function, 9, budget),
        )
    return ModelFile(Graph(fields(graph, budget), budget), versions, functions)


def _versions(message: Fields, number: int, budget: Budget) -> dict[str, int]:
    imports = [fields(one, budget) for one in contents(message, number)]
    return {"" if (name := text(one, 1)) == "ai.onnx" else name: integer(one, 2) for one in imports}


def read_tensor(message: Content, budget: Budget) -> TensorInfo:
    """The shape of a tensor, and its elements if they are few and stored in the file."""
    tensor = fields(message, budget)
    shape = tuple(signed(tensor, 1))
    if any(size < 0 for size in shape) or len(shape) > 64:
        raise ValueError(f"the shape {shape} of a constant has a negative size or more than 64 axes")
    return TensorInfo(text(tensor, 8), shape, _elements(tensor, shape))


def _elements(tensor: Fields, shape: tuple[int, ...]) -> Array | None:
    count, kind = math.prod(shape), integer(tensor, 2)
    if count > MAX_ELEMENTS or kind not in _TYPES or integer(tensor, 14) == _EXTERNAL:
        return None
    dtype = np.dtype(_TYPES[kind])
    packed = content(tensor, 9)
    flat: npt.NDArray[np.generic]
    if packed is not None:
        data = packed.content() if isinstance(packed, Span) else packed
        flat = np.frombuffer(data, dtype)
    elif kind == 1:
        flat = np.array(floats(tensor, 4), dtype)
    elif kind == 11:
        flat = np.array(floats(tensor, 10, 8), dtype)
    else:
        flat = np.array(signed(tensor, 7 if kind == 7 else 5), np.int64).astype(dtype)
    if flat.size != count:
        raise ValueError(f"a constant of {count} elements holds {flat.size}")
    found_elements = np.empty(count, object)
    found_elements[:] = flat.tolist()
    return found_elements.reshape(shape)


def _read_sparse(message: Content, budget: Budget) -> TensorInfo:
    sparse = fields(message, budget)
    values = content(sparse, 1)
    name = "" if values is None else text(fields(values, budget), 8)
    return TensorInfo(name, tuple(signed(sparse, 3)), None)


def _read_value(message: Content, budget: Budget) -> ValueInfo:
    value = fields(message, budget)
    found = content(value, 2)
    kind = [] if found is None else fields(found, budget)
    tensor = content(kind, _TENSOR_TYPE)
    if tensor is None:
        return ValueInfo(text(value, 1), None, is_tensor=False)
    shape = content(fields(tensor, budget), 2)
    if shape is None:
        return ValueInfo(text(value, 1), None, is_tensor=True)
    dims = [fields(one, budget) for one in contents(fields(shape, budget), 1)]
    return ValueInfo(text(value, 1), tuple(_dimension(one) for one in dims), is_tensor=True)


def _dimension(message: Fields) -> int | str | None:
    name, size = text(message, 2), integer(message, 1, -1)
    return name or (size if size >= 0 else None)
