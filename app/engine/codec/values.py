"""Precise path: tensors from parsed JSON values; errors name the place, the value and the rule."""

import math
from typing import Any

import numpy as np
import orjson

from app.engine.codec import Body
from app.errors import InvalidRequestError
from app.runtime.tensors import Array, TensorSpec, bfloat16_bits, bfloat16_values

_SHOWN = 40


def parse_json(body: Body, expected: str) -> Any:
    """Parse a JSON body.

    Raises:
        InvalidRequestError: The body is not JSON; the message names the place and the expected form.
    """
    if not body:
        raise InvalidRequestError(f"the body is empty; expected {expected}")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        hint = ""
        if any(word in body for word in (b"NaN", b"Infinity", b"nan", b"inf")):
            hint = f" (NaN and Infinity are not JSON; {HOW_NAN})"
        raise InvalidRequestError(f"the body is not valid JSON: {error}{hint}; expected {expected}") from None


def describe(value: Any) -> str:
    """A short description of a JSON value, for a message."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return f"the string {value[:_SHOWN]!r}"
        case dict():
            return "an object"
        case list():
            return "a list"
        case _:
            return str(value)[:_SHOWN]


def example(spec: TensorSpec) -> str:
    """JSON shape of a tensor of this spec, such as ``[[784 numbers], …]``."""
    noun = {"BOOL": "booleans", "BYTES": "texts"}.get(
        spec.datatype, "integers" if spec.dtype.kind in "iu" else "numbers"
    )
    if spec.datatype == "BF16":
        noun = "numbers"
    if spec.any_rank:
        return f"{noun}, nested in lists to match the model"
    if not spec.shape:
        return f"a single value of {noun}"
    last = spec.shape[-1]
    text = f"[{noun if last is None else f'{last} {noun}'}]"
    for size in reversed(spec.shape[:-1]):
        text = f"[{text}, …]" if size is None else f"[{size} of {text}]"
    return text


_SPELLED = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf, None: math.nan}
HOW_NAN = 'numbers must be finite, unless ?nan=allow is given: then null, "NaN", "Infinity" and "-Infinity" are valid'


def array_from_json(value: Any, spec: TensorSpec, where: str, *, nan: bool = False) -> Array:
    """Build a tensor from nested lists.

    Args:
        value: The parsed JSON value.
        spec: Spec of the input.
        where: Place of the value in the body, for messages.
        nan: Whether to accept NaN and infinities, see ``array_from_list``.

    Raises:
        InvalidRequestError: The nesting, width or type is wrong, rows differ, or the type cannot hold a number.
    """
    sizes: list[int | None] = [None] * _depth(value) if spec.any_rank else list(spec.shape)
    if not sizes:
        if isinstance(value, list | dict):
            raise InvalidRequestError(f"{where} is {describe(value)}; expected {example(spec)}")
        return array_from_list([value], spec, where, lambda _: where, nan=nan).reshape(())
    flat: list[Any] = []
    _collect(value, 0, sizes, spec, where, flat)
    shape = tuple(size or 0 for size in sizes)
    return array_from_list(flat, spec, where, lambda position: _place(where, position, shape), nan=nan).reshape(shape)


def _depth(value: Any) -> int:
    """Nesting depth of a value's first element."""
    depth = 0
    while isinstance(value, list):
        depth += 1
        value = value[0] if value else None
    return depth


def array_from_list(flat: list[Any], spec: TensorSpec, where: str, place: Any = None, *, nan: bool = False) -> Array:
    """Build a one-dimensional tensor from a flat list of JSON scalars, see ``array_from_json``.

    With ``nan``, floating-point numbers may also be null, "NaN", "Infinity" and "-Infinity".
    """
    name = place or (lambda position: f"{where}[{position}]")
    if spec.datatype == "BOOL":
        _require(flat, lambda item: isinstance(item, bool), "true or false", name)
        return np.array(flat, dtype=np.bool_)
    if spec.datatype == "BYTES":
        _require(flat, lambda item: isinstance(item, str), "a string", name)
        array = np.empty(len(flat), dtype=object)
        array[:] = flat
        return array
    if spec.datatype != "BF16" and spec.dtype.kind in "iu":
        limits = np.iinfo(spec.dtype)
        rule = f"an integer from {limits.min} to {limits.max}"
        _require(flat, lambda item: type(item) is int and limits.min <= item <= limits.max, rule, name)
        return np.array(flat, dtype=spec.dtype)
    spelled = [position for position, item in enumerate(flat) if item is None or isinstance(item, str)] if nan else []
    if spelled:
        flat = list(flat)
        for position in spelled:
            flat[position] = _SPELLED.get(flat[position], flat[position])
    _require(flat, lambda item: type(item) in (int, float), "a number", name)
    wide = np.array(flat, dtype=np.float64)
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32 if spec.datatype == "BF16" else spec.dtype)
    rounded = bfloat16_bits(narrow) if spec.datatype == "BF16" else narrow
    finite = np.isfinite(bfloat16_values(rounded) if spec.datatype == "BF16" else rounded)
    if spelled:
        finite[spelled] = True
    if not finite.all():
        position = int(np.argmin(finite))
        raise InvalidRequestError(
            f"{name(position)} is {flat[position]}, beyond what {spec.datatype} can hold; numbers must be finite"
        )
    return rounded


def _collect(value: Any, depth: int, sizes: list[int | None], spec: TensorSpec, where: str, flat: list[Any]) -> None:
    if not isinstance(value, list):
        raise InvalidRequestError(f"{where} is {describe(value)}; expected a list: {example(spec)}")
    size = sizes[depth]
    if size is None:
        sizes[depth] = len(value)
    elif size != len(value):
        fixed = not spec.any_rank and spec.shape[depth] is not None
        reason = f"expected {size}" if fixed else f"the previous rows have {size}; all rows must have the same length"
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
