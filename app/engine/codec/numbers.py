"""Fast path for JSON numbers: simdjson writes directly into a numpy buffer, without Python floats.

It returns None for unusual input; the precise path then decodes the body or reports the error.
simdjson flattens nested lists, which would hide wrong nesting. Therefore the length of every row is checked, and the
number of opening brackets in the body must equal the number of visited lists: a larger number means
unexpected nesting.

See docs/decisions/0001-parse-numbers-with-pysimdjson.md.
"""

from typing import Literal

import numpy as np
import simdjson

from app.engine.codec import Body
from app.runtime.tensors import Array, TensorSpec

# A parser keeps buffers as large as its largest document.
_KEEP_BYTES = 4 * 1024 * 1024
_parser = simdjson.Parser()
_BYTE_ORDER_MARK = b"\xef"
# simdjson's type for each datatype, and the range of narrower types.
_KINDS: dict[str, Literal["d", "i"]] = {"FP32": "d", "FP64": "d", "INT32": "i", "INT64": "i"}
_NARROW: dict[str, tuple[float, float]] = {
    "FP32": (float(np.finfo(np.float32).min), float(np.finfo(np.float32).max)),
    "INT32": (np.iinfo(np.int32).min, np.iinfo(np.int32).max),
}
_FP32_SQUARE = 1e76  # below the square of the largest float32
_FEW = 8192  # numbers

Document = simdjson.Object
List = simdjson.Array


def parse(body: Body) -> simdjson.Object | None:
    """Parse the body to a simdjson object, or None if it is not one. Delete the object before the next call."""
    global _parser  # noqa: PLW0603 - a parser with live objects cannot be reused
    if body[:1] == _BYTE_ORDER_MARK:  # simdjson ignores it, but JSON does not allow it
        return None
    try:
        document = (_parser if len(body) <= _KEEP_BYTES else simdjson.Parser()).parse(body)
    except RuntimeError:
        _parser = simdjson.Parser()
        return None
    except ValueError:
        return None
    return document if isinstance(document, simdjson.Object) else None


def brackets(body: Body, at_most: int) -> int:
    """Number of ``[`` in the body, counted up to one more than ``at_most``."""
    if isinstance(body, memoryview):
        body = bytes(body)
    count, position = 0, body.find(b"[")
    while position >= 0 and count <= at_most:
        count += 1
        position = body.find(b"[", position + 1)
    return count


def flat(values: simdjson.Array, spec: TensorSpec) -> Array | None:
    """All numbers below ``values`` as a flat array in the type of the spec, or None if a number does not fit."""
    kind = _KINDS.get(spec.datatype)
    if kind is None:
        return None
    try:
        wide = np.frombuffer(values.as_buffer(of_type=kind), np.float64 if kind == "d" else np.int64)
    except (TypeError, ValueError):
        return None
    bounds = _NARROW.get(spec.datatype)
    if bounds is None:
        return wide
    # JSON numbers that simdjson accepts are finite; the precise path reports those that overflow the type. For few
    # numbers the sum of squares is the fastest check (vdot does not warn of overflow), and it bounds
    # each number; for many, BLAS would use several threads.
    if not (kind == "d" and wide.size <= _FEW and np.vdot(wide, wide) < _FP32_SQUARE) and not _within(wide, bounds):
        return None
    return wide.astype(spec.dtype)


def _within(wide: Array, bounds: tuple[float, float]) -> bool:
    return not wide.size or bool(np.minimum.reduce(wide) >= bounds[0] and np.maximum.reduce(wide) <= bounds[1])


def nested(values: object, spec: TensorSpec) -> tuple[Array, int] | None:
    """A tensor of two dimensions and its number of lists, or None to use the precise path."""
    if not isinstance(values, simdjson.Array):
        return None
    rows = len(values)
    if not rows or (len(spec.shape) != 2 and not spec.any_rank):
        return None
    numbers = flat(values, spec)
    if numbers is None:
        return None
    shape = (None, None) if spec.any_rank else spec.shape
    columns = shape[1]
    if columns is None:
        columns = numbers.size // rows
    if rows * columns != numbers.size or (shape[0] is not None and shape[0] != rows):
        return None
    for row in values:
        if type(row) is not simdjson.Array or len(row) != columns:
            return None
    return numbers.reshape(rows, columns), rows + 1
