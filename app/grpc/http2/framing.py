"""gRPC message framing: each message has a prefix of five bytes, a flag and its length."""

import grpc

from app.engine.codec import Body
from app.errors import BodyTooLargeError, InvalidRequestError
from app.grpc.status import StatusError

PREFIX_BYTES = 5
_PIECE_BYTES = 1024  # a shorter piece is appended to the one before
_COPY_BYTES = 64 * 1024  # a shorter message is copied from, or joined with, its prefix; a longer one is not


class MessageBuffer:
    """Joins the bytes of a stream into messages.

    Args:
        limit: Maximum bytes of a message, as sent.
        rule: Name of the limit.
    """

    __slots__ = ("_length", "_limit", "_pieces", "_rule")

    def __init__(self, limit: int, rule: str) -> None:
        self._limit = limit
        self._rule = rule
        self._pieces: list[bytes | bytearray] = []  # joined once the message is complete
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, data: bytes) -> None:
        """Add the next bytes."""
        pieces = self._pieces
        self._length += len(data)
        if len(data) >= _PIECE_BYTES or not pieces:
            pieces.append(data)
        elif isinstance(pieces[-1], bytearray):
            pieces[-1] += data  # small pieces kept apart would take many times their length
        else:
            pieces.append(bytearray(data))

    def take(self) -> tuple[bool, Body] | None:
        """Take the next message: whether it is compressed, and its bytes; None while it is incomplete.

        Raises:
            BodyTooLargeError: The message is longer than the limit, by its prefix.
            StatusError: The flag is invalid.
        """
        if self._length < PREFIX_BYTES:
            return None
        if len(self._pieces[0]) < PREFIX_BYTES:
            self._pieces = [self._joined()]
        first = self._pieces[0]
        end = PREFIX_BYTES + int.from_bytes(first[1:PREFIX_BYTES])
        if first[0] > 1:
            raise StatusError(grpc.StatusCode.INTERNAL, f"the flag of a message is {first[0]}; expected 0 or 1")
        if end > PREFIX_BYTES + self._limit:
            raise BodyTooLargeError(
                f"the message has {end - PREFIX_BYTES} bytes, more than {self._rule} ({self._limit})"
            )
        if self._length < end:
            return None
        whole = self._joined()
        compressed = whole[0] == 1
        if len(whole) == end:
            self._pieces, self._length = [], 0
            return compressed, whole[PREFIX_BYTES:] if end <= _COPY_BYTES else memoryview(whole)[PREFIX_BYTES:]
        message = bytes(whole[PREFIX_BYTES:end])
        rest = whole if isinstance(whole, bytearray) else bytearray(whole)
        del rest[:end]  # moves nothing: a bytearray only notes where it begins
        self._pieces, self._length = [rest], len(rest)
        return compressed, message

    def _joined(self) -> bytes | bytearray:
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)

    def check_end(self) -> None:
        """Check that the stream did not end within a message.

        Raises:
            InvalidRequestError: The stream ended within a message.
        """
        if self._length:
            wanted = PREFIX_BYTES
            if self._length >= PREFIX_BYTES:
                wanted += int.from_bytes(self._joined()[1:PREFIX_BYTES])
            raise InvalidRequestError(f"the call ended after {self._length} of the {wanted} bytes of its message")


def framed(message: bytes) -> tuple[bytes, ...]:
    """A message with its prefix, in one or two pieces."""
    prefix = b"\0" + len(message).to_bytes(4)
    return (prefix + message,) if len(message) <= _COPY_BYTES else (prefix, message)
