"""Protocol buffers without a schema: enough to edit a graph without the onnx package.

A message is the list of its fields in order; a field is (number, wire type, value). The value is an integer for
varints, and bytes otherwise. Unknown fields are preserved. Source: the encoding guide of Protocol Buffers.
"""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

Field = tuple[int, int, int | bytes]
Message = list[Field]


def parse(data: bytes | memoryview) -> Message:
    """The fields of a message.

    Raises:
        ValueError: The bytes are not a valid message.
    """
    view = memoryview(data)
    fields: Message = []
    at = 0
    while at < len(view):
        tag, at = varint(view, at)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, at = varint(view, at)
            fields.append((number, wire, value))
            continue
        if wire == BYTES:
            length, at = varint(view, at)
        elif wire in {FIXED32, FIXED64}:
            length = 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire} is not valid in protocol buffers")
        if at + length > len(view):
            raise ValueError("the message ends within a field")
        fields.append((number, wire, bytes(view[at : at + length])))
        at += length
    return fields


def serialise(fields: Message) -> bytes:
    """Encode fields as a message."""
    parts: list[bytes] = []
    for number, wire, value in fields:
        parts.append(_varint_bytes(number << 3 | wire))
        if isinstance(value, int):
            parts.append(_varint_bytes(value))
            continue
        if wire == BYTES:
            parts.append(_varint_bytes(len(value)))
        parts.append(value)
    return b"".join(parts)


def submessages(fields: Message, number: int) -> list[Message]:
    """The submessages of a field."""
    return [parse(value) for value in raw(fields, number)]


def raw(fields: Message, number: int) -> list[bytes]:
    """The bytes of a field."""
    return [value for known, _, value in fields if known == number and isinstance(value, bytes)]


def texts(fields: Message, number: int) -> list[str]:
    """The strings of a field."""
    return [value.decode() for value in raw(fields, number)]


def integers(fields: Message, number: int) -> list[int]:
    """The unsigned integers of a field, packed or not."""
    found: list[int] = []
    for known, _, value in fields:
        if known != number:
            continue
        if isinstance(value, int):
            found.append(value)
            continue
        at = 0
        while at < len(value):
            one, at = varint(memoryview(value), at)
            found.append(one)
    return found


def varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """A number of variable length at a place, and where the next field begins.

    Raises:
        ValueError: it has no end.
    """
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("the message ends within a number")


def _varint_bytes(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
