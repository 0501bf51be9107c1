"""Base class of calls: one HTTP/2 stream with its deadline and its answer."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any, Protocol

from app.config.limits import Waiting
from app.errors import AppError, DeadlineExceededError
from app.grpc.call import Outcome
from app.grpc.http2.context import Context
from app.grpc.http2.headers import CallHeaders
from app.grpc.http2.session import Session

_MAX_TIMER_S = 1e7  # timers of the event loop ignore later deadlines


class Link(Protocol):
    """Interface of a connection to its calls.

    Attributes:
        context: Context shared by all connections.
        session: The HTTP/2 session.
        client: Address of the peer.
    """

    context: Context
    session: Session
    client: str | None

    def flush_soon(self) -> None:
        """Flush the session once at the end of this event loop turn."""

    async def flushed(self) -> None:
        """Wait for the next flush."""

    def reset(self, number: int) -> None:
        """Reset a stream."""


class Stream(ABC):
    """One call.

    Args:
        connection: Connection of the call.
        number: Number of the stream.
        headers: Headers of the call.

    Attributes:
        number: Number of the stream.
        begun: Whether a part of the response has been given to the session.
        ended: Whether the request is complete.
        done: Whether the response has been given to the session.
    """

    __slots__ = (
        "_began", "_connection", "_deadline", "_headers", "_task", "_timer", "begun", "done", "ended",
        "number",
    )  # fmt: skip

    def __init__(self, connection: Link, number: int, headers: CallHeaders) -> None:
        self.number = number
        self.begun = self.ended = self.done = False
        self._connection = connection
        self._headers = headers
        self._began = time.perf_counter()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deadline: float | None = None
        if headers.timeout_s is not None:
            loop = asyncio.get_running_loop()
            self._deadline = loop.time() + headers.timeout_s
            if headers.timeout_s < _MAX_TIMER_S:
                self._timer = loop.call_at(self._deadline, self._expire)

    @abstractmethod
    def receive(self, data: bytes, *, ended: bool) -> None:
        """Add received bytes; ``ended`` if they are the last."""

    @abstractmethod
    def waiting_for(self) -> tuple[Waiting, object] | None:
        """The client action that the call is blocked on, see ``Watched``."""

    def time_remaining(self) -> float | None:
        """Seconds until the deadline, see ``TimeRemaining``."""
        return None if self._deadline is None else self._deadline - asyncio.get_running_loop().time()

    def fail(self, error: AppError) -> None:
        """Respond with an error."""
        self._cancel_task()
        self.finish((error, [], b""))

    def finish(self, outcome: Outcome) -> None:
        """Respond, once."""
        if self.done:
            return
        self.done = True
        self._release()
        connection = self._connection
        connection.session.answer(self.number, outcome, begun=self.begun, ended=self.ended)
        connection.flush_soon()
        if connection.context.services.access_log:
            took_s = time.perf_counter() - self._began
            connection.context.services.log(self._headers.path, outcome, took_s, connection.client)

    def close(self) -> None:
        """Release the call: its stream or its connection is closed."""
        self.done = self.ended = True
        self._cancel_task()
        self._release()

    def time_out(self, waiting: Waiting) -> None:
        """End a call whose client made no progress, see ``Watched``."""
        if waiting == "body" and not self.done:
            self.fail(self._connection.context.limits.timed_out("body"))
        else:
            self._connection.reset(self.number)

    def unread(self) -> tuple[Waiting, object] | None:
        """Client action that an answered call still needs, see ``waiting_for``."""
        unsent = self._connection.session.unsent(self.number)
        if unsent:
            return "write", unsent
        return None if self.ended else ("body", 0)

    def _expire(self) -> None:
        self._timer = None
        self.fail(DeadlineExceededError("the call's deadline has passed"))

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start_task(self, work: Coroutine[Any, Any, None]) -> None:
        self._task = asyncio.ensure_future(work)

    def _cancel_task(self) -> None:
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
