"""Field-by-field reader for protocol buffers in a file: the payload of a weight is skipped, not copied.

A field's value is an integer, bytes, or, above 4 kB, a ``Span``: a reference into the file. The file is read with
``pread`` instead of ``mmap``, so truncating it meanwhile raises an error instead of a signal.
"""

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from app.runtime.protobuf import BYTES, FIXED32, FIXED64, VARINT, integers, parse, varint

_WINDOW = 4096
_MAX_FIELDS = 3_000_000
_MAX_TEXT = 4096


@dataclass(frozen=True, slots=True)
class Span:
    """A reference to ``size`` unread bytes from ``start``."""

    read: Callable[[int, int], bytes]
    start: int
    size: int

    def content(self) -> bytes:
        """Read all bytes of the span."""
        data = self.read(self.start, self.size)
        if len(data) != self.size:
            raise ValueError("the file ends within a field")
        return data


Content = bytes | Span
Fields = list[tuple[int, int, int | Content]]


class Budget:
    """The number of fields that may still be read, which bounds the work on a hostile file."""

    def __init__(self, left: int = _MAX_FIELDS) -> None:
        self._left = left

    def spend(self, count: int = 1) -> None:
        """Count read fields.

        Raises:
            ValueError: The limit is exceeded.
        """
        self._left -= count
        if self._left < 0:
            raise ValueError("the file has more protobuf fields than the limit of {_MAX_FIELDS}")


def whole(source: bytes | BinaryIO) -> Span:
    """The span of an open file, or of bytes."""
    if isinstance(source, bytes):
        return Span(lambda start, size: source[start : start + size], 0, len(source))
    number = source.fileno()
    return Span(lambda start, size: os.pread(number, size, start), 0, os.fstat(number).st_size)


def fields(message: Content, budget: Budget) -> Fields:
    """The fields of a message, in order.

    Raises:
        ValueError: The message is invalid, or the budget is spent.
    """
    if isinstance(message, bytes):
        found: Fields = [*parse(message)]
        budget.spend(len(found))
        return found
    return list(_scan(message, budget))


def first_text(message: Content, number: int, budget: Budget) -> str | None:
    """The string of a message's first field if that is the field ``number``; the rest is not read."""
    if isinstance(message, bytes):
        if len(message) < 2 or message[0] != number << 3 | BYTES or message[1] > 0x7F:
            return None
        return message[2 : 2 + message[1]].decode()
    for known, _, value in _scan(message, budget):
        return value.decode() if known == number and isinstance(value, bytes) else None
    return None


def _scan(span: Span, budget: Budget) -> Iterator[tuple[int, int, int | Content]]:
    at, end = span.start, span.start + span.size
    base, window = at, b""
    while at < end:
        if at + 20 > base + len(window):
            base, window = at, span.read(at, min(_WINDOW, end - at))
        budget.spend()
        tag, used = varint(window, at - base)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, used = varint(window, used)
            yield number, wire, value
            at = base + used
            continue
        if wire == BYTES:
            size, used = varint(window, used)
        elif wire in {FIXED32, FIXED64}:
            size = 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire} is not valid in protocol buffers")
        at = base + used
        if at + size > end:
            raise ValueError("the message ends within a field")
        if size > _WINDOW:
            yield number, wire, Span(span.read, at, size)
        elif at + size <= base + len(window):
            yield number, wire, window[used : used + size]
        else:
            yield number, wire, Span(span.read, at, size).content()
        at += size


def contents(message: Fields, number: int) -> list[Content]:
    """The values of a field of bytes or messages."""
    return [value for known, _, value in message if known == number and not isinstance(value, int)]


def content(message: Fields, number: int) -> Content | None:
    """The single value of a field of bytes or a message, or None.

    Raises:
        ValueError: The field occurs more than once.
    """
    found = contents(message, number)
    if len(found) > 1:
        raise ValueError(f"the field {number} occurs {len(found)} times; at most once is valid")
    return found[0] if found else None


def texts(message: Fields, number: int) -> list[str]:
    """The strings of a field.

    Raises:
        ValueError: A string is not valid text, or is longer than 4 kB.
    """
    found = contents(message, number)
    if any(isinstance(value, Span) for value in found):
        raise ValueError(f"a name is longer than {_MAX_TEXT} bytes")
    return [value.decode() for value in found if isinstance(value, bytes)]


def text(message: Fields, number: int) -> str:
    """The string of a field, empty if the field is missing."""
    found = texts(message, number)
    return found[-1] if found else ""


def signed(message: Fields, number: int) -> list[int]:
    """The signed integers of a field, packed or not."""
    plain: list[tuple[int, int, int | bytes]] = [
        (known, wire, value.content() if isinstance(value, Span) else value)
        for known, wire, value in message
        if known == number
    ]
    return [value - (1 << 64) if value >> 63 else value for value in integers(plain, number)]


def integer(message: Fields, number: int, default: int = 0) -> int:
    """The signed integer of a field."""
    found = signed(message, number)
    return found[-1] if found else default


def floats(message: Fields, number: int, size: int = 4) -> list[float]:
    """The floating-point numbers of a field, packed or not, of 4 or 8 bytes each."""
    data = b"".join(value.content() if isinstance(value, Span) else value for value in contents(message, number))
    if len(data) % size:
        raise ValueError("a list of numbers ends within a number")
    return list(struct.unpack(f"<{len(data) // size}{'f' if size == 4 else 'd'}", data))
