"""Tensors as bytes: little-endian, row-major, no padding; each BYTES element follows its length."""

import struct
from typing import Any

import numpy as np

from app.engine.codec import Body
from app.errors import InvalidRequestError
from app.runtime.tensors import Array, TensorSpec

_LENGTH = struct.Struct("<I")


def element_count(shape: tuple[int, ...]) -> int:
    """Number of elements of a shape."""
    count = 1
    for size in shape:
        count *= size
    return count


def from_bytes(data: Body, offset: int, size: int, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    """Decode a tensor from ``size`` bytes at ``offset``; numbers are not copied.

    Raises:
        InvalidRequestError: The number of bytes does not match the shape.
    """
    count = element_count(shape)
    if spec.datatype == "BYTES":
        return _strings(data[offset : offset + size], spec, count).reshape(shape)
    expected = count * spec.dtype.itemsize
    if size != expected:
        raise InvalidRequestError(
            f"input {spec.name!r} has {size} bytes; {spec.datatype} of shape {list(shape)} needs {expected}"
        )
    if spec.datatype == "BOOL":
        return np.not_equal(np.frombuffer(data, np.uint8, count, offset), 0).reshape(shape)
    return np.frombuffer(data, spec.dtype, count, offset).reshape(shape)


def _strings(data: Body, spec: TensorSpec, count: int) -> Array:
    if 4 * count > len(data):  # check the claimed size before allocating memory
        raise InvalidRequestError(
            f"input {spec.name!r} has {len(data)} bytes; {count} elements need at least {4 * count}"
        )
    array = np.empty(count, dtype=object)
    at = 0
    for position in range(count):
        if at + 4 > len(data):
            raise InvalidRequestError(f"input {spec.name!r} ends within element {position} of {count}")
        (length,) = _LENGTH.unpack_from(data, at)
        at += 4
        if at + length > len(data):
            raise InvalidRequestError(
                f"input {spec.name!r}: element {position} declares {length} bytes, but {len(data) - at} are left"
            )
        array[position] = text(data[at : at + length], spec)
        at += length
    if at != len(data):
        raise InvalidRequestError(f"input {spec.name!r} has {len(data) - at} bytes after its {count} elements")
    return array


def text(element: Body, spec: TensorSpec) -> str:
    """Convert a BYTES element to the type of the runtime.

    Raises:
        InvalidRequestError: The bytes are not UTF-8, the encoding of ONNX strings.
    """
    try:
        return str(element, "utf-8")
    except UnicodeDecodeError:
        raise InvalidRequestError(f"input {spec.name!r} holds a string that is not valid UTF-8") from None


def to_bytes(array: Array, datatype: str) -> bytes:
    """The bytes of a tensor."""
    if datatype == "BYTES":
        elements: list[Any] = array.reshape(-1).tolist()
        encoded = [item.encode() if isinstance(item, str) else bytes(item) for item in elements]
        return b"".join(part for item in encoded for part in (_LENGTH.pack(len(item)), item))
    return array.tobytes()
