"""uvicorn's HTTP protocol, with a shorter way for inference requests.

An ASGI request costs a task, an event, a scope and a dozen awaits before a byte is decoded, which is more than most
models take. Here a complete inference request goes from the parser to the service, and the answer to the socket, in
plain calls; everything else, pipelined requests too, takes uvicorn's own way to the application, which answers alike.

A head that a client sends again, byte for byte, is not parsed again. An answer is written to the socket at once where
nothing waits in front of it: what is left to do for the request then happens while the client reads.
"""

import asyncio
import os
import time
from functools import partial
from typing import Any

from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle
from uvicorn.server import ServerState

from app.codec import Body, HeaderList
from app.cycle import InferenceCycle
from app.errors import AppError, ModelUnavailableError
from app.guarded import Lingering
from app.inference import Exchange, InferenceService, Target
from app.logs import log_request
from app.receiving import BODIES, SCRATCH_BYTES, ReceivingProtocol


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


class InferenceProtocol(ReceivingProtocol):
    """One connection.

    The inference service is found on the application; where there is none, all requests go uvicorn's own way.
    """

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._answering: InferenceCycle | None = None  # the last one whose body is whole
        self._asgi_cycle: RequestResponseCycle | None = None  # the last one that the application was given
        self._fd = -1

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        own_socket = transport.get_extra_info("socket")
        if own_socket is not None and transport.get_extra_info("sslcontext") is None:
            self._fd = own_socket.fileno()

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
        self._body, self._rest = bytearray(), None
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
        if self._head_bytes or self._limits.max_header_bytes < SCRATCH_BYTES:
            self.measure_head()
        if self._ended or self.parser.should_upgrade():  # see data_received
            return
        if self.expect_100_continue and self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False  # such a client does not know what it would be told
        previous: Any = self.cycle
        path, _, query = self.url.partition(b"?")
        service = self._service
        if service is not None and (previous is None or previous.response_complete):
            # What is percent-encoded is decoded on uvicorn's own way.
            ours = self.parser.get_method() == b"POST" and b"%" not in path
            target = service.target(path.decode("latin-1")) if ours else None
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
        if self.parser.should_upgrade():
            return
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

    def _start(self, cycle: InferenceCycle, body: Body) -> None:
        cycle.chunks = []
        self._answering = cycle
        intake = cycle.service.intake
        if not intake.may_start():
            intake.later(partial(self._start_now, cycle, body))
            return
        self._start_now(cycle, body)
        intake.started()

    def _start_now(self, cycle: InferenceCycle, body: Body) -> None:
        if cycle.disconnected:
            return
        respond = partial(self._respond, cycle)
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

    def _fail(self, cycle: InferenceCycle, error: AppError) -> None:
        Exchange(cycle.service, cycle.headers, partial(self._respond, cycle), oip=cycle.target.oip).fail(error)

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
            BODIES.give_back(cycle.buffer)
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
            try:
                sent = os.write(self._fd, data)
                if sent == len(data):
                    return
                data = data[sent:]
            except OSError:
                pass
        self.transport.write(data)
