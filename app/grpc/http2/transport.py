"""gRPC transport by nghttp2: the port, its connections, and their limits."""

import asyncio
import os
import socket
from collections.abc import Iterator

from app.grpc.http2.connection import Connection
from app.grpc.http2.context import Context
from app.grpc.http2.stream import Stream
from app.grpc.services import Services
from app.grpc.transport import GrpcStartError
from app.service.watchdog import Watchdog

_BACKLOG = 2048
_LOOK_S = 0.01
IDLE_S = 300.0
"""Time after which a connection without calls is closed."""
_KEEP_ALIVE = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 20, socket.TCP_KEEPCNT: 3}
"""TCP keepalive: seconds of silence, seconds between probes, and number of probes."""


class _Watched:
    """All connections and their calls, for the watchdog."""

    def __init__(self, connections: set[Connection]) -> None:
        self._connections = connections

    def __bool__(self) -> bool:
        return bool(self._connections)

    def __iter__(self) -> Iterator[Connection | Stream]:
        for connection in self._connections:
            yield connection
            yield from connection.streams.values()


class Http2Transport:
    """The server on nghttp2; see ``Transport``.

    Args:
        services: Methods to serve.

    Attributes:
        connections: Open connections.
    """

    def __init__(self, services: Services) -> None:
        self.connections: set[Connection] = set()
        self._context = Context(services)
        self._watchdog = Watchdog(_Watched(self.connections), self._context.limits)
        self._server: asyncio.Server | None = None
        self._sweep: asyncio.TimerHandle | None = None

    async def start(self, address: str) -> None:
        """Listen, see ``Transport``.

        Raises:
            GrpcStartError: Listening on the address failed.
        """
        host, _, port = address.rpartition(":")
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                self._connection, host.strip("[]"), int(port), reuse_port=True, backlog=_BACKLOG
            )
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise GrpcStartError(f"cannot listen on {address} for gRPC: {reason}") from None
        self._close_idle()

    async def stop(self, timeout_s: float) -> None:
        """End gracefully, see ``Transport``."""
        if self._server is None or self._sweep is None:
            return
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        self._server.close()
        self._sweep.cancel()
        for connection in list(self.connections):
            connection.drain()
        while self.connections and loop.time() < end:
            await asyncio.sleep(_LOOK_S)
        for connection in list(self.connections):
            connection.abort()
        await asyncio.sleep(0)  # for their ``connection_lost``

    def _connection(self) -> Connection:
        return Connection(self._context, self._connected, self.connections.discard)

    def _connected(self, connection: Connection) -> None:
        sock = connection.socket
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEP_ALIVE.items():
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
        self.connections.add(connection)
        self._watchdog.wake()

    def _close_idle(self) -> None:
        """Close connections that are idle for too long; runs periodically."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self.connections):
            if connection.idle_since is not None and now - connection.idle_since >= IDLE_S:
                connection.drain()
        self._sweep = loop.call_later(IDLE_S / 10, self._close_idle)
