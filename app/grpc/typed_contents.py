"""Typed contents: the tensors of a message as repeated numbers, instead of raw bytes."""

from typing import Any

import numpy as np

from app.engine.codec import binary
from app.errors import InvalidRequestError
from app.grpc.messages import InferTensorContents
from app.runtime.tensors import Array, TensorSpec

FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The field for each datatype; FP16 and BF16 have none."""
_WIDE = {"int_contents": np.dtype(np.int32), "uint_contents": np.dtype(np.uint32)}


def array_of(contents: Any, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    """Decode a tensor from typed contents.

    Args:
        contents: An ``InferTensorContents``.
        spec: Spec of the input.
        shape: Shape in the request.

    Raises:
        InvalidRequestError: The datatype has no field, the values are in a wrong field or do not match the
            shape, or the type cannot hold one of them.
    """
    name = FIELDS.get(spec.datatype)
    if name is None:
        raise InvalidRequestError(f"input {spec.name!r} is {spec.datatype}, which must be sent in raw_input_contents")
    for field, others in contents.ListFields():
        if field.name != name:
            raise InvalidRequestError(
                f"input {spec.name!r} has {len(others)} values in {field.name}; expected {spec.datatype} in {name}"
            )
    values = getattr(contents, name)
    expected = binary.element_count(shape)
    if len(values) != expected:
        raise InvalidRequestError(
            f"input {spec.name!r} has {len(values)} values in {name}; shape {list(shape)} needs {expected}"
        )
    if spec.datatype == "BYTES":
        array = np.empty(expected, dtype=object)
        for position, element in enumerate(values):
            array[position] = binary.text(element, spec)
        return array.reshape(shape)
    array = np.array(values, dtype=_WIDE.get(name, spec.dtype))
    if array.dtype != spec.dtype:
        array = _narrowed(array, spec, name)
    return array.reshape(shape)


def _narrowed(array: Array, spec: TensorSpec, name: str) -> Array:
    limits = np.iinfo(spec.dtype)
    outside = (array < limits.min) | (array > limits.max)
    if outside.any():
        position = int(np.argmax(outside))
        raise InvalidRequestError(
            f"inputs.{spec.name}.contents.{name}[{position}] is {array[position]}; "
            f"expected an integer from {limits.min} to {limits.max}"
        )
    return array.astype(spec.dtype)


def contents_of(array: Array, datatype: str) -> Any:
    """Encode the values of a tensor as an ``InferTensorContents``.

    Args:
        array: The tensor.
        datatype: A datatype that has a field.
    """
    values: list[Any] = array.reshape(-1).tolist()
    if datatype == "BYTES":
        values = [item.encode() if isinstance(item, str) else bytes(item) for item in values]
    return InferTensorContents(**{FIELDS[datatype]: values})
