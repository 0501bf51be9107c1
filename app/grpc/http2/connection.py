"""Protocol of one client connection: turns HTTP/2 events into calls."""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any, cast

import grpc
from ngh2 import (
    ConnectionClosed,
    DataReceived,
    ErrorCode,
    GoAwayReceived,
    NGH2Error,
    PingAcknowledged,
    PingReceived,
    RequestReceived,
    SettingsReceived,
    StreamClosed,
    TrailersReceived,
)

from app.config.limits import Waiting
from app.errors import AppError
from app.grpc.call import Direct, Streaming, Unary
from app.grpc.http2 import headers
from app.grpc.http2.context import Context
from app.grpc.http2.headers import CallHeaders
from app.grpc.http2.patience import Patience
from app.grpc.http2.session import Session
from app.grpc.http2.single import DirectCall, UnaryCall
from app.grpc.http2.stream import Stream
from app.grpc.http2.streaming import StreamingCall
from app.grpc.inference import DEADLINE_SLACK_S
from app.grpc.status import StatusError

log = logging.getLogger(__name__)

READ_BYTES = 256 * 1024
_RECEIVED = memoryview(bytearray(READ_BYTES))
"""Receive buffer of all connections; it is processed before the event loop reads again."""
_WRITE_BYTES = 256 * 1024  # given to the event loop at once
_NOTICE_S = 1.0
"""Time for a client to acknowledge the shutdown notice, before new calls are refused."""


