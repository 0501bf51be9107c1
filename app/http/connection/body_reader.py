"""Body reader: small requests through a shared buffer, large bodies zero-copy into their own buffer."""

from app.engine.codec import Body
from app.engine.codec.oip import HEADER_LENGTH
from app.errors import OverloadedError
from app.http.connection.buffer_pool import BodyBuffers
from app.http.connection.request import WireRequest
from app.http.connection.request_parser import READ_BYTES
from app.service.inference import InferenceService

RECEIVED = bytearray(READ_BYTES)
"""Shared buffer of the event loop; one for all connections, because it is emptied before the next read."""
RECEIVED_VIEW = memoryview(RECEIVED)
_FIRST_BYTES = 64 * 1024  # initial size for a long body; doubles as bytes arrive, whatever length was announced
POOL = BodyBuffers()


class BodyReader:
    """Receives the rest of a body of known length directly into the body's buffer.

    Attributes:
        rest: The buffer for the next bytes; None if no body is received this way.
    """

    __slots__ = ("_body", "_length", "rest")

    def __init__(self) -> None:
        self.rest: memoryview | None = None
        self._body: bytearray | memoryview = bytearray()
        self._length = 0

    @property
    def received(self) -> int:
        """Number of received bytes."""
        return len(self._body) - (0 if self.rest is None else len(self.rest))

    def begin(self, service: InferenceService, request: WireRequest, length: int, begun: Body | memoryview) -> None:
        """Start to receive a body, with its first piece.

        Raises:
            OverloadedError: The byte budget is exhausted, or memory is insufficient.
        """
        self._length = length
        self._continue_in(request, _used_buffer(service, request, length), min(length, _FIRST_BYTES), begun)

    def advance(self, request: WireRequest, nbytes: int) -> bool:
        """Account for received bytes; True if the body is complete.

        Raises:
            OverloadedError: See ``begin``.
        """
        if self.rest is not None and nbytes < len(self.rest):
            self.rest = self.rest[nbytes:]
            return False
        if len(self._body) == self._length:
            return True
        # The event loop still holds a view of the full buffer, so it cannot be resized.
        begun, self._body, self.rest = self._body, bytearray(), None
        self._continue_in(request, None, min(self._length, 2 * len(begun)), begun)
        return False

    def finish(self) -> bytearray | memoryview:
        """The whole body."""
        body = self._body
        self.clear()
        return body

    def clear(self) -> None:
        """Free the body."""
        self._body, self.rest = bytearray(), None

    def _continue_in(
        self, request: WireRequest, used: bytearray | memoryview | None, count: int, begun: Body | memoryview
    ) -> None:
        """Receive the bytes after ``begun``, in a reused buffer or in ``count`` new bytes."""
        try:
            request.reservation.reserve((count if used is None else len(used)) - request.reservation.nbytes)
            body = bytearray(count) if used is None else used
        except MemoryError:
            raise OverloadedError("not enough memory for a body of this length; try again later") from None
        view = memoryview(body)
        view[: len(begun)] = begun  # a bytearray itself would copy it twice
        self._body = body
        self.rest = view[len(begun) :]


def _used_buffer(service: InferenceService, request: WireRequest, length: int) -> bytearray | memoryview | None:
    """An existing buffer for a whole body (pinned, if tensors are copied from it to CUDA), or None."""
    bodies = service.bodies
    if bodies is not None and request.target.api == "oip" and HEADER_LENGTH in request.headers:
        return bodies.take(length) or POOL.take(length)
    return POOL.take(length)
