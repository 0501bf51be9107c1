"""gRPC message framing: each message has a prefix of five bytes, a flag and its length."""

import grpc

from app.engine.codec import Body
from app.errors import BodyTooLargeError, InvalidRequestError
from app.grpc.status import StatusError

PREFIX_BYTES = 5
_COPY_BYTES = 64 * 1024  # a shorter message is joined with its prefix, a longer one is sent behind it


class MessageBuffer:
    """Joins the bytes of a stream into messages.

    Args:
        limit: Maximum bytes of a message, as sent.
        rule: Name of the limit.
    """

    __slots__ = ("_limit", "_rest", "_rule")

    def __init__(self, limit: int, rule: str) -> None:
        self._limit = limit
        self._rule = rule
        self._rest: bytes | bytearray = b""

    def __len__(self) -> int:
        return len(self._rest)

    def add(self, data: bytes) -> None:
        """Add the next bytes."""
        if not self._rest:
            self._rest = data
            return
        if isinstance(self._rest, bytes):
            self._rest = bytearray(self._rest)
        self._rest += data  # small pieces kept apart would take many times their length

    def take(self) -> tuple[bool, Body] | None:
        """Take the next message: whether it is compressed, and its bytes; None while it is incomplete.

        Raises:
            BodyTooLargeError: The message is longer than the limit, by its prefix.
            StatusError: The flag is invalid.
        """
        rest = self._rest
        if len(rest) < PREFIX_BYTES:
            return None
        end = PREFIX_BYTES + int.from_bytes(rest[1:PREFIX_BYTES])
        if rest[0] > 1:
            raise StatusError(grpc.StatusCode.INTERNAL, f"the flag of a message is {rest[0]}; expected 0 or 1")
        if end > PREFIX_BYTES + self._limit:
            raise BodyTooLargeError(
                f"the message has {end - PREFIX_BYTES} bytes, more than {self._rule} ({self._limit})"
            )
        if len(rest) < end:
            return None
        if len(rest) == end:
            self._rest = b""
            message: Body = rest[PREFIX_BYTES:] if isinstance(rest, bytes) else memoryview(rest)[PREFIX_BYTES:]
            return rest[0] == 1, message
        compressed, message = rest[0] == 1, bytes(rest[PREFIX_BYTES:end])
        self._rest = rest if isinstance(rest, bytearray) else bytearray(rest)
        del self._rest[:end]  # moves nothing: a bytearray only notes where it begins
        return compressed, message

    def check_end(self) -> None:
        """Check that the stream did not end within a message.

        Raises:
            InvalidRequestError: The stream ended within a message.
        """
        if self._rest:
            wanted = PREFIX_BYTES
            if len(self._rest) >= PREFIX_BYTES:
                wanted += int.from_bytes(self._rest[1:PREFIX_BYTES])
            raise InvalidRequestError(f"the call ended after {len(self._rest)} of the {wanted} bytes of its message")


def framed(message: bytes) -> tuple[bytes, ...]:
    """A message with its prefix, in one or two pieces."""
    prefix = b"\0" + len(message).to_bytes(4)
    return (prefix + message,) if len(message) <= _COPY_BYTES else (prefix, message)
