"""Body reader: small requests through a shared buffer, large bodies read zero-copy into their own buffer.

If a connection sends requests of equal length with binary tensors, each is read by one system call into the buffer of
its body, headers included. Such a buffer has a spare byte: the event loop reads again after a read that fills it.
"""

from app.engine.codec import Body
from app.engine.codec.oip import HEADER_LENGTH
from app.errors import OverloadedError
from app.http.connection.buffer_pool import BodyBuffers
from app.http.connection.header_cache import MAX_TEXT_BYTES
from app.http.connection.request import WireRequest
from app.http.connection.request_parser import READ_BYTES
from app.service.inference import InferenceService

RECEIVED = bytearray(READ_BYTES)
"""Shared buffer of the event loop; one for all connections, because it is emptied before the next read."""
RECEIVED_VIEW = memoryview(RECEIVED)
SPARE_BYTES = MAX_TEXT_BYTES + 1
"""Space for headers and the spare byte in a buffer for a body with binary tensors."""
_MOST_WITH_SPARE = 192 * 1024  # threads receive long bodies, into exact buffers
_FIRST_BYTES = 64 * 1024  # initial size for a long body; doubles as bytes arrive, whatever length was announced
POOL = BodyBuffers()


class BodyReader:
    """Receives the rest of a body of known length directly into the body's buffer.

    Attributes:
        rest: The buffer for the next bytes; None if no body is received this way.
        size: Size of the buffer for the next request, headers included; 0 to receive it in the shared buffer.
        offered: The buffer of that size that the event loop is reading into; still in the pool.
        surplus: A byte after the body that was received with it.
    """

    __slots__ = ("_body", "_end", "_received", "_start", "offered", "rest", "size", "surplus")

    def __init__(self) -> None:
        self.rest: memoryview | None = None
        self.size = 0
        self.offered: bytearray | None = None
        self.surplus = b""
        self._body: bytearray | memoryview = bytearray()
        self._start = self._end = self._received = 0  # positions in the buffer

    @property
    def received(self) -> int:
        """Number of received bytes."""
        return self._received - self._start

    def offer(self) -> memoryview:
        """Buffer for a request of the same length as the previous one; the shared buffer if none is free."""
        self.offered = POOL.first(self.size)
        return RECEIVED_VIEW if self.offered is None else memoryview(self.offered)

    def withdraw(self, nbytes: int) -> bytes:
        """The received bytes in the offered buffer, which stays in the pool."""
        offered, self.offered = self.offered, None
        self.size = 0
        return b"" if offered is None else bytes(memoryview(offered)[:nbytes])

    def begin(self, service: InferenceService, request: WireRequest, length: int, begun: Body | memoryview) -> None:
        """Start to receive a body, with its first piece.

        Raises:
            OverloadedError: The byte budget is exhausted, or memory is insufficient.
        """
        self._start, self._end = 0, length
        binary, pinned = has_binary_tensors(request), service.bodies
        self.size = length + SPARE_BYTES if binary and pinned is None and length <= _MOST_WITH_SPARE else 0
        used = pinned.take(length) if binary and pinned is not None else None
        # The first piece is longer than the initial size if it came in a buffer that was offered for another request.
        count = min(length, max(_FIRST_BYTES, 2 * len(begun)))
        self._continue_in(request, used or POOL.take(self.size or length), count, begun)

    def begin_in(self, buffer: bytearray, request: WireRequest, start: int, nbytes: int, length: int) -> None:
        """Receive a body in the offered buffer, which already has the first bytes of the request.

        Args:
            buffer: The offered buffer.
            request: The request.
            start: Start of the body in the buffer.
            nbytes: Number of received bytes.
            length: Length of the body.

        Raises:
            OverloadedError: The byte budget is exhausted.
        """
        request.reservation.reserve(length)
        POOL.take(len(buffer))
        self._body = buffer
        self._start, self._received, self._end = start, nbytes, start + length
        self.rest = memoryview(buffer)[nbytes : start + length + 1]

    def advance(self, request: WireRequest, nbytes: int) -> bool:
        """Account for received bytes; True if the body is complete.

        Raises:
            OverloadedError: See ``begin``.
        """
        self._received += nbytes
        if self._received >= self._end:
            return True
        if self.rest is not None and nbytes < len(self.rest):
            self.rest = self.rest[nbytes:]
            return False
        # The event loop still holds a view of the full buffer, so it cannot be resized.
        begun, self._body, self.rest = self._body, bytearray(), None
        self._continue_in(request, None, min(self._end, 2 * len(begun)), begun)
        return False

    def finish(self) -> tuple[bytearray | memoryview, bytearray | None]:
        """The whole body, and its buffer if it may be reused."""
        buffer, start, end = self._body, self._start, self._end
        self.surplus = b""
        if self._received > end:
            self.surplus = bytes(memoryview(buffer)[end : self._received])
            self.size = 0
        self._body, self.rest = bytearray(), None
        if len(buffer) == end:
            return buffer, buffer if isinstance(buffer, bytearray) else None
        return memoryview(buffer)[start:end], buffer if isinstance(buffer, bytearray) else None

    def clear(self) -> None:
        """Free the body."""
        self._body, self.rest, self.offered = bytearray(), None, None
        self.size = 0

    def _continue_in(
        self, request: WireRequest, used: bytearray | memoryview | None, count: int, begun: Body | memoryview
    ) -> None:
        """Receive the bytes after ``begun``, in a reused buffer or in ``count`` new bytes."""
        length = self._end
        try:
            request.reservation.reserve((count if used is None else length) - request.reservation.nbytes)
            body = bytearray(self.size if self.size and count == length else count) if used is None else used
        except MemoryError:
            raise OverloadedError("not enough memory for a body of this length; try again later") from None
        view = memoryview(body)
        view[: len(begun)] = begun  # a bytearray itself would copy it twice
        self._body = body
        self._received = len(begun)
        self.rest = view[len(begun) : length + 1]


def has_binary_tensors(request: WireRequest) -> bool:
    """Whether a request of the Open Inference Protocol has binary tensors, which are decoded without a copy."""
    return request.target.api == "oip" and HEADER_LENGTH in request.headers
