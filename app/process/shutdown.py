"""Graceful shutdown of a serving process: not ready at once, in-flight requests complete, no connection is reset.

See docs/decisions/0013-graceful-shutdown.md.
"""

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from types import FrameType
from typing import cast

import uvicorn
from uvicorn.server import ServerState

from app.config.settings import Settings
from app.http.connection.protocol import Connection
from app.process.acceptor import Acceptor
from app.process.worker_options import CUT_S

log = logging.getLogger(__name__)

IDLE_GRACE_S = 1.0
"""Time for an open connection to send another request after the listening sockets are closed."""
_TURN_S = 0.02


class Phase(Enum):
    """Phase of a server's life, in order."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    """Not ready, and each response closes its connection; new connections are accepted for shutdown_delay_s."""
    CLOSING = "closing"
    """No new connections; in-flight requests may complete within shutdown_timeout_s."""


class ConnectionState(ServerState):
    """uvicorn's state of a server, shared with its connections.

    Args:
        connected: Called when a connection was opened.

    Attributes:
        draining: Whether each response is the last one of its connection.
    """

    def __init__(self, connected: Callable[[], None]) -> None:
        super().__init__()
        self.connected = connected
        self.draining = False


async def _nothing_else(*_: float) -> None:
    """Open or close nothing, for a server with HTTP only."""


@dataclass(frozen=True)
class Hooks:
    """Callbacks from the server to the application.

    Attributes:
        stuck_because: Returns the reason why the server is not live, or None.
        drain: Called at the start of a graceful shutdown.
        reread: Called on SIGHUP, on the event loop.
        open: Opens other listeners, once connections are accepted.
        close: Closes them, and returns when their requests are complete, within the given seconds.
    """

    stuck_because: Callable[[], str | None]
    drain: Callable[[], None]
    reread: Callable[[], None]
    open: Callable[[], Awaitable[None]] = _nothing_else
    close: Callable[[float], Awaitable[None]] = _nothing_else


class GracefulServer(uvicorn.Server):
    """uvicorn's server, with a shutdown that loses no request.

    The first SIGTERM or SIGINT ends readiness at once. For ``shutdown_delay_s`` it still accepts connections,
    so that load balancers can react. Then it accepts none; each response has ``connection: close``, and an idle
    connection is closed after a time for a request in transit. After ``shutdown_timeout_s`` the
    remaining requests get 503. A second signal ends the process immediately.

    Args:
        config: Configuration of uvicorn.
        settings: Settings of the server.
        hooks: Callbacks to the application.
        supervised: Whether a parent passes signals on; then a SIGINT from the terminal, which reaches both, is ignored.
    """

    def __init__(self, config: uvicorn.Config, settings: Settings, hooks: Hooks, *, supervised: bool = False) -> None:
        super().__init__(config)
        self._acceptor = Acceptor(self._serve_connection)
        self.server_state = self._connection_state = ConnectionState(self._acceptor.connection_made)
        self._settings = settings
        self._hooks = hooks
        self._supervised = supervised
        self._phase = Phase.STARTING
        self._drained_at = 0.0
        self._ticked_at = time.monotonic()
        self._stuck: str | None = None

    @property
    def draining(self) -> bool:
        """Whether the shutdown has begun."""
        return self._drained_at > 0

    def problem(self) -> str | None:
        """The reason to replace this process, or None; may be called from any thread."""
        if self._phase is not Phase.SERVING:
            return None
        limit_s = self._settings.stuck_run_s
        late_s = time.monotonic() - self._ticked_at
        if limit_s and late_s > limit_s:
            return f"its event loop has been blocked for {late_s:.0f} s"
        return self._hooks.stuck_because()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - signal's signature
        """Handle SIGTERM or SIGINT."""
        if self._supervised and sig == signal.SIGINT:
            return
        if self.draining:
            os._exit(128 + sig)
        self.drain()
        for number in (signal.SIGTERM, signal.SIGINT):
            # Then the kernel handles the signal, even if the interpreter is stuck; not for process 1 of a container.
            if os.getpid() != 1 and not (self._supervised and number == signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, _give_up)
        signal.setitimer(
            signal.ITIMER_REAL, self._settings.shutdown_delay_s + self._settings.shutdown_timeout_s + CUT_S
        )

    def drain(self) -> None:
        """Start the shutdown: not ready, and each response closes its connection."""
        if self.draining:
            return
        self._drained_at = time.monotonic()
        if self._phase is Phase.SERVING:
            self._phase = Phase.DRAINING
        self._connection_state.draining = True
        self._hooks.drain()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start serving."""
        if threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._hooks.reread)
        await super().startup(sockets)
        self._acceptor.start(sockets or [])
        if self.started:
            await self._hooks.open()
        self._phase = Phase.DRAINING if self.draining else Phase.SERVING

    async def on_tick(self, counter: int) -> bool:
        """Run the periodic work, ten times a second; True when it is time to close."""
        self._ticked_at = time.monotonic()
        if counter % 10 == 0:
            self._watch_engine()
        if await super().on_tick(counter):
            return True
        if self._phase is not Phase.DRAINING:
            return False
        for connection in self._connections():
            connection.drain(close_idle=False)
        return self._ticked_at >= self._drained_at + self._settings.shutdown_delay_s

    def _watch_engine(self) -> None:
        problem = self._hooks.stuck_because()
        if (problem is None) != (self._stuck is None):
            if problem is not None:
                log.error("not live: %s", problem)
            else:
                log.warning("live again: the run has ended")
        self._stuck = problem

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Accept no more connections, complete the requests in flight, and end."""
        self.drain()
        self._phase = Phase.CLOSING
        log.info("shutting down; %d connections are open", len(self.server_state.connections))
        closing = asyncio.ensure_future(self._hooks.close(self._settings.shutdown_timeout_s))
        await self._acceptor.close(self.servers)
        closed_at = time.monotonic()
        end = closed_at + self._settings.shutdown_timeout_s
        while self._connections() or self.server_state.tasks or self._acceptor.pending:
            now = time.monotonic()
            if now >= end:
                await self._cut()
                break
            for connection in self._connections():
                connection.drain(close_idle=now >= closed_at + IDLE_GRACE_S)
            await asyncio.sleep(_TURN_S)
        await closing
        await self.lifespan.shutdown()

    async def _serve_connection(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        sock.settimeout(0)
        await loop.connect_accepted_socket(
            lambda: self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state, _loop=loop
            ),
            sock,
        )

    async def _cut(self) -> None:
        left = self._connections()
        log.error(
            "%d connections and %d tasks are unfinished after shutdown_timeout_s (%d) and are cancelled",
            len(left), len(self.server_state.tasks), self._settings.shutdown_timeout_s,
        )  # fmt: skip
        for task in list(self.server_state.tasks):
            task.cancel(msg="the server is shutting down")
        for connection in left:
            connection.cut()
        await asyncio.sleep(0.1)
        for connection in self._connections():  # clients that do not read their responses
            connection.transport.abort()
        await asyncio.sleep(0)

    def _connections(self) -> list[Connection]:
        return cast("list[Connection]", list(self.server_state.connections))


def _give_up(sig: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signal's signature
    log.error("a run of a model did not end in time; exiting anyway")
    logging.shutdown()
    os._exit(1)
