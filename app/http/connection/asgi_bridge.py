"""ASGI bridge: passes every request that is not served on the fast path to the ASGI application.

This is the only module that uses undocumented names of uvicorn. They are the reason for the version bounds of
uvicorn in ``pyproject.toml``; the connection tests check each new release:

- ``protocols.http.httptools_impl.RequestResponseCycle``: its constructor, ``run_asgi``, ``send``, ``on_response``,
  ``body``, ``more_body``, ``message_event``, ``disconnected``, ``keep_alive``, ``response_started``,
  ``response_complete``;
- ``protocols.http.flow_control``: ``FlowControl`` and ``HIGH_WATER_LIMIT``;
- ``protocols.utils``: ``get_local_addr``, ``get_remote_addr``, ``is_ssl``;
- ``server.ServerState``: ``connections``, ``tasks``, ``total_requests``, ``default_headers``;
- ``config.Config``: ``loaded``, ``load``, ``loaded_app``, ``root_path``, ``asgi_version``, ``timeout_keep_alive``.

See docs/decisions/0005-answer-inference-in-the-http-protocol.md.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import httptools
from starlette.types import ASGIApp, Message
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl
from uvicorn.server import ServerState

from app.http.connection.request_parser import RefusedRequestError, RequestParser

log = logging.getLogger(__name__)


class AsgiRequest(RequestResponseCycle):
    """One request that the application serves."""

    async def send(self, message: Message) -> None:  # type: ignore[override]
        """Send a part of the response, with ``connection: close`` if needed; not every uvicorn version adds it."""
        if message["type"] == "http.response.start" and not self.keep_alive:
            headers = list(message.get("headers", ()))
            if not any(name.lower() == b"connection" for name, _ in headers):
                message["headers"] = [*headers, (b"connection", b"close")]
        await super().send(message)  # type: ignore[arg-type]


class AsgiBridge:
    """The requests of one connection that the application serves, one after the other.

    Args:
        config: Configuration of uvicorn.
        server_state: State of uvicorn's server.
        app_state: State from the lifespan.
        on_response: Called after each response.

    Attributes:
        app: The application.
        flow: Pauses reading and writing; set once the connection is open.
        client: Address and port of the client, if known.
        reading: The request with an incomplete body.
        body_bytes: Number of received bytes of that body.
        pipeline: Requests that wait for the response to an earlier one.
    """

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any], on_response: Callable[[], None]
    ) -> None:
        if not config.loaded:
            config.load()
        self.app: ASGIApp = config.loaded_app
        self.flow: FlowControl
        self.client: tuple[str, int] | None = None
        self.reading: AsgiRequest | None = None
        self.body_bytes = 0
        self._config = config
        self._server_state = server_state
        self._app_state = app_state
        self._transport: asyncio.Transport
        self._on_response: Callable[[], None] | None = on_response
        self._running: AsgiRequest | None = None
        self.pipeline: deque[AsgiRequest] = deque()

    def connect(self, transport: asyncio.Transport) -> None:
        """Start serving the requests of a connection."""
        self._transport = transport
        self.flow = FlowControl(transport)
        self.client = get_remote_addr(transport)

    def begin(self, parser: RequestParser, *, behind_another: bool) -> AsgiRequest:
        """Pass on a request with complete headers.

        Args:
            parser: The parser of the headers.
            behind_another: Whether an earlier request of the connection has no response yet: the application gets this
                one after it (pipelining).

        Raises:
            RefusedRequestError: The URL is not valid.
        """
        request = AsgiRequest(
            scope=self._scope_of(parser),  # type: ignore[arg-type]
            transport=self._transport,
            flow=self.flow,
            logger=log,
            access_logger=log,
            access_log=False,
            default_headers=self._server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=parser.expects_continue,
            keep_alive=parser.keep_alive,
            on_response=self._on_response or _nothing,
        )
        self.reading = request
        self.body_bytes = 0
        if behind_another:
            self.flow.pause_reading()
            self.pipeline.append(request)
        else:
            self._run(request)
        return request

    def _scope_of(self, parser: RequestParser) -> dict[str, Any]:
        try:
            url = httptools.parse_url(parser.url)
            raw_path: bytes = url.path
            path = raw_path.decode("ascii")
        except (httptools.HttpParserInvalidURLError, UnicodeDecodeError, AttributeError):
            raise RefusedRequestError(400, "the request is not valid HTTP") from None
        root_path = self._config.root_path
        return {
            "type": "http",
            "asgi": {"version": self._config.asgi_version, "spec_version": "2.3"},
            "http_version": parser.version,
            "server": get_local_addr(self._transport),
            "client": self.client,
            "scheme": "https" if is_ssl(self._transport) else "http",
            "method": parser.method.decode("ascii"),
            "root_path": root_path,
            "path": root_path + (unquote(path) if "%" in path else path),
            "raw_path": root_path.encode("ascii") + raw_path,
            "query_string": url.query or b"",
            "headers": parser.headers,
            "state": self._app_state.copy(),
        }

    def _run(self, request: AsgiRequest) -> None:
        self._running = request
        task = asyncio.get_running_loop().create_task(request.run_asgi(self.app))  # type: ignore[arg-type]
        task.add_done_callback(self._server_state.tasks.discard)
        self._server_state.tasks.add(task)

    def run_next(self) -> None:
        """Run the application for the next pipelined request."""
        self._run(self.pipeline.popleft())

    def receive_body(self, piece: bytes) -> None:
        """Pass a piece of the body on."""
        self.body_bytes += len(piece)
        request = self.reading
        if request is None or request.response_complete:
            return
        request.body += piece
        if len(request.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        request.message_event.set()

    def end_body(self) -> None:
        """Mark the body as complete."""
        request = self.reading
        if request is not None and not request.response_complete:
            request.more_body = False
            request.message_event.set()

    def drop_unread(self) -> bool:
        """Drop the request with an incomplete body. Return whether earlier requests still need their responses."""
        request, self.reading = self.reading, None
        if request is not None and request in self.pipeline:
            self.pipeline.remove(request)
            return True
        if request is not None:
            _disconnect(request)
        return False

    def resume_reading(self) -> None:
        """Resume reading, unless pipelined requests wait or the client does not read its responses."""
        if not (self.pipeline or self.flow.write_paused or self._transport.is_closing()):
            self.flow.resume_reading()

    def disconnect(self) -> None:
        """Notify the application of the disconnect, and free all bodies."""
        self.pipeline.clear()
        for request in (self._running, self.reading):
            if request is not None:
                _disconnect(request)
        self._running = self.reading = self._on_response = None
        self.flow.resume_writing()


def _disconnect(request: AsgiRequest) -> None:
    request.disconnected = True
    request.body = bytearray()
    request.on_response = _nothing
    request.message_event.set()


def _nothing() -> None:
    """Called after the response of a request on a closed connection."""
