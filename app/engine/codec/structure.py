"""Bounds on a JSON body by its structure, counted before a parser makes an object of each value.

A parser turns every ``[]`` into an object of some sixty bytes and takes its time for it: sixty megabytes of them, which
compress to as many kilobytes, would hold up a process for ten seconds. What a model can take bounds how many lists,
objects and strings a request needs, and counting them costs a few milliseconds a megabyte.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from app.engine.codec import Body
from app.errors import InvalidRequestError
from app.runtime.tensors import Array, TensorSpec

CHUNK_BYTES = 1 << 20
LONG_BYTES = 1 << 16
"""A shorter body costs little, whatever it holds."""
_FREE = 256
"""Lists, objects and strings of the request itself: names, shapes, parameters; for each tensor as many once more."""
_QUOTE, _BACKSLASH = ord('"'), ord("\\")


@dataclass(frozen=True, slots=True)
class Structure:
    """The structural tokens of a JSON text.

    Attributes:
        lists, objects, strings: how many begin; keys are strings too.
        commas: how many separate values, those within strings left out.
    """

    lists: int
    objects: int
    strings: int
    commas: int


def measure(body: Body) -> Structure:
    """Count the lists, objects, strings and commas of a JSON text, whether it is valid or not."""
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
    """Refuse a body that holds more lists, objects or strings than any request of this model needs.

    Args:
        body: a JSON text.
        inputs: the inputs of the model.
        outputs: how many outputs it has.
        max_rows: maximum rows of a request.
        texts: numbers may be written as strings, such as "NaN".

    Raises:
        InvalidRequestError: names what there is too much of, and the bound.
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
                f"the body holds {count} {what}, more than a request of this model can need ({most} for a body of "
                f"{found.commas + 1} values)"
            )


def _needed(spec: TensorSpec, values: int, max_rows: int) -> tuple[int, int]:
    """Lists that a tensor of at most so many values can be written in, and how many values it can have."""
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
"""Lists around each row of a tensor without a declared shape: what is deeper has fewer rows."""


def _outside(found: Array, inside: Array | None) -> int:
    return int(np.count_nonzero(found if inside is None else found & ~inside))


def _chunks(body: Body) -> Iterator[tuple[Array, Array, Array | None]]:
    """Pieces of the text, the quotes that begin or end a string, and what lies within strings (None: nothing)."""
    whole = np.frombuffer(body, np.uint8)
    within = False  # whether the piece begins in a string
    run = 0  # backslashes that it begins behind
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
    """For each byte, how many backslashes stand directly before it."""
    places = np.arange(len(slashes))
    last_other = np.maximum.accumulate(np.where(slashes, -1 - run, places))
    before = np.empty(len(slashes), np.int64)
    before[0] = run
    before[1:] = places[:-1] - last_other[:-1]
    return before
