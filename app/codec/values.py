"""The precise path: tensors from parsed JSON values, with an error that names the place, the value and the rule."""

import math
from typing import Any

import numpy as np
import orjson

from app.codec import Body
from app.errors import InvalidRequestError
from app.tensors import Array, TensorSpec

_SHOWN = 40


def parse_json(body: Body, expected: str) -> Any:
    """Parse a body.

    Raises:
        InvalidRequestError: it is not JSON; says where, and what was expected.
    """
    if not body:
        raise InvalidRequestError(f"the body is empty; expected {expected}")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        hint = ""
        if any(word in body for word in (b"NaN", b"Infinity", b"nan", b"inf")):
            hint = " (NaN and Infinity are not JSON; numbers must be finite)"
        raise InvalidRequestError(f"the body is not valid JSON: {error}{hint}; expected {expected}") from None


def describe(value: Any) -> str:
    """A JSON value in few words, for a message."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return f"the text {value[:_SHOWN]!r}"
        case dict():
            return "an object"
        case list():
            return "a list"
        case _:
            return str(value)[:_SHOWN]


def example(spec: TensorSpec) -> str:
    """What a tensor of this spec looks like in JSON, such as ``[[784 numbers], …]``."""
    noun = {"BOOL": "booleans", "BYTES": "texts"}.get(
        spec.datatype, "integers" if spec.dtype.kind in "iu" else "numbers"
    )
    if spec.datatype == "BF16":
        noun = "numbers"
    if not spec.shape:
        return f"one of {noun}"
    last = spec.shape[-1]
    text = f"[{noun if last is None else f'{last} {noun}'}]"
    for size in reversed(spec.shape[:-1]):
        text = f"[{text}, …]" if size is None else f"[{size} of {text}]"
    return text


def array_from_json(value: Any, spec: TensorSpec, where: str) -> Array:
    """Build a tensor from nested lists.

    Args:
        value: what the JSON held.
        spec: the input that it is for.
        where: the place of the value in the body, for messages.

    Raises:
        InvalidRequestError: wrong nesting, width or type, ragged rows, or a number that the type can't hold.
    """
    if not spec.shape:
        if isinstance(value, list | dict):
            raise InvalidRequestError(f"{where} is {describe(value)}; expected {example(spec)}")
        return array_from_list([value], spec, where, lambda _: where).reshape(())
    sizes: list[int | None] = list(spec.shape)
    flat: list[Any] = []
    _collect(value, 0, sizes, spec, where, flat)
    shape = tuple(size or 0 for size in sizes)
    return array_from_list(flat, spec, where, lambda position: _place(where, position, shape)).reshape(shape)


def array_from_list(flat: list[Any], spec: TensorSpec, where: str, place: Any = None) -> Array:
    """Build a one-dimensional tensor from a flat list of JSON scalars, see ``array_from_json``."""
    name = place or (lambda position: f"{where}[{position}]")
    if spec.datatype == "BOOL":
        _require(flat, lambda item: isinstance(item, bool), "true or false", name)
        return np.array(flat, dtype=np.bool_)
    if spec.datatype == "BYTES":
        _require(flat, lambda item: isinstance(item, str), "a text", name)
        array = np.empty(len(flat), dtype=object)
        array[:] = flat
        return array
    if spec.datatype != "BF16" and spec.dtype.kind in "iu":
        limits = np.iinfo(spec.dtype)
        rule = f"an integer from {limits.min} to {limits.max}"
        _require(flat, lambda item: type(item) is int and limits.min <= item <= limits.max, rule, name)
        return np.array(flat, dtype=spec.dtype)
    _require(flat, lambda item: type(item) in (int, float), "a number", name)
    wide = np.array(flat, dtype=np.float64)
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32 if spec.datatype == "BF16" else spec.dtype)
    rounded = bfloat16_bits(narrow) if spec.datatype == "BF16" else narrow
    finite = np.isfinite(bfloat16_values(rounded) if spec.datatype == "BF16" else rounded)
    if not finite.all():
        position = int(np.argmin(finite))
        raise InvalidRequestError(
            f"{name(position)} is {flat[position]}, beyond what {spec.datatype} can hold; numbers must be finite"
        )
    return rounded


def bfloat16_bits(array: Array) -> Array:
    """Round float32 to the bits of bfloat16, to nearest even."""
    bits = array.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def bfloat16_values(bits: Array) -> Array:
    """The float32 values of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _collect(value: Any, depth: int, sizes: list[int | None], spec: TensorSpec, where: str, flat: list[Any]) -> None:
    if not isinstance(value, list):
        raise InvalidRequestError(f"{where} is {describe(value)}; expected a list: {example(spec)}")
    size = sizes[depth]
    if size is None:
        if not value and depth == 0:
            raise InvalidRequestError(f"{where} holds no rows; at least 1 is needed: {example(spec)}")
        sizes[depth] = len(value)
    elif size != len(value):
        fixed = spec.shape[depth] is not None
        reason = f"expected {size}" if fixed else f"the rows before it have {size}; all must have the same length"
        raise InvalidRequestError(f"{where} has {len(value)} values; {reason}")
    if depth == len(sizes) - 1:
        for position, item in enumerate(value):
            if isinstance(item, list | dict):
                raise InvalidRequestError(f"{where}[{position}] is {describe(item)}; expected {example(spec)}")
        flat.extend(value)
        return
    for position, item in enumerate(value):
        _collect(item, depth + 1, sizes, spec, f"{where}[{position}]", flat)


def _require(flat: list[Any], right: Any, rule: str, name: Any) -> None:
    for position, item in enumerate(flat):
        if not right(item):
            if isinstance(item, float) and not math.isfinite(item):
                rule = "a finite number"
            raise InvalidRequestError(f"{name(position)} is {describe(item)}; expected {rule}")


def _place(where: str, position: int, shape: tuple[int, ...]) -> str:
    return where + "".join(f"[{index}]" for index in np.unravel_index(position, shape))
