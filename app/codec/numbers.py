"""The quick path for JSON numbers: simdjson straight into a numpy buffer, never into Python floats.

Whatever is unusual makes it give up (None); the precise path then takes the body or says what is wrong with it.
simdjson flattens nested lists, which would hide wrong nesting. So every row's length is checked, and the number of
opening brackets in the body must be exactly that of the lists seen: one more, and something is nested that
should not be.
"""

import math

import numpy as np
import simdjson

from app.codec import Body
from app.tensors import Array, TensorSpec

# A parser keeps buffers as large as the largest document it has seen.
_KEEP_BYTES = 4 * 1024 * 1024
_parser = simdjson.Parser()

Document = simdjson.Object
List = simdjson.Array


def parse(body: Body) -> simdjson.Object | None:
    """The body as a simdjson object, or None where it isn't one. Drop the object before the next call."""
    global _parser  # noqa: PLW0603 - a parser whose objects are alive can't be used again
    try:
        document = (_parser if len(body) <= _KEEP_BYTES else simdjson.Parser()).parse(body)
    except RuntimeError:
        _parser = simdjson.Parser()
        return None
    except ValueError:
        return None
    return document if isinstance(document, simdjson.Object) else None


def brackets(body: Body, at_most: int) -> int:
    """How many ``[`` the body holds, counting no further than one over ``at_most``."""
    count, position = 0, body.find(b"[")
    while position >= 0 and count <= at_most:
        count += 1
        position = body.find(b"[", position + 1)
    return count


def flat(values: simdjson.Array, spec: TensorSpec) -> Array | None:
    """All numbers below ``values`` in one dimension and in the type of the spec, or None where any doesn't fit."""
    try:
        if spec.datatype in ("FP32", "FP64"):
            wide = np.frombuffer(values.as_buffer(of_type="d"), np.float64)
            if spec.datatype == "FP64":
                return wide
            with np.errstate(over="ignore", invalid="ignore"):
                narrow = wide.astype(np.float32)
                # Too large a number became infinity, which no sum can hide.
                return narrow if math.isfinite(np.add.reduce(narrow)) else None
        if spec.datatype in ("INT64", "INT32"):
            whole = np.frombuffer(values.as_buffer(of_type="i"), np.int64)
            if spec.datatype == "INT64":
                return whole
            limits = np.iinfo(np.int32)
            if whole.size and (whole.min() < limits.min or whole.max() > limits.max):
                return None
            return whole.astype(np.int32)
    except (TypeError, ValueError):
        pass
    return None


def nested(values: object, spec: TensorSpec) -> tuple[Array, int] | None:
    """A tensor of two dimensions and how many lists it was written in, or None: let the precise path look."""
    if not isinstance(values, simdjson.Array):
        return None
    rows = len(values)
    if not rows or len(spec.shape) != 2:
        return None
    numbers = flat(values, spec)
    if numbers is None:
        return None
    columns = spec.shape[1]
    if columns is None:
        columns = numbers.size // rows
    if rows * columns != numbers.size or (spec.shape[0] is not None and spec.shape[0] != rows):
        return None
    for row in values:
        if type(row) is not simdjson.Array or len(row) != columns:
            return None
    return numbers.reshape(rows, columns), rows + 1
