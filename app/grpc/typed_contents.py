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
"""The field of each datatype; FP16 and BF16 have none."""
_WIDE = {"int_contents": np.dtype(np.int32), "uint_contents": np.dtype(np.uint32)}


def array_of(contents: Any, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    """A tensor from typed contents.

    Args:
        contents: an ``InferTensorContents``.
        spec: the input that it is for.
        shape: as the request gives it.

    Raises:
        InvalidRequestError: the datatype has no field, the values lie in another one or are not as many as the shape
            takes, or the type can't hold one of them.
    """
    name = FIELDS.get(spec.datatype)
    if name is None:
        raise InvalidRequestError(f"input {spec.name!r} is {spec.datatype}, which travels in raw_input_contents only")
    for field, others in contents.ListFields():
        if field.name != name:
            raise InvalidRequestError(
                f"input {spec.name!r} has {len(others)} values in {field.name}; {spec.datatype} belongs in {name}"
            )
    values = getattr(contents, name)
    expected = binary.element_count(shape)
    if len(values) != expected:
        raise InvalidRequestError(
            f"input {spec.name!r} has {len(values)} values in {name}; shape {list(shape)} takes {expected}"
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
    """An ``InferTensorContents`` with the values of a tensor.

    Args:
        array: the tensor.
        datatype: one that has a field.
    """
    values: list[Any] = array.reshape(-1).tolist()
    if datatype == "BYTES":
        values = [item.encode() if isinstance(item, str) else bytes(item) for item in values]
    return InferTensorContents(**{FIELDS[datatype]: values})
