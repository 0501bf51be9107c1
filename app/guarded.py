"""uvicorn's HTTP protocol, held to limits; see ``app.limits``."""

import asyncio
from typing import TYPE_CHECKING, Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from app.errors import AppError
from app.limits import RESERVED, Crowded, Limits, Standing, Watch, error_body

if TYPE_CHECKING:
    from app.inference import InferenceService

LINGER_S = 2.0
_WASTE = memoryview(bytearray(64 * 1024))


class Lingering(asyncio.BufferedProtocol):
    """Stands for a connection that has said its last: what the client still sends is thrown away for a while."""

    def __init__(self, of: HttpToolsProtocol, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self.connection_lost = of.connection_lost  # type: ignore[method-assign]
        transport.set_protocol(self)
        transport.write_eof()
        loop.call_later(LINGER_S, transport.abort)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Where the loop is to put it."""
        return _WASTE

    def eof_received(self) -> None:
        """The client has understood."""
        self._transport.close()


def _watch_of(state: ServerState, limits: Limits) -> Watch:
    """The watch over the connections of a worker."""
    watch = getattr(state, "watch", None)
    if watch is None:
        watch = Watch(state.connections, limits)
        state.watch = watch  # type: ignore[attr-defined]
    return watch


class GuardedProtocol(HttpToolsProtocol):
    """One connection, held to limits. What it costs a request is a few assignments; see ``Watch`` for the times."""

    _date: tuple[object, bytes] = (None, b"")

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._service: InferenceService | None = getattr(self.app, "service", None)
        self._limits = Limits() if self._service is None else self._service.limits
        self._between = True  # whether the parser stands between two requests
        self._in_head = False  # whether it stands within the head of one
        self._head_bytes = 0  # of the head, in all reads but the first
        self._body_bytes = 0  # of a body that goes uvicorn's own way
        self._idle_since: float | None = None
        self._ended = False  # whether what still comes is of no interest

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        _watch_of(self.server_state, self._limits).wake()
        connected = getattr(self.server_state, "connected", None)
        if connected is not None:
            connected()
        beyond = len(self.connections) - self._limits.max_connections
        if beyond > 0:
            self._crowd(beyond)

    def _body_received(self) -> int | None:
        """How much there is of a body that is not read uvicorn's own way; None where none is."""
        return None

    def _refuse_body(self, error: AppError) -> None:
        """Answer the request that such a body belongs to."""

    def begin_head(self) -> None:
        """The parser has come to the head of a request."""
        self._between = False
        self._in_head = True
        self._head_bytes = self._body_bytes = 0

    def measure_head(self) -> None:
        """A whole head, of which some came late or that may be longer than it must."""
        size = len(self.url) + sum([len(name) + len(value) + 4 for name, value in self.headers])
        if size > self._limits.max_header_bytes:
            self.end_head()

    def end_head(self) -> None:
        """The head is too long."""
        self._end_with(431, self._limits.too_long_a_head())

    def _crowd(self, beyond: int) -> None:
        """This is a connection too many: it may ask for a probe, or is told so at once."""
        service, self._service = self._service, None
        if beyond > RESERVED:
            self._end_with(503, self._limits.too_many_connections(), (b"retry-after", b"1"))
        elif service is not None:
            self.app = Crowded(self.app, self._limits, service.request_ids.of({}))

    def standing(self) -> tuple[Standing, object] | None:
        """What the client is waited for, and how far it has come; see ``Watch``."""
        left = self.transport.get_write_buffer_size()
        if left:
            return "write", left
        cycle: Any = self.cycle
        received = self._body_received()
        if received is not None:
            return "body", received
        if cycle is not None and not cycle.response_complete:
            ours = self._between or self._in_head or self.flow.read_paused
            return None if ours else ("body", self._body_bytes)
        if not self._between:
            return "head", self.headers
        # Idle connections have a timer of their own; one that never asked, or sends empty lines, has none.
        return None if self._idle_since is not None else ("head", self)

    def time_out(self, standing: Standing) -> None:
        """The client does not get on: tell it where it may listen, and end the connection."""
        cycle: Any = self.cycle
        if standing == "write" or self.transport.is_closing():
            self.transport.abort()
        elif self._body_received() is not None:
            self._refuse_body(self._limits.too_slow(standing))
        elif standing == "body" and cycle is not None and cycle.response_started:
            self.transport.abort()
        elif self._between:
            self.transport.close()
        else:
            self._end_with(408, str(self._limits.too_slow(standing)))

    def _end_with(self, status: int, message: str, *headers: tuple[bytes, bytes]) -> None:
        """Answer in front of the application, and end the connection."""
        if self._ended or self.transport.is_closing():
            return
        self._ended = True
        body = error_body(message)
        service: InferenceService | None = getattr(self.config.loaded_app, "service", None)
        if service is not None:
            headers = (*headers, (b"x-request-id", service.request_ids.of({})))
        lines = [name + b": " + value + b"\r\n" for name, value in headers]
        length = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
        parts = [STATUS_LINE[status], self._date_lines(), *lines, length, b"connection: close\r\n\r\n", body]
        self.transport.write(b"".join(parts))
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP."""
        del msg
        self._end_with(400, "the request is not valid HTTP")

    def pause_writing(self) -> None:
        """The client doesn't read: nothing more is taken from it, so that no answers pile up."""
        super().pause_writing()
        if not self.transport.is_closing():
            self.flow.pause_reading()

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        if not self.pipeline and not self.transport.is_closing():
            self.flow.resume_reading()

    def _date_lines(self) -> bytes:
        """Uvicorn's default headers, which it makes anew every second, as they go to the wire."""
        headers = self.server_state.default_headers
        seen, lines = GuardedProtocol._date
        if seen is not headers:
            lines = b"".join([name + b": " + value + b"\r\n" for name, value in headers])
            GuardedProtocol._date = (headers, lines)
        return lines