class Connection(asyncio.BufferedProtocol):
    """One connection of a client.

    Args:
        context: Context shared by all connections.
        opened, lost: Called with the connection when it opens and when it is lost.

    Attributes:
        context: Context shared by all connections.
        session: The HTTP/2 session.
        client, socket: Address of the peer, and the socket.
        streams: Calls whose streams are open, by number.
        idle_since: Time of the last call's end; None while there are calls.
    """

    def __init__(
        self, context: Context, opened: "Callable[[Connection], None]", lost: "Callable[[Connection], None]"
    ) -> None:
        self.context = context
        self._opened, self._lost = opened, lost
        self.session = Session(context.configuration, context.max_header_bytes)
        self.client: str | None = None
        self.socket: socket.socket | None = None
        self.streams: dict[int, Stream] = {}
        self._loop = asyncio.get_running_loop()
        self.idle_since: float | None = self._loop.time()
        self._patience = Patience()
        self._greeted = False  # whether the client's settings have arrived
        self._flushing = False  # whether a flush is under way or scheduled
        self._paused = False  # whether the client reads too slowly
        self._blocked: list[asyncio.Future[None]] = []  # done after the next flush
        self._notice: asyncio.TimerHandle | None = None

    # The event loop's calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the settings, or refuse the connection if there are too many."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(2 * _WRITE_BYTES)
        peer = transport.get_extra_info("peername")
        self.client = str(peer[0]) if isinstance(peer, tuple) else None
        self.socket = transport.get_extra_info("socket")
        self.context.connections += 1
        self._opened(self)
        if self.context.crowded:
            self._terminate(ErrorCode.ENHANCE_YOUR_CALM)
        else:
            self._flush()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Return the shared receive buffer."""
        return _RECEIVED

    def buffer_updated(self, nbytes: int) -> None:
        """Process received bytes."""
        if self.session.closed:
            return
        self._flushing = True  # at the end, once
        try:
            self.session.receive(_RECEIVED[:nbytes])
            self._dispatch()
        except Exception as error:  # noqa: BLE001 - other connections are not affected
            self._fail(error)
        else:
            self._flush()

    def eof_received(self) -> None:
        """Close the connection: answers are not sent on half-closed ones."""

    def pause_writing(self) -> None:
        """Pause: the client reads too slowly. Stop reading too, so that its answers can't pile up."""
        self._paused = True
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Continue after a pause."""
        self._paused = False
        if not self._transport.is_closing():
            self._transport.resume_reading()
        self._flush()

    def connection_lost(self, _: Exception | None) -> None:
        """Withdraw all calls."""
        self.session.closed = True
        if self._notice is not None:
            self._notice.cancel()
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            stream.close()
        self.context.calls -= len(streams)
        self.context.connections -= 1
        self._lost(self)

    # The calls' calls.

    def reset(self, number: int) -> None:
        """Reset a stream."""
        self.session.reset(number, ErrorCode.CANCEL)
        self.flush_soon()

    async def flushed(self) -> None:
        """Wait for the next flush."""
        flush: asyncio.Future[None] = self._loop.create_future()
        self._blocked.append(flush)
        await flush

    def flush_soon(self) -> None:
        """Flush once at the end of this event loop turn, so that the answers of a batch go out together."""
        self._patience.relax()
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    # The server's calls.

    def drain(self) -> None:
        """Start a graceful shutdown: the connection closes once its calls in flight are answered."""
        if self._notice is None and not self._transport.is_closing():
            self.session.notify()
            self._notice = self._loop.call_later(_NOTICE_S, self._drained)
            self.flush_soon()

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    def waiting_for(self) -> tuple[Waiting, object] | None:
        """The client action that this connection is blocked on, see ``Watched``."""
        unsent = self._transport.get_write_buffer_size()
        if unsent:
            return "write", unsent
        return None if self._greeted else ("headers", self)

    def time_out(self, _: Waiting) -> None:
        """Close the connection of a client that makes no progress, see ``Watched``."""
        self._transport.abort()

    # Events of the session.

    def _dispatch(self) -> None:
        for event in self.session.events():
            handle = _HANDLERS.get(type(event))
            if handle is not None:
                handle(self, event)

    def _on_request(self, event: RequestReceived) -> None:
        number, fields = event.stream_id, event.headers
        given = self.context.known_headers.get(fields)
        try:
            if given is None:
                by_name = dict(fields)
                status = headers.refused_by_http(by_name)
                if status is not None:
                    self.session.refuse(number, [(b":status", status)])
                    return
                given = headers.read(fields, by_name, self.context.max_header_bytes)
                self.context.remember(fields, given)
            stream = self._open(number, given)
        except AppError as error:
            self.session.refuse(number, [*headers.RESPONSE, *headers.failure([], error)])
            return
        if event.end_stream:
            stream.receive(b"", ended=True)

    def _open(self, number: int, given: CallHeaders) -> Stream:
        """Begin a call.

        Raises:
            OverloadedError: Too many calls are in flight.
            StatusError: The method is unknown.
        """
        self.context.admit()
        method = self.context.services.methods.get(given.path)
        if isinstance(method, Direct):
            stream: Stream = DirectCall(self, number, given, method)
        elif isinstance(method, Unary):
            stream = UnaryCall(self, number, given, method)
        elif isinstance(method, Streaming):
            stream = StreamingCall(self, number, given, method)
        else:
            raise StatusError(grpc.StatusCode.UNIMPLEMENTED, f"there is no method {given.path[:200]!r}")
        self.streams[number] = stream
        self.context.calls += 1
        self.idle_since = None
        return stream

    def _on_data(self, event: DataReceived) -> None:
        data, ended = event.data, event.end_stream
        if not data and not ended and self._strained():
            return
        stream = self.streams.get(event.stream_id)
        if stream is None:
            self.session.acknowledge(event.stream_id, len(data))
        else:
            stream.receive(data, ended=ended)

    def _on_trailers(self, event: TrailersReceived) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is not None:
            stream.receive(b"", ended=True)

    def _on_stream_closed(self, event: StreamClosed) -> None:
        stream = self.streams.pop(event.stream_id, None)
        if stream is None:  # a request that was refused
            return
        self.context.calls -= 1
        if not self.streams:
            self.idle_since = self._loop.time()
        left_s = stream.time_remaining()
        in_vain = not stream.done and event.error_code and (left_s is None or left_s > DEADLINE_SLACK_S)
        stream.close()
        if in_vain:
            self._strained()

    def _on_settings(self, _: SettingsReceived) -> None:
        self._greeted = True
        self._strained()

    def _on_ping(self, _: PingReceived) -> None:
        self._strained()

    def _on_pong(self, event: PingAcknowledged) -> None:
        if self._notice is not None and self.session.is_notice(event.opaque_data):
            self._drained()

    def _on_goaway(self, _: GoAwayReceived) -> None:
        if not self.streams:
            self._terminate(ErrorCode.NO_ERROR)

    def _on_closed(self, _: ConnectionClosed) -> None:
        self._transport.close()

    # Output.

    def _flush(self) -> None:
        """Write all pending output, and process the events that this causes."""
        self._flushing = True
        try:
            sending = True
            while sending:
                self._write()
                self._dispatch()
                sending = not self._paused and self.session.end_unfinished()
        except Exception as error:  # noqa: BLE001 - other connections are not affected
            self._fail(error)
        self._flushing = False
        blocked, self._blocked = self._blocked, []
        for each in blocked:
            if not each.done():
                each.set_result(None)

    def _write(self) -> None:
        while not self._paused and not self._transport.is_closing():
            data = self.session.output(_WRITE_BYTES)
            if data:
                self._transport.write(data)
            if len(data) < _WRITE_BYTES:
                return

    def _strained(self) -> bool:
        """Count a cheap frame; True if there were too many, which ends the connection."""
        if not self._patience.strain():
            return False
        self._terminate(ErrorCode.ENHANCE_YOUR_CALM)
        return True

    def _drained(self) -> None:
        """Refuse new calls: the client has acknowledged the notice, or ``_NOTICE_S`` has passed."""
        if self._notice is not None:
            self._notice.cancel()
        self.session.finish()
        self.flush_soon()

    def _terminate(self, code: ErrorCode) -> None:
        """Send GOAWAY with an error code and close the connection."""
        if not self._transport.is_closing():
            log.debug("a gRPC connection of %s is ended: %s", self.client, code.name)
            self._transport.write(self.session.terminate(code))
            self._transport.close()

    def _fail(self, error: Exception) -> None:
        """Abort the connection: the input is no valid HTTP/2, or the server has a defect."""
        if isinstance(error, NGH2Error):
            log.debug("a gRPC connection of %s is closed: %s", self.client, error)
        else:
            log.error("a gRPC connection failed", exc_info=error)
        self.session.closed = True
        self._transport.abort()


_HANDLERS: dict[type, Callable[[Connection, Any], None]] = {
    RequestReceived: Connection._on_request,
    DataReceived: Connection._on_data,
    TrailersReceived: Connection._on_trailers,
    StreamClosed: Connection._on_stream_closed,
    SettingsReceived: Connection._on_settings,
    PingReceived: Connection._on_ping,
    PingAcknowledged: Connection._on_pong,
    GoAwayReceived: Connection._on_goaway,
    ConnectionClosed: Connection._on_closed,
}
