"""HTTP/1.1 protocol of one connection: inference requests on a fast path, all others through the ASGI bridge.

An ASGI request costs a task, an event, a scope and a dozen awaits before a byte is decoded, more time than most
models need. On the fast path an inference request goes from parser to service, and its response to the socket, in
plain calls (``buffer_updated`` → ``FastPath`` → ``InferenceService.start`` → ``_send``). Everything else,
including pipelined requests, goes through ``AsgiBridge`` to the application, which gives the same responses.

The state of a connection is what it reads next. Independently, a response may be due: to the latest request,
or to earlier pipelined ones.

=========  =====================================  ================================  ==============================
state      next input                             without a response due           with a response due
=========  =====================================  ================================  ==============================
BETWEEN    the first byte of a request            idle: keep-alive timeout; before  response due: no timeout
                                                  the first one: header timeout
HEADERS    the rest of its headers                header timeout                    no timeout (pipelined)
BODY       a piece of its body, for the parser    (a response is always due)        body timeout
DIRECT     the body, into its buffer (zero-copy)  (a response is always due)        body timeout
ENDED      nothing: input is discarded            closing                           last response after the current
=========  =====================================  ================================  ==============================

BETWEEN → HEADERS → BODY → BETWEEN by the parser; BODY → DIRECT → BETWEEN for a long body of known length; BETWEEN →
DIRECT → BETWEEN, or no change at all, for a request whose headers are in the header cache; any state → ENDED.

See docs/decisions/0005-answer-inference-in-the-http-protocol.md.
"""

import asyncio
import time
from enum import Enum
from functools import partial
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from app.config.limits import Waiting
from app.engine.codec import HeaderList
from app.engine.codec.content import Content, LongContent
from app.errors import ModelUnavailableError, error_body
from app.http.connection.asgi_bridge import AsgiBridge, AsgiRequest
from app.http.connection.body_reader import RECEIVED, RECEIVED_VIEW
from app.http.connection.context import ConnectionContext
from app.http.connection.fast_path import FastPath
from app.http.connection.header_cache import header_text
from app.http.connection.keep_alive import KeepAlive
from app.http.connection.lingering_close import LingeringClose
from app.http.connection.long_bodies import LONG_BYTES, LongBodies
from app.http.connection.over_limit import RESERVED, OverLimitApp
from app.http.connection.replay import replay
from app.http.connection.request import WireRequest
from app.http.connection.request_parser import RefusedRequestError, RequestParser
from app.http.connection.response import render
from app.telemetry.logs import log_request


class State(Enum):
    """Reader state of a connection; see the table in the module docstring."""

    BETWEEN = "between two requests"
    HEADERS = "headers"
    BODY = "body"
    DIRECT = "body, directly into its buffer"
    ENDED = "ended"


BETWEEN, HEADERS, BODY, DIRECT, ENDED = State  # looking up a global is six times as fast as an enum member


