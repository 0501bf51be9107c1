"""uvicorn's HTTP protocol, with a shorter way for inference requests.

An ASGI request costs a task, an event, a scope and a dozen awaits before a byte is decoded, which is more than most
models take. Here a complete inference request goes from the parser to the service, and the answer to the socket, in
plain calls; everything else, pipelined requests too, takes uvicorn's own way to the application, which answers alike.

A head that a client sends again, byte for byte, is not parsed again. An answer is written to the socket at once where
nothing waits in front of it: what is left to do for the request then happens while the client reads.
"""

import asyncio
import contextlib
import os
import time
from functools import partial
from typing import Any

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle
from uvicorn.server import ServerState

from app.bodies import BodyBuffers
from app.codec.model_codec import HeaderList, Headers
from app.errors import AppError, ModelUnavailableError, OverloadedError
from app.guarded import GuardedProtocol, Lingering
from app.inference import HEAD_BYTES, Exchange, InferenceService, Target
from app.logs import log_request

# One for all connections: what is in it is taken out before the loop reads again.
_BUFFER = bytearray(32 * 1024)
_SCRATCH = memoryview(_BUFFER)
_BODIES = BodyBuffers()
_CLAIM_BYTES = 64 * 1024  # of a longer body no more is believed than twice what has come


class _NoEvent:
    """Stands where uvicorn would wake a task that waits for the body; there is none."""

    def set(self) -> None:
        pass


_NO_EVENT = _NoEvent()


class InferenceCycle:
    """One inference request and its answer; to uvicorn it looks like a ``RequestResponseCycle``."""

    __slots__ = (
        "began_s",
        "buffer",
        "chunks",
        "disconnected",
        "exchange",
        "headers",
        "held",
        "keep_alive",
        "query",
        "response_complete",
        "service",
        "size",
        "target",
    )

    message_event = _NO_EVENT

    def __init__(
        self, service: InferenceService, target: Target, headers: Headers, query: bytes, *, keep_alive: bool
    ) -> None:
        self.service = service
        self.began_s = time.perf_counter() if service.access_log else 0.0
        self.target = target
        self.headers = headers
        self.query = query
        self.keep_alive = keep_alive
        self.chunks: list[bytes] = []
        self.buffer: bytearray | None = None  # the body of a long request, to be used again
        self.size = 0
        self.held = 0  # bytes that the intake counts for this request
        self.exchange: Exchange | None = None
        self.disconnected = False
        self.response_complete = False

    def hold(self, count: int) -> None:
        """Take bytes of the body in hand; see ``Intake.hold``."""
        self.service.intake.hold(count - self.held)
        self.held = count

    def release(self) -> None:
        """The body is not needed any more."""
        self.service.intake.release(self.held)
        self.held = 0


class Connection(asyncio.BufferedProtocol):
    """What the event loop sees of a connection; all of it is the inference protocol's.

    uvicorn's protocol is an ``asyncio.Protocol``, to which uvloop gives what it has read as new bytes each time. Only
    one that is none may say where to put it.
    """

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], **more: Any) -> None:
        protocol = InferenceProtocol(config, server_state, app_state, **more)
        for name in (
            "connection_made", "connection_lost", "get_buffer", "buffer_updated", "eof_received", "pause_writing",
            "resume_writing",
        ):  # fmt: skip
            setattr(self, name, getattr(protocol, name))


