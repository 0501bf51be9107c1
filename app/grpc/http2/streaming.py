"""Calls with any number of messages each way: those of ``Streaming`` methods."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing

from app.config.limits import Waiting
from app.engine.codec.compression import decompress
from app.errors import AppError, InternalError
from app.grpc.call import Outcome, Streaming
from app.grpc.http2.framing import MessageBuffer
from app.grpc.http2.headers import CallHeaders
from app.grpc.http2.stream import Link, Stream
from app.service.admission import Reservation

log = logging.getLogger(__name__)

STREAMED_BYTES = 64 * 1024
"""Maximum bytes of a message, and of responses that wait for the client."""
_NOTHING = MessageBuffer(0, "nothing")


class StreamingCall(Stream):
    """A call of a ``Streaming`` method."""

    __slots__ = ("_buffer", "_change", "_held", "_method", "_reservation")

    def __init__(self, connection: Link, number: int, headers: CallHeaders, method: Streaming) -> None:
        super().__init__(connection, number, headers)
        self._method = method
        self._buffer = MessageBuffer(STREAMED_BYTES, "the limit of a streaming method")
        self._reservation = Reservation(connection.context.services.state.service.admission)
        self._held = 0  # bytes without flow-control credit, so that the client sends no more than is read
        self._change: asyncio.Future[None] | None = None  # done when more has come
        self._start_task(self._answer())

    def receive(self, data: bytes, *, ended: bool) -> None:
        """Add received bytes; ``ended`` if they are the last."""
        self.ended = ended
        if self.done:
            self._connection.session.acknowledge(self.number, len(data))
            return
        self._held += len(data)
        try:
            self._reservation.reserve(len(data))
        except AppError as error:
            self.fail(error)
            return
        self._buffer.add(data)
        self._wake()

    def _wake(self) -> None:
        change, self._change = self._change, None
        if change is not None and not change.done():
            change.set_result(None)

    def waiting_for(self) -> tuple[Waiting, object] | None:
        """The client action that the call is blocked on, see ``Watched``."""
        if self.done:
            return self.unread()
        unsent = self._connection.session.unsent(self.number)
        return ("write", unsent) if unsent else None

    def _release(self) -> None:
        super()._release()
        self._reservation.release()
        self._connection.session.acknowledge(self.number, self._held)
        self._held = 0
        self._buffer = _NOTHING

    async def _answer(self) -> None:
        outcome: Outcome = None, [], b""
        try:
            async with aclosing(self._method.answer(self._messages())) as answers:
                async for message in answers:
                    while self._connection.session.unsent(self.number) > STREAMED_BYTES:
                        await self._connection.flushed()
                    self._send(message)
        except AppError as error:
            outcome = error, [], b""
        except Exception as error:
            log.error("a gRPC stream failed", exc_info=error)
            outcome = InternalError(), [], b""
        self._task = None
        self.finish(outcome)

    def _send(self, message: bytes) -> None:
        session = self._connection.session
        if not self.begun:
            self.begun = True
            session.begin(self.number)
        session.send(self.number, message)
        self._connection.flush_soon()

    async def _messages(self) -> AsyncIterator[bytes]:
        while True:
            found = self._buffer.take()
            left = len(self._buffer)
            read = self._held if found is None else max(0, self._held - left)
            self._held -= read
            self._connection.session.acknowledge(self.number, read)
            self._reservation.reserve(left - self._reservation.nbytes)
            if found is not None:
                compressed, message = found
                if compressed:
                    message = decompress(message, self._headers.coding(), STREAMED_BYTES)
                yield bytes(message)
                await asyncio.sleep(0)  # many small messages must not block the event loop
            elif self.ended:
                self._buffer.check_end()
                return
            else:
                await self._changed()

    async def _changed(self) -> None:
        self._change = asyncio.get_running_loop().create_future()
        await self._change
