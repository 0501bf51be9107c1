"""Raw tensors in the bytes of messages: taken out as views and put in, without protobuf's copies.

Tensors are the last fields of a message. Of a message in any other form, protobuf parses the whole.
See docs/decisions/0101-raw-tensors-by-hand.md.
"""

from app.engine.codec import Body

MAX_PREFIX_BYTES = 2048
"""Longest part before the tensors that is split off."""
_MAX_TENSORS = 64
_MAX_LENGTH_BYTES = 5
_RAW_INPUT, _RAW_OUTPUT = 7 << 3 | 2, 6 << 3 | 2  # tags of ``raw_input_contents`` and ``raw_output_contents``
_BEFORE = frozenset(number << 3 | 2 for number in range(1, 7))  # tags of the fields before ``raw_input_contents``


def split(message: Body) -> tuple[bytes, list[Body]] | None:
    """The bytes of a ``ModelInferRequest`` before its raw tensors, and the tensors; None if only protobuf can tell.

    Args:
        message: The serialized message, which may be invalid.
    """
    end, at = len(message), 0
    view = memoryview(message)
    tensors: list[Body] = []
    try:
        while message[at] != _RAW_INPUT:
            if message[at] not in _BEFORE:
                return None
            length, at = _length(message, at + 1)
            at += length
            if at > MAX_PREFIX_BYTES:
                return None
        prefix = bytes(view[:at])
        while at < end:
            if message[at] != _RAW_INPUT or len(tensors) == _MAX_TENSORS:
                return None
            length, at = _length(message, at + 1)
            tensors.append(view[at : at + length])
            at += length
    except (IndexError, ValueError):  # it ends within a field, or has no raw tensors
        return None
    return (prefix, tensors) if at == end else None


def joined(prefix: bytes, tensors: list[bytes]) -> bytes:
    """A ``ModelInferResponse`` from the bytes before its raw tensors, and the tensors."""
    pieces = [prefix]
    for tensor in tensors:
        pieces.append(_field(_RAW_OUTPUT, len(tensor)))
        pieces.append(tensor)
    return b"".join(pieces)


def _length(message: Body, at: int) -> tuple[int, int]:
    """A length at a place, and the place behind it.

    Raises:
        IndexError: The message ends within it.
        ValueError: It is too long for a message.
    """
    length = shift = 0
    for place in range(at, at + _MAX_LENGTH_BYTES):
        byte = message[place]
        if byte < 0x80:
            return length | byte << shift, place + 1
        length |= (byte & 0x7F) << shift
        shift += 7
    raise ValueError("the length has more than 5 bytes")


def _field(tag: int, length: int) -> bytes:
    found = bytearray((tag,))
    while length > 0x7F:
        found.append(length & 0x7F | 0x80)
        length >>= 7
    found.append(length)
    return bytes(found)
