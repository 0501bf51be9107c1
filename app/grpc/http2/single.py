"""Calls with one request message: those of ``Direct`` and ``Unary`` methods."""

import asyncio
import logging
from abc import abstractmethod

from app.config.limits import Waiting
from app.engine.codec import Body
from app.engine.codec.compression import decompress, decompress_short
from app.engine.codec.model_codec import MOST_INLINE_BYTES
from app.errors import AppError, InternalError
from app.grpc.call import Direct, Pending, Unary
from app.grpc.http2.framing import MessageBuffer
from app.grpc.http2.headers import CallHeaders
from app.grpc.http2.stream import Link, Stream
from app.service.admission import Reservation

log = logging.getLogger(__name__)

_WIDEN_BYTES = 64 * 1024
_NOTHING = MessageBuffer(0, "nothing")


class OneMessage(Stream):
    """A call with one request message."""

    __slots__ = ("_buffer", "_received", "_taken", "_wide")

    def __init__(self, connection: Link, number: int, headers: CallHeaders) -> None:
        super().__init__(connection, number, headers)
        self._buffer = MessageBuffer(connection.context.max_body_bytes, "max_body_bytes")
        self._received = 0
        self._wide = False
        self._taken = False  # whether the message has been delivered

    def receive(self, data: bytes, *, ended: bool) -> None:
        """Add received bytes; ``ended`` if they are the last."""
        self.ended = ended
        if self.done or self._taken:  # data after the message is ignored
            self._connection.session.acknowledge(self.number, len(data))
            return
        self._received += len(data)
        try:
            self._buffer.add(data)
            found = self._buffer.take()
            if found is None:
                self._reserve(len(self._buffer))
                self._connection.session.acknowledge(self.number, len(data))
                if not ended:
                    self._widen()
                else:
                    self._buffer.check_end()
                    self._taken = True
                    self._deliver(None)
                return
            self._taken = True
            compressed, message = found
            self._reserve(len(message))
            self._connection.session.acknowledge(self.number, len(data))
            if compressed:
                self._inflate(message)
            else:
                self._deliver(message)
        except AppError as error:
            self.fail(error)

    def waiting_for(self) -> tuple[Waiting, object] | None:
        """The client action that the call is blocked on, see ``Watched``."""
        if self.done:
            return self.unread()
        return None if self._taken else ("body", self._received)

    def _widen(self) -> None:
        """Enlarge the receive window for a long message."""
        if not self._wide and self._received >= _WIDEN_BYTES:
            self._wide = True
            self._connection.session.widen(self.number)

    @abstractmethod
    def _reserve(self, nbytes: int) -> None:
        """Count the bytes that have been received so far against the byte budget."""

    @abstractmethod
    def _deliver(self, message: Body | None) -> None:
        """Give the message to the method; None if the call ended without one."""

    def _release(self) -> None:
        super()._release()
        self._buffer = _NOTHING

    def _inflate(self, message: Body) -> None:
        encoding, most = self._headers.coding(), self._connection.context.max_body_bytes
        short = decompress_short(message, encoding, MOST_INLINE_BYTES, most)
        if short is None:
            self._start_task(self._inflate_aside(message, encoding, most))
        else:
            self._deliver(short)

    async def _inflate_aside(self, message: Body, encoding: bytes, most: int) -> None:
        """Decompress a long message in a thread, because it would block the event loop."""
        try:
            found = await asyncio.to_thread(decompress, message, encoding, most)
            del message
            self._task = None
            self._deliver(found)
        except AppError as error:
            self.fail(error)


class DirectCall(OneMessage):
    """A call of a ``Direct`` method."""

    __slots__ = ("_call",)

    def __init__(self, connection: Link, number: int, headers: CallHeaders, method: Direct) -> None:
        super().__init__(connection, number, headers)
        self._call: Pending | None = None
        call = method.begin(headers.known, self.time_remaining, self.finish)
        if not self.done:
            self._call = call

    def fail(self, error: AppError) -> None:
        """Respond with an error."""
        self._cancel_task()
        if self._call is not None:
            self._call.fail(error)

    def close(self) -> None:
        """Release the call: its stream or its connection is closed."""
        call, self._call = self._call, None
        if call is not None:
            call.withdraw()
        super().close()

    def _release(self) -> None:
        super()._release()
        self._call = None

    def _reserve(self, nbytes: int) -> None:
        if self._call is not None:
            self._call.reserve(nbytes)

    def _deliver(self, message: Body | None) -> None:
        if self._call is not None:
            self._call.receive(message)


class UnaryCall(OneMessage):
    """A call of a ``Unary`` method."""

    __slots__ = ("_method", "_reservation")

    def __init__(self, connection: Link, number: int, headers: CallHeaders, method: Unary) -> None:
        super().__init__(connection, number, headers)
        self._method = method
        self._reservation = Reservation(connection.context.services.state.service.admission)

    def _reserve(self, nbytes: int) -> None:
        self._reservation.reserve(nbytes - self._reservation.nbytes)

    def _release(self) -> None:
        super()._release()
        self._reservation.release()

    def _deliver(self, message: Body | None) -> None:
        self._start_task(self._answer(None if message is None else bytes(message)))

    async def _answer(self, message: bytes | None) -> None:
        try:
            outcome = await self._method.answer(message, self._headers.known)
        except Exception as error:
            log.error("a gRPC call failed", exc_info=error)
            outcome = InternalError(), [], b""
        self._task = None
        self.finish(outcome)
