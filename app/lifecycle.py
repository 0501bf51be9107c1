"""How a serving process ends: not ready at once, what is in hand is answered, nothing is reset."""

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, cast

import uvicorn
from uvicorn.server import ServerState

from app.listening import Listening
from app.protocol import InferenceProtocol
from app.settings import Settings

if TYPE_CHECKING:
    from app.state import AppState

log = logging.getLogger(__name__)

IDLE_GRACE_S = 1.0
"""How long a connection may still bring a request once nobody is let in any more."""
CUT_S = 2.0
"""How long a process may take to end once its time for requests in hand is over."""
_TURN_S = 0.02


class DrainingState(ServerState):
    """uvicorn's state of a server, which its connections see.

    Attributes:
        draining: whether each answer is the last one of its connection.
        connected: called when a client has come; None where nobody wants to know.
    """

    def __init__(self) -> None:
        super().__init__()
        self.draining = False
        self.connected: Callable[[], None] | None = None


class GracefulServer(uvicorn.Server):
    """uvicorn's server, with an end that loses no request.

    The first SIGTERM or SIGINT makes readiness false at once. For ``shutdown_delay_s`` new connections are still taken,
    so that load balancers can notice. Then nobody is let in; each answer says ``connection: close``, and a connection
    that is idle is closed once it had the time to bring a request that was under way. After ``shutdown_timeout_s``
    what is left is answered with 503. The second signal ends the process where it stands.

    Args:
        config: of uvicorn.
        settings: of the server.
        supervised: whether a parent passes signals on; it is then deaf to the terminal's SIGINT, which reaches both.
    """

    def __init__(self, config: uvicorn.Config, settings: Settings, *, supervised: bool = False) -> None:
        super().__init__(config)
        self.server_state = self._draining_state = DrainingState()
        self._listening = Listening(self._serve_connection)
        self._settings = settings
        self._supervised = supervised
        self._drained_since: float | None = None
        self._ticked_at = time.monotonic()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stuck: str | None = None

    def problem(self) -> str | None:
        """Why this process had better be replaced, or None; may be called in any thread."""
        limit_s = self._settings.stuck_run_s
        if not self.started or self._drained_since is not None:
            return None
        late_s = time.monotonic() - self._ticked_at
        if limit_s and late_s > limit_s:
            return f"its event loop has not come round for {late_s:.0f} s"
        state = self._state()
        return None if state is None else state.stuck_because()

    def _state(self) -> "AppState | None":
        application = getattr(self.config, "loaded_app", None)
        return getattr(getattr(application, "state", None), "panther", None)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - signal's signature
        """A signal has come."""
        if self._supervised and sig == signal.SIGINT:
            return
        if self._drained_since is not None:
            os._exit(128 + sig)
        self.drain()
        for number in (signal.SIGTERM, signal.SIGINT):
            # The kernel does it then, even where the interpreter is stuck; not for the first process of a container.
            if os.getpid() != 1 and not (self._supervised and number == signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, _give_up)
        signal.setitimer(
            signal.ITIMER_REAL, self._settings.shutdown_delay_s + self._settings.shutdown_timeout_s + CUT_S
        )

    def drain(self) -> None:
        """Begin to end: not ready, and each answer is the last of its connection."""
        if self._drained_since is not None:
            return
        self._drained_since = time.monotonic()
        self._draining_state.draining = True
        state = self._state()
        if state is not None:
            state.draining = True
            state.repository.end()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._listening.begin(sockets or [])
        self._draining_state.connected = self._listening.look

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; whether it is time to end."""
        self._ticked_at = time.monotonic()
        if counter % 10 == 0:
            self._look_at_engine()
        if await super().on_tick(counter):
            return True
        if self._drained_since is None:
            return False
        for connection in self._connections():
            connection.drain(close_idle=False)
        return self._ticked_at >= self._drained_since + self._settings.shutdown_delay_s

    def _look_at_engine(self) -> None:
        state = self._state()
        problem = None if state is None else state.stuck_because()
        if (problem is None) != (self._stuck is None):
            if problem is not None:
                log.error("not alive: %s", problem)
            else:
                log.warning("alive again: the run has ended")
        self._stuck = problem

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Let nobody in, see what is in hand through, and end."""
        self.drain()
        log.info("shutting down; %d connections are open", len(self.server_state.connections))
        await self._listening.end(self.servers)
        alone_since = time.monotonic()
        end = alone_since + self._settings.shutdown_timeout_s
        while self._connections() or self.server_state.tasks or self._listening.pending:
            now = time.monotonic()
            if now >= end:
                await self._cut()
                break
            for connection in self._connections():
                connection.drain(close_idle=now >= alone_since + IDLE_GRACE_S)
            await asyncio.sleep(_TURN_S)
        await self.lifespan.shutdown()

    def adopt(self, sock: socket.socket) -> None:
        """Serve a connection that somebody else has accepted; may be called in any thread once it has started."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._listening.adopt, sock)

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
            "%d connections and %d tasks were not done after shutdown_timeout_s (%d): they are cut off",
            len(left), len(self.server_state.tasks), self._settings.shutdown_timeout_s,
        )  # fmt: skip
        for task in list(self.server_state.tasks):
            task.cancel(msg="the server is shutting down")
        for connection in left:
            connection.cut()
        await asyncio.sleep(0.1)
        for connection in self._connections():  # those that don't read what they are sent
            connection.transport.abort()
        await asyncio.sleep(0)

    def _connections(self) -> list[InferenceProtocol]:
        return cast("list[InferenceProtocol]", list(self.server_state.connections))


def _give_up(sig: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signal's signature
    log.error("a run of a model did not end in time: the process ends without it")
    logging.shutdown()
    os._exit(1)
