"""The constant matrices of an exported graph: storage in the file, and folded form after loading.

A constant is a small expression over weights: a few nodes over compact initializers (signs at one bit an entry, factors
in place of their product). onnxruntime folds them into plain matrices when it loads the file, so the file holds the
small form and the running graph the fast one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from panther.linalg.levels import LARGEST_4_BITS

Array = np.ndarray[Any, np.dtype[Any]]
# initializer names of signs
BITS_SUFFIX = ".bits"
# initializer names of 8-bit integers
LEVELS_SUFFIX = ".levels"
_BIT_MASKS = np.array([128, 64, 32, 16, 8, 4, 2, 1], dtype=np.uint8)


class Constant(Protocol):
    """A matrix that depends on weights alone."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the matrix in the running graph."""
        ...

    @property
    def stored_bytes(self) -> int:
        """Bytes in the file."""
        ...

    def value(self) -> Array:
        """The matrix itself, in the data type of the running graph."""
        ...

    def emit(self, builder: Builder, name: str) -> ir.Value:
        """Write it into a graph."""
        ...


class Builder:
    """Adds constants to the front of a graph; equal objects are added once.

    Args:
        graph: the main graph of a model.
        fold: write expressions where they are smaller than their value; values only when False.
    """

    def __init__(self, graph: ir.Graph, *, fold: bool) -> None:
        self._graph = graph
        self._fold = fold
        self._nodes: list[ir.Node] = []
        self._values: dict[int, tuple[Constant | Array, ir.Value]] = {}

    def add(self, constant: Constant, name: str) -> ir.Value:
        """Write a constant, in the smaller of its two forms, and return its value in the graph."""
        if id(constant) not in self._values:
            # runtimes fold products of float32 only
            foldable = not isinstance(constant, Product) or constant.dtype == np.float32
            rows, columns = constant.shape
            compact = self._fold and foldable and constant.stored_bytes < rows * columns * constant.dtype.itemsize
            value = constant.emit(self, name) if compact else self.initializer(constant.value(), name)
            # keep the constant alive, so that its id is not reused
            self._values[id(constant)] = (constant, value)
        return self._values[id(constant)][1]

    def shared(self, array: Array, name: str) -> ir.Value:
        """Store an array under the first of its names; the same object is stored once."""
        if id(array) not in self._values:
            self._values[id(array)] = (array, self.initializer(array, name))
        return self._values[id(array)][1]

    def initializer(self, array: Array, name: str) -> ir.Value:
        """Store an array unchanged, once; a name that another array has gets a trailing underscore."""
        while (known := self._graph.initializers.get(name)) is not None and not _holds(known, array):
            name += "_"
        if known is None:
            tensor = ir.tensor(np.asarray(array, order="C"), name=name)
            value = ir.Value(
                name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            self._graph.register_initializer(value)
        return self._graph.initializers[name]

    def node(self, op: str, inputs: list[ir.Value], name: str, **attributes: Any) -> ir.Value:
        """Add a node over constants; its output has the name."""
        output = ir.Value(name=name)
        self._nodes.append(ir.node(op, inputs, attributes, outputs=[output], name=f"{name}/{op}"))
        return output

    def shaped(self, values: ir.Value, in_a_byte: int, shape: tuple[int, int], name: str) -> ir.Value:
        """Reshape unpacked entries to a matrix, without the padding of the last byte.

        Args:
            values: (bytes, in_a_byte).
            in_a_byte: number of entries in a byte.
            shape: rows and columns of the matrix.
            name: name of the result.
        """
        count = shape[0] * shape[1]
        if count % in_a_byte:
            flat = self.node("Reshape", [values, _integers(self, [-1])], f"{name}.flat")
            ends = [_integers(self, [0]), _integers(self, [count])]
            values = self.node("Slice", [flat, *ends], f"{name}.cut")
        return self.node("Reshape", [values, _integers(self, shape)], name)

    def finish(self) -> None:
        """Put the nodes in front of the graph's own."""
        first = next(iter(self._graph), None)
        if first is None:
            self._graph.extend(self._nodes)
        else:
            self._graph.insert_before(first, self._nodes)


@dataclass(frozen=True, eq=False)
class Plain:
    """A matrix stored as it is."""

    array: Array

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return _two(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the matrix in the running graph."""
        return self.array.dtype

    @property
    def stored_bytes(self) -> int:
        """Bytes in the file."""
        return self.array.nbytes

    def value(self) -> Array:
        """The matrix itself."""
        return self.array

    def emit(self, builder: Builder, name: str) -> ir.Value:
        """Write it into a graph."""
        return builder.initializer(self.array, name)


@dataclass(frozen=True, eq=False)
class Signs:
    """A matrix of ±magnitude, stored at one bit an entry.

    Attributes:
        bits: (⌈rows·columns/8⌉,) uint8 in the order of numpy.packbits; a set bit means +magnitude.
        magnitude: a scalar in the type of the running graph.
        shape: rows and columns.
    """

    bits: Array
    magnitude: Array
    shape: tuple[int, int]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the matrix in the running graph."""
        return self.magnitude.dtype

    @property
    def stored_bytes(self) -> int:
        """Bytes in the file."""
        return self.bits.nbytes

    def value(self) -> Array:
        """The matrix itself."""
        bits = np.unpackbits(self.bits, count=self.shape[0] * self.shape[1]).astype(bool)
        return np.where(bits, self.magnitude, -self.magnitude).reshape(self.shape)

    def emit(self, builder: Builder, name: str) -> ir.Value:
        """Write the unpacking: BitwiseAnd → Cast → Where → Reshape, in float32, which every runtime can fold."""
        packed = builder.initializer(self.bits.reshape(-1, 1), f"{name}{BITS_SUFFIX}")
        masks = builder.initializer(_BIT_MASKS, "panther.bit_masks")
        masked = builder.node("BitwiseAnd", [packed, masks], f"{name}.masked")
        positive = builder.node("Cast", [masked], f"{name}.positive", to=ir.DataType.BOOL)
        high = builder.initializer(self.magnitude.astype(np.float32), f"{name}.plus")
        low = builder.initializer(-self.magnitude.astype(np.float32), f"{name}.minus")
        values = builder.node("Where", [positive, high, low], f"{name}.values")
        whole = self.magnitude.dtype == np.float32
        shaped = builder.shaped(values, 8, self.shape, name if whole else f"{name}.float32")
        return (
            shaped if whole else builder.node("Cast", [shaped], name, to=ir.DataType.from_numpy(self.magnitude.dtype))
        )


@dataclass(frozen=True, eq=False)
class Levels:
    """A matrix of integers times steps, stored at one byte an entry, or half a byte if all are from -7 to 7.

    Attributes:
        levels: (rows, columns) int8.
        steps: (1, columns) or (rows, 1), float32.
        dtype: data type of the matrix in the running graph.
    """

    levels: Array
    steps: Array
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return _two(self.levels.shape)

    @property
    def stored_bytes(self) -> int:
        """Bytes in the file."""
        return (-(-self.levels.size // 2) if self._halves else self.levels.nbytes) + self.steps.nbytes

    @cached_property
    def _halves(self) -> bool:
        return bool(np.abs(self.levels).max() <= LARGEST_4_BITS)

    def value(self) -> Array:
        """The matrix itself."""
        return (self.levels.astype(np.float32) * self.steps).astype(self.dtype)

    def emit(self, builder: Builder, name: str) -> ir.Value:
        """Write the unpacking: Cast → Mul, in float32, which every runtime can fold."""
        steps = builder.initializer(self.steps, f"{name}.steps")
        if self._halves:
            floats = self._unpacked(builder, name)
        else:
            levels = builder.initializer(self.levels, f"{name}{LEVELS_SUFFIX}")
            floats = builder.node("Cast", [levels], f"{name}.floats", to=ir.DataType.FLOAT)
        whole = self.dtype == np.float32
        product = builder.node("Mul", [floats, steps], name if whole else f"{name}.float32")
        return product if whole else builder.node("Cast", [product], name, to=ir.DataType.from_numpy(self.dtype))

    def _unpacked(self, builder: Builder, name: str) -> ir.Value:
        """Unpack the two integers of each byte: BitwiseAnd and BitShift → Concat → Cast → Sub → Reshape."""
        shifted = np.pad((self.levels.ravel() + 8).astype(np.uint8), (0, self.levels.size % 2))
        packed = builder.initializer(
            (shifted[0::2] | shifted[1::2] << 4).reshape(-1, 1), f"{name}{LEVELS_SUFFIX}_in_4_bits"
        )
        low = builder.node("BitwiseAnd", [packed, _byte(builder, 15)], f"{name}.low")
        high = builder.node("BitShift", [packed, _byte(builder, 4)], f"{name}.high", direction="RIGHT")
        pairs = builder.node("Concat", [low, high], f"{name}.pairs", axis=1)
        signed = builder.node("Cast", [pairs], f"{name}.signed", to=ir.DataType.FLOAT)
        eight = builder.initializer(np.array(8, np.float32), "panther.8")
        values = builder.node("Sub", [signed, eight], f"{name}.values")
        return builder.shaped(values, 2, self.shape, f"{name}.integers")


@dataclass(frozen=True, eq=False)
class SideBySide:
    """Matrices next to each other (axis 1) or on top of each other (axis 0)."""

    parts: tuple[Constant, ...]
    axis: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        sizes = list(self.parts[0].shape)
        sizes[self.axis] = sum(part.shape[self.axis] for part in self.parts)
        return _two(tuple(sizes))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the matrix in the running graph."""
        return self.parts[0].dtype

    @property
    def stored_bytes(self) -> int:
        """Bytes in the file."""
        return sum(part.stored_bytes for part in self.parts)

    @cached_property
    def _value(self) -> Array:
        return np.concatenate([part.value() for part in self.parts], axis=self.axis)

    def value(self) -> Array:
        """The matrix itself."""
        return self._value

    def emit(self, builder: Builder, name: str) -> ir.Value:
        """Write it into a graph."""
        parts = [builder.add(part, f"{name}.{index}") for index, part in enumerate(self.parts)]
        return builder.node("Concat", parts, name, axis=self.axis)


@dataclass(frozen=True, eq=False)
class Product:
    """left @ right, computed in float64 where it is stored as a value, by the runtime where it is folded at load."""

    left: Constant
    right: Constant

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the matrix in the running graph."""
        return self.left.dtype

    @property
    def stored_bytes(self) -> int:
        """Bytes in the file."""
        return self.left.stored_bytes + self.right.stored_bytes

    @cached_property
    def _value(self) -> Array:
        left, right = self.left.value(), self.right.value()
        return (left.astype(np.float64) @ right.astype(np.float64)).astype(left.dtype)

    def value(self) -> Array:
        """The matrix itself."""
        return self._value

    def emit(self, builder: Builder, name: str) -> ir.Value:
        """Write it into a graph."""
        left, right = builder.add(self.left, f"{name}.left"), builder.add(self.right, f"{name}.right")
        return builder.node("MatMul", [left, right], name)


def _holds(value: ir.Value, array: Array) -> bool:
    constant = value.const_value
    return (
        constant is not None
        and constant.dtype == ir.DataType.from_numpy(array.dtype)
        and np.array_equal(constant.numpy(), array)
    )


def transposed(constant: Constant) -> Constant:
    """The transpose, stored as compactly: each leaf is transposed here, so the graph needs no Transpose node."""
    match constant:
        case Plain(array):
            return Plain(np.ascontiguousarray(array.T))
        case Signs(bits, magnitude, (rows, columns)):
            signs = np.unpackbits(bits, count=rows * columns).reshape(rows, columns)
            return Signs(np.packbits(signs.T), magnitude, (columns, rows))
        case Levels(levels, steps, dtype):
            return Levels(np.ascontiguousarray(levels.T), steps.T, dtype)
        case SideBySide(parts, axis):
            return SideBySide(tuple(map(transposed, parts)), 1 - axis)
        case Product(left, right):
            return Product(transposed(right), transposed(left))
    raise TypeError(f"a {type(constant).__name__} has no transpose")


def _integers(builder: Builder, values: list[int] | tuple[int, ...]) -> ir.Value:
    return builder.initializer(np.array(values, dtype=np.int64), "panther." + "x".join(map(str, values)))


def _byte(builder: Builder, value: int) -> ir.Value:
    return builder.initializer(np.array(value, np.uint8), f"panther.byte_{value}")


def _two(shape: tuple[int, ...]) -> tuple[int, int]:
    rows, columns = shape
    return rows, columns