class InferenceProtocol(GuardedProtocol):
    """One connection.

    What is read goes into one scratch buffer and from there to the parser. Once the head of an inference request is
    known and its body is longer than the scratch buffer, the rest is received straight into the body.

    The inference service is found on the application; where there is none, all requests go uvicorn's own way.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._inference: InferenceCycle | None = None  # the request whose body is being read
        self._answering: InferenceCycle | None = None  # the last one whose body is whole
        self._asgi_cycle: RequestResponseCycle | None = None  # the last one that the application was given
        self._head: bytes | None = None  # of the request that is being parsed, should it be worth remembering
        self._fd = -1
        self._body = bytearray()
        self._length = 0  # of the whole body
        self._rest: memoryview | None = None  # the part of the body that is still to come, in raw mode

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        own_socket = transport.get_extra_info("socket")
        if own_socket is not None and transport.get_extra_info("sslcontext") is None:
            self._fd = own_socket.fileno()

    def _body_received(self) -> int | None:
        """How much there is of the body that is being read for the service; None where none is."""
        if self._inference is None:
            return None
        return self._inference.size if self._rest is None else len(self._body) - len(self._rest)

    def _refuse_body(self, error: AppError) -> None:
        if self._inference is not None:
            self._refuse(self._inference, error)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Where the loop is to put what it reads."""
        return _SCRATCH if self._rest is None else self._rest

    def buffer_updated(self, nbytes: int) -> None:
        """The loop has read something."""
        rest = self._rest
        if rest is None:
            if self._between and self._service is not None and self._recognised(self._service, nbytes):
                return
            if self._in_head:
                self._head_bytes += nbytes
            self.data_received(_SCRATCH[:nbytes])  # type: ignore[arg-type]
            self._head = None
            if self._in_head and self._head_bytes > self._limits.max_header_bytes:
                self.end_head()
            self._receive_directly()
        elif nbytes < len(rest):
            self._rest = rest[nbytes:]
        elif self._inference is not None and len(self._body) < self._length:
            self._grow(self._inference)
        else:
            self._received_directly()

    def _recognised(self, service: InferenceService, nbytes: int) -> bool:
        """Begin an inference request whose head was parsed before; False leaves what was read to the parser."""
        end = _BUFFER.find(b"\r\n\r\n", 0, nbytes) + 4
        if not 4 <= end <= HEAD_BYTES:
            return False
        head = bytes(_SCRATCH[:end])
        known = service.heads.get(head)
        if known is None:
            self._head = head
            return False
        previous: Any = self.cycle
        size = nbytes - end
        if size > known.length or not (previous is None or previous.response_complete):
            return False
        self._idle_since = None
        cycle = InferenceCycle(service, known.target, known.headers, known.query, keep_alive=True)
        self.cycle = cycle  # type: ignore[assignment]
        if size == known.length:
            self._take(cycle, bytes(_SCRATCH[end:nbytes]))
        else:
            self._inference = cycle
            self._receive_rest(cycle, known.length, _SCRATCH[end:nbytes])
        return True

    def _receive_directly(self) -> None:
        """After the first piece of a body of known length: have the rest of it put where it belongs."""
        cycle = self._inference
        if cycle is None or cycle.response_complete or b"transfer-encoding" in cycle.headers:
            return
        length = int(cycle.headers.get(b"content-length", b"0"))
        if length <= cycle.size:
            return
        self._receive_rest(cycle, length, b"".join(cycle.chunks))

    def _receive_rest(self, cycle: InferenceCycle, length: int, begun: bytes | memoryview) -> None:
        cycle.chunks = []
        self._length = length
        self._make_room(cycle, begun, min(length, _CLAIM_BYTES), _BODIES.take(length))

    def _grow(self, cycle: InferenceCycle) -> None:
        """Make room for more of a long body."""
        # The loop still has a hand on the old one, which can't be made longer therefore.
        begun, self._body, self._rest = self._body, bytearray(), None
        self._make_room(cycle, begun, min(self._length, 2 * len(begun)))

    def _make_room(
        self, cycle: InferenceCycle, begun: bytes | bytearray | memoryview, count: int, used: bytearray | None = None
    ) -> None:
        """Have what comes next of a body put behind its beginning, in ``used`` or in ``count`` new bytes."""
        try:
            cycle.hold(count if used is None else len(used))
            self._body = bytearray(count) if used is None else used
        except AppError as error:
            self._refuse(cycle, error)
        except MemoryError:
            self._refuse(cycle, OverloadedError("there is no memory for a body of that length now"))
        else:
            self._body[: len(begun)] = begun
            self._rest = memoryview(self._body)[len(begun) :]

    def _received_directly(self) -> None:
        """The body is whole. A parser that has seen its beginning, but not its end, is replaced."""
        cycle = self._inference
        body, self._body, self._rest, self._inference = self._body, bytearray(), None, None
        if not self._between:
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self._between = True
        if cycle is not None and not cycle.response_complete:
            cycle.buffer = body
            self._start(cycle, body)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client went away: what it waits for need not be run."""
        for cycle in (self._answering, self._inference):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.release()
                if cycle.exchange is not None:
                    cycle.exchange.cancel()
        if self._asgi_cycle is not None:
            # uvicorn tells the last request that it has read, not the one that the application is at.
            self._asgi_cycle.disconnected = True
            self._asgi_cycle.message_event.set()
        self.pipeline.clear()
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._asgi_cycle = cycle
        super()._start_asgi_task(cycle, app)

    def _unset_keepalive_if_required(self) -> None:
        """The connection is in use; its timer is left to run out and look."""
        self._idle_since = None

    def on_response_complete(self) -> None:
        """An answer was sent: go on with what was pipelined, or begin to be idle.

        uvicorn arms and cancels a timer for each request; here each connection has one, which looks when it runs out.
        """
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if not self.flow.write_paused:
            self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
            return
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self._look_if_idle)

    def drain(self, *, close_idle: bool) -> None:
        """The server ends: the answer under way is the last one.

        Args:
            close_idle: also close the connection if no request is under way.
        """
        cycle: Any = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.keep_alive = False
        elif close_idle and self._between:
            self.transport.close()

    def cut(self) -> None:
        """The server can wait no longer: what is under way is answered with 503."""
        cycle: Any = self.cycle
        if type(cycle) is InferenceCycle and not cycle.response_complete:
            error = ModelUnavailableError("the server is shutting down")
            exchange = cycle.exchange
            cycle.keep_alive = False
            if exchange is not None and exchange.call is not None and exchange.serving is not None:
                exchange.serving.batcher.cancel(exchange.call)
                exchange.fail(error)
            else:
                self._refuse(cycle, error)
        self.transport.close()

    def _look_if_idle(self) -> None:
        self.timeout_keep_alive_task = None
        if self._idle_since is None or self.transport.is_closing():
            return
        left_s = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left_s <= 0:
            self.transport.close()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(left_s, self._look_if_idle)

    def on_message_begin(self) -> None:
        """A request begins; uvicorn's scope is made once it is known to be needed."""
        self.begin_head()
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._inference = None

    def on_headers_complete(self) -> None:
        """Decide which way the request takes."""
        self._in_head = False
        if self._head_bytes or self._limits.max_header_bytes < len(_BUFFER):
            self.measure_head()
        if self._ended:
            return
        previous: Any = self.cycle
        path, _, query = self.url.partition(b"?")
        service = self._service
        if service is not None and (previous is None or previous.response_complete):
            target = service.target(path.decode("latin-1")) if self.parser.get_method() == b"POST" else None
            if target is not None and not (service.cross_origin and self._comes_from_page()):
                self._begin(service, target, query)
                self._head = None
                return
        self._head = None
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        self.headers.extend(headers)
        super().on_headers_complete()
        if self._draining():
            self.cycle.keep_alive = False

    def _comes_from_page(self) -> bool:
        """Whether a browser asks for a page of some origin: the answer needs headers that the application adds."""
        return any(name == b"origin" for name, _ in self.headers)

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        cycle = self._inference
        if cycle is None:
            self._body_bytes += len(body)
            if not self._ended:
                super().on_body(body)
            return
        if cycle.response_complete:
            return
        cycle.size += len(body)
        try:
            if cycle.size > cycle.service.max_body_bytes:
                raise cycle.service.too_large()
            cycle.hold(cycle.size)
        except AppError as error:
            self._refuse(cycle, error)
            return
        cycle.chunks.append(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._between = True
        cycle = self._inference
        if cycle is None:
            if not self._ended:
                super().on_message_complete()
            return
        if cycle.response_complete:
            return
        chunks = cycle.chunks
        self._inference = None
        self._start(cycle, chunks[0] if len(chunks) == 1 else b"".join(chunks))

    def _take(self, cycle: InferenceCycle, body: bytes) -> None:
        """The request came in one piece."""
        try:
            cycle.hold(len(body))
        except AppError as error:
            self._fail(cycle, error)
            return
        self._start(cycle, body)

    def _start(self, cycle: InferenceCycle, body: bytes | bytearray) -> None:
        cycle.chunks = []
        self._answering = cycle
        intake = cycle.service.intake
        if not intake.may_start():
            intake.later(partial(self._start_now, cycle, body))
            return
        self._start_now(cycle, body)

    def _start_now(self, cycle: InferenceCycle, body: bytes | bytearray) -> None:
        if cycle.disconnected:
            return

        def respond(status: int, headers: HeaderList, content: bytes) -> None:
            self._respond(cycle, status, headers, content)

        exchange = cycle.service.start(cycle.target, cycle.headers, cycle.query, body, respond)
        if not cycle.response_complete:
            cycle.exchange = exchange

    def _begin(self, service: InferenceService, target: Target, query: bytes) -> None:
        keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        cycle = self._inference = InferenceCycle(service, target, dict(self.headers), query, keep_alive=keep_alive)
        self.cycle = cycle  # type: ignore[assignment]
        try:
            service.admit(cycle.headers)
        except AppError as error:
            self._refuse(cycle, error)
            return
        if self.expect_100_continue:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif self._head is not None and keep_alive and self._head.count(b"\r\n") == len(self.headers) + 2:
            # Line for line what the parser took for the head: nothing of it lies before or behind.
            service.remember(self._head, target, cycle.headers, query)

    def _refuse(self, cycle: InferenceCycle, error: AppError) -> None:
        """Answer before the body is read; what still comes of it is thrown away with the connection."""
        if cycle.response_complete:
            return
        cycle.keep_alive = False
        cycle.chunks = []
        self._fail(cycle, error)

    def _fail(self, cycle: InferenceCycle, error: AppError) -> None:
        def respond(status: int, headers: HeaderList, content: bytes) -> None:
            self._respond(cycle, status, headers, content)

        Exchange(cycle.service, cycle.headers, respond, oip=cycle.target.oip).fail(error)

    def _respond(self, cycle: InferenceCycle, status: int, headers: HeaderList, content: bytes) -> None:
        cycle.exchange = None  # it refers to the cycle; see Exchange._answer
        if cycle.response_complete or self.transport.is_closing():
            return
        cycle.response_complete = True
        if self._draining():
            cycle.keep_alive = False
        cycle.release()
        if cycle.buffer is not None:
            # The model has run on it, or never will.
            _BODIES.give_back(cycle.buffer)
            cycle.buffer = None
        parts = [STATUS_LINE[status], self._date_lines()]
        for name, value in headers:
            parts += (name, b": ", value, b"\r\n")
        tail = b"\r\n\r\n" if cycle.keep_alive else b"\r\nconnection: close\r\n\r\n"
        parts += (b"content-length: %d" % len(content), tail, content)
        self._write(b"".join(parts))
        if cycle.service.access_log:
            self._log(cycle, status, headers)
        if not cycle.keep_alive:
            self._close(cycle)
        self.on_response_complete()

    def _close(self, cycle: InferenceCycle) -> None:
        """Close the connection, without a reset that would take the answer from a client that is still sending."""
        if self._inference is cycle and not self._draining() and self.transport.can_write_eof():
            Lingering(self, self.transport, self.loop)
        else:
            self.transport.close()

    def _draining(self) -> bool:
        return getattr(self.server_state, "draining", False)

    def _log(self, cycle: InferenceCycle, status: int, headers: HeaderList) -> None:
        path = cycle.target.path.encode("latin-1")
        request_id = dict(headers).get(b"x-request-id", b"")
        client = self.client[0] if self.client else None
        log_request("POST", path, status, time.perf_counter() - cycle.began_s, request_id, client)

    def _write(self, data: bytes) -> None:
        """Write now, where nothing waits in front of it; the loop writes the rest, and sees to errors."""
        if self._fd >= 0 and not self.transport.get_write_buffer_size():
            with contextlib.suppress(OSError):
                sent = os.write(self._fd, data)
                if sent == len(data):
                    return
                data = data[sent:]
        self.transport.write(data)