class Connection(asyncio.BufferedProtocol):
    """One HTTP/1.1 connection.

    Args:
        config: Configuration of uvicorn; ``connections`` of its application is the context that all of them share.
        server_state: State of uvicorn's server. ``draining`` (whether each response is the last of its connection)
            and ``connected`` (a callback for each new connection) on it are optional.
        app_state: State from the lifespan.
        _loop: The event loop.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._server_state = server_state
        self._loop = _loop or asyncio.get_event_loop()
        self._bridge = AsgiBridge(config, server_state, app_state, self._answered)
        self._context: ConnectionContext = config.loaded_app.connections
        self._fast = FastPath(self._context, self._send)
        self._serves_inference = True
        self._parser = RequestParser(self, self._context.limits)
        self._keep_alive = KeepAlive(self._loop, config.timeout_keep_alive)
        self._long = LongBodies(self._loop, self._context.threads)
        self._state = BETWEEN
        self._path: FastPath | AsgiBridge = self._bridge  # path of the latest request
        self._last: WireRequest | AsgiRequest | None = None  # the latest request
        self._new_headers = b""  # text of headers that may be cached
        self._last_response = b""  # sent after the responses to earlier requests
        self.transport: asyncio.Transport

    # Callbacks of the event loop.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Connection opened."""
        self.transport = transport
        self._bridge.connect(transport)
        self._keep_alive.connect(transport)
        self._long.connect(transport, self._bridge.flow)
        state = self._server_state
        state.connections.add(self)  # type: ignore[arg-type]
        self._context.watch(state.connections)
        connected = getattr(state, "connected", None)
        if connected is not None:
            connected()
        over = len(state.connections) - self._context.limits.max_connections
        if over > 0:
            self._restrict(over)

    def connection_lost(self, exc: Exception | None) -> None:
        """Client disconnected, or the connection was closed: free the resources of its requests."""
        self._server_state.connections.discard(self)
        self._fast.disconnect()
        self._bridge.disconnect()
        self._keep_alive.cancel()
        self._long.close()
        self._parser.close()
        self._state = ENDED
        self._last = None
        if exc is None:
            self.transport.close()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Buffer of the event loop for received bytes, or the buffer of the next body; see ``BodyReader.offer``."""
        reader = self._fast.reader
        if reader.rest is not None:
            return reader.rest
        return reader.offer() if reader.size else RECEIVED_VIEW

    def buffer_updated(self, nbytes: int) -> None:
        """The event loop has received bytes."""
        state = self._state
        if state is BETWEEN:
            if self._serves_inference and self._begin_known(nbytes):
                return
            if self._fast.reader.offered is not None:
                replay(self, self.transport, self._long, self._fast.reader.withdraw(nbytes))
                return
        elif state is DIRECT:
            self._received_directly(nbytes)
            return
        elif state is ENDED:
            return
        self._keep_alive.idle_since = None
        try:
            self._parser.feed(RECEIVED_VIEW[:nbytes])
        except RefusedRequestError as error:
            self._end_with(error.status, str(error))
        self._new_headers = b""
        if self._state is BODY and self._path is self._fast:
            self._fast.receive_rest_directly()
            if self._fast.reader.rest is not None:
                self._state = DIRECT
                self._long.receive(self._fast.reader, self._received_directly)

    def _begin_known(self, nbytes: int) -> bool:
        """Start a request with cached headers; False if the parser must read the received bytes."""
        received = self._fast.reader.offered or RECEIVED
        text = header_text(received, nbytes)
        if not text:
            return False
        known = self._context.header_cache.get(text)
        if known is None:
            self._new_headers = text
            return False
        start = len(text)
        if nbytes - start > known.content_length or self._answer_due():
            return False
        if nbytes - start < known.content_length:
            self._state = DIRECT
        self._keep_alive.idle_since = None
        self._path = self._fast
        self._last = self._fast.begin_known(known, received, start, nbytes)
        if known.content_length >= LONG_BYTES and self._state is DIRECT:
            self._long.receive(self._fast.reader, self._received_directly)
        return True

    def _received_directly(self, nbytes: int) -> None:
        if self._fast.received_directly(nbytes):
            if self._parser.in_message:
                self._parser.reset()  # it saw the start of the body, but will not see its end
            self._state = BETWEEN
            surplus = self._fast.reader.surplus
            self._fast.end_body()
            if surplus:
                replay(self, self.transport, self._long, surplus)

    def eof_received(self) -> None:
        """The client has closed its side: the transport closes the connection."""

    def pause_writing(self) -> None:
        """The client does not read: stop reading from it, so responses do not pile up."""
        self._bridge.flow.pause_writing()
        if not self.transport.is_closing():
            self._bridge.flow.pause_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._bridge.flow.resume_writing()
        self._bridge.resume_reading()

    # Callbacks of the parser (``RequestParser``).

    def message_began(self) -> None:
        """BETWEEN → HEADERS."""
        self._state = HEADERS

    def headers_received(self) -> None:
        """HEADERS → BODY: choose the path of the request."""
        self._state = BODY
        parser = self._parser
        due = self._answer_due()
        target = None
        if self._serves_inference and not due and parser.method == b"POST":
            service = self._context.service
            path, _, query = parser.url.partition(b"?")
            # The bridge decodes percent-encoded paths; the application adds CORS headers for other origins.
            if b"%" not in path and not (service.cross_origin and parser.has_origin):
                target = service.target(path.decode("latin-1"))
        if target is None:
            self._path = self._bridge
            self._last = self._bridge.begin(parser, behind_another=due)
            if self._draining():
                self._last.keep_alive = False
            return
        self._path = self._fast
        text = b"" if parser.expects_continue else self._new_headers
        self._last = self._fast.begin(parser, target, query, text)
        if parser.expects_continue and not self._last.response_complete:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def body_received(self, piece: bytes) -> None:
        """Handle a piece of the body."""
        self._path.receive_body(piece)

    def message_received(self) -> None:
        """BODY → BETWEEN: the request is complete."""
        self._state = BETWEEN
        self._new_headers = b""
        self._path.end_body()

    def _send(self, request: WireRequest, status: int, headers: HeaderList, content: Content) -> None:
        """Send the response to a request on the fast path."""
        if self.transport.is_closing():
            return
        if self._draining():
            request.keep_alive = False
        if type(content) is LongContent:
            more = len(content) - len(content.json_header)
            first = self._render(status, headers, content.json_header, keep_alive=request.keep_alive, more=more)
            self._long.send((first, *content.tensors), partial(self._answered, request))
        else:
            self.transport.write(self._render(status, headers, content, keep_alive=request.keep_alive))
        if request.began_s:
            path = request.target.path.encode("latin-1")
            request_id = dict(headers).get(b"x-request-id", b"")
            client = self._bridge.client[0] if self._bridge.client else None
            log_request("POST", path, status, time.perf_counter() - request.began_s, request_id, client)
        if not self._long.sending:
            self._answered(request)

    # End of a request, and of the connection.

    def _answer_due(self) -> bool:
        last = self._last
        return last is not None and (not last.response_complete or self._long.sending)

    def _answered(self, request: WireRequest | None = None) -> None:
        """A response was sent: close after the last one, continue with pipelined requests, or become idle."""
        if request is not None and not request.keep_alive:
            self._close()
        self._server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self._bridge.pipeline:
            self._bridge.run_next()
        elif self._last_response:
            self._write_last(self._last_response)
        else:
            if self._bridge.flow.read_paused:
                self._bridge.resume_reading()
            self._keep_alive.start()

    def _close(self) -> None:
        """Close without a reset, which could overtake the response to a client that is still sending."""
        reading = self._state in (BODY, DIRECT)
        if reading and not self._draining() and self.transport.can_write_eof():
            LingeringClose(self, self.transport, self._loop)
        else:
            self.transport.close()

    def _end_with(self, status: int, message: str, *headers: tuple[bytes, bytes]) -> None:
        """Respond to input that is not a valid request, and close; earlier requests get their responses first."""
        if self._state is ENDED or self.transport.is_closing():
            return
        unread = self._state in (BODY, DIRECT)  # then the last request is the one that is refused
        self._state = ENDED
        request_id = (b"x-request-id", self._context.service.request_ids.of({}))
        all_headers = [*headers, request_id, (b"content-type", b"application/json")]
        response = self._render(status, all_headers, error_body(message), keep_alive=False)
        due = self._answer_due()
        if unread and self._path is self._bridge:
            due = self._bridge.drop_unread()
        elif unread:
            self._fast.abandon()
            due = False
        if due:
            self._last_response = response
            self._bridge.flow.pause_reading()
        else:
            self._write_last(response)

    def _write_last(self, response: bytes) -> None:
        self.transport.write(response)
        self.transport.close()

    def _render(self, status: int, headers: HeaderList, content: bytes, *, keep_alive: bool, more: int = 0) -> bytes:
        default_lines = self._context.default_headers.lines(self._server_state.default_headers)
        return render(status, default_lines, headers, content, keep_alive=keep_alive, more=more)

    def _restrict(self, over: int) -> None:
        """Respond only to health checks, because this connection is over the limit; ignore it if too many are."""
        self._serves_inference = False
        limits = self._context.limits
        if over > RESERVED:
            self._end_with(503, limits.too_many_connections(), (b"retry-after", b"1"))
        else:
            self._bridge.app = OverLimitApp(self._bridge.app, limits, self._context.service.request_ids.of({}))

    # Callbacks of the watchdog (``app.service.watchdog``), which calls them on each connection.

    def waiting_for(self) -> tuple[Waiting, object] | None:
        """The client action that this connection is blocked on, with a progress mark; see the module's table."""
        unsent = self.transport.get_write_buffer_size()
        if unsent:
            return "write", unsent
        found: tuple[Waiting, object] | None = None
        if self._answer_due():
            if self._state in (BODY, DIRECT):
                if self._path is self._fast:
                    found = "body", self._fast.received
                elif not self._bridge.flow.read_paused:
                    found = "body", self._bridge.body_bytes
        elif self._state is BETWEEN:
            # An idle connection has the keep-alive timeout; one that sent no request yet, or empty lines, has none.
            found = None if self._keep_alive.idle_since is not None else ("headers", self)
        elif self._state is not ENDED:
            found = "headers", self._parser.headers
        return found

    def time_out(self, waiting: Waiting) -> None:
        """End a connection without progress, with a response if the client can receive one."""
        error = self._context.limits.timed_out(waiting)
        if waiting == "write" or self.transport.is_closing():
            self.transport.abort()
        elif waiting == "body" and self._path is self._fast:
            self._fast.refuse(error)
        elif waiting == "body" and self._bridge.reading is not None and self._bridge.reading.response_started:
            self.transport.abort()
        elif self._state is BETWEEN:
            self.transport.close()
        else:
            self._end_with(408, str(error))

    # Callbacks of the server (``app.process.shutdown``).

    def _draining(self) -> bool:
        return getattr(self._server_state, "draining", False)

    def shutdown(self) -> None:
        """Drain the connection, on request of uvicorn's server."""
        self.drain(close_idle=True)

    def drain(self, *, close_idle: bool) -> None:
        """Graceful shutdown: the current response is the last one.

        Args:
            close_idle: Also close the connection if it has no request, or only the rest of a refused one.
        """
        if self._last is not None and self._answer_due():
            self._last.keep_alive = False
        elif close_idle and (self._state is BETWEEN or self.transport.get_protocol() is not self):
            self.transport.close()

    def cut(self) -> None:
        """End of the graceful shutdown: respond to the current inference request with 503, and close."""
        self._fast.cut(ModelUnavailableError("the server is shutting down"))
        self.transport.close()
