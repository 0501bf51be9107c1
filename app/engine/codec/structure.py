"""Limits on the structure of a JSON body, counted before a parser makes an object of each value.

A parser turns every ``[]`` into an object of some sixty bytes, which takes time: sixty megabytes of them, which
compress to sixty kilobytes, would block a process for ten seconds. The model's inputs bound the number of lists,
objects and strings of a valid request, and counting them takes a few milliseconds per megabyte.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from app.engine.codec import Body
from app.errors import InvalidRequestError
from app.runtime.tensors import Array, TensorSpec

CHUNK_BYTES = 1 << 20
LONG_BYTES = 1 << 16
"""A shorter body is cheap to parse, whatever it holds."""
_FREE = 256
"""Lists, objects and strings for names, shapes and parameters; counted once per request and once per tensor."""
_QUOTE, _BACKSLASH = ord('"'), ord("\\")


@dataclass(frozen=True, slots=True)
class Structure:
    """The structural tokens of a JSON text.

    Attributes:
        lists, objects, strings: Number of each; keys are strings too.
        commas: Number of commas outside strings.
    """

    lists: int
    objects: int
    strings: int
    commas: int


def measure(body: Body) -> Structure:
    """Count the lists, objects, strings and commas of a JSON text, valid or not."""
    lists = objects = commas = quotes = 0
    for text, real_quotes, inside in _chunks(body):
        quotes += int(np.count_nonzero(real_quotes))
        lists += _outside(text == ord("["), inside)
        objects += _outside(text == ord("{"), inside)
        commas += _outside(text == ord(","), inside)
    return Structure(lists, objects, (quotes + 1) // 2, commas)


def check_structure(
    body: Body, inputs: Sequence[TensorSpec], outputs: int, max_rows: int, *, texts: bool = False
) -> None:
    """Refuse a body that holds more lists, objects or strings than any valid request for this model.

    Args:
        body: A JSON text.
        inputs: The inputs of the model.
        outputs: Its number of outputs.
        max_rows: Maximum rows of a request.
        texts: Whether numbers may be written as strings, such as "NaN".

    Raises:
        InvalidRequestError: A limit is exceeded; the message names it.
    """
    found = measure(body)
    free = _FREE * (1 + len(inputs) + outputs)
    most_lists, most_strings = free, free
    for spec in inputs:
        lists, values = _needed(spec, found.commas + 1, max_rows)
        most_lists += lists
        most_strings += values if texts or spec.datatype == "BYTES" else 0
    for what, count, most in (
        ("lists", found.lists, most_lists),
        ("objects", found.objects, free),
        ("strings", found.strings, most_strings),
    ):
        if count > most:
            raise InvalidRequestError(
                f"the body holds {count} {what}; the maximum for this model is {most} for a body of "
                f"{found.commas + 1} values"
            )


def _needed(spec: TensorSpec, values: int, max_rows: int) -> tuple[int, int]:
    """Maximum number of lists and of values in a tensor from a body with that many values."""
    if spec.any_rank:
        return min(values, max_rows) * _ANY_RANK, values
    if len(spec.shape) < 2:
        return 1, values
    inner = [size for size in spec.shape[1:] if size is not None]
    row_values = int(np.prod([max(1, size) for size in inner], dtype=np.float64))
    rows = min(max_rows if spec.shape[0] is None else spec.shape[0], values // row_values + 1)
    if len(inner) < len(spec.shape) - 1:
        return min(values, max_rows) * len(spec.shape), values
    lists, width = 1, rows
    for size in spec.shape[1:]:
        lists += width
        width *= max(1, size or 1)
    return lists, min(values, width)


_ANY_RANK = 4
"""Lists around each row of a tensor without a declared shape: deeper nesting has fewer rows."""


def _outside(found: Array, inside: Array | None) -> int:
    return int(np.count_nonzero(found if inside is None else found & ~inside))


def _chunks(body: Body) -> Iterator[tuple[Array, Array, Array | None]]:
    """Pieces of the text, the quotes that start or end a string, and the contents of strings (None: none)."""
    whole = np.frombuffer(body, np.uint8)
    within = False  # whether the piece starts within a string
    run = 0  # number of backslashes before the piece
    for start in range(0, len(whole), CHUNK_BYTES):
        text = whole[start : start + CHUNK_BYTES]
        quotes = text == _QUOTE
        slashes = text == _BACKSLASH
        if run or slashes.any():
            behind = _run_before(slashes, run)
            quotes &= behind % 2 == 0
            run = int(behind[-1] + 1) if slashes[-1] else 0
        if not within and not quotes.any():
            yield text, quotes, None
            continue
        inside = (np.cumsum(quotes, dtype=np.uint32) + within) % 2 == 1
        yield text, quotes, inside
        within = bool(inside[-1])


def _run_before(slashes: Array, run: int) -> Array:
    """Number of backslashes directly before each byte."""
    places = np.arange(len(slashes))
    last_other = np.maximum.accumulate(np.where(slashes, -1 - run, places))
    before = np.empty(len(slashes), np.int64)
    before[0] = run
    before[1:] = places[:-1] - last_other[:-1]
    return before
