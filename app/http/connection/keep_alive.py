"""Keep-alive timeout: one timer per connection instead of one per request."""

import asyncio


class KeepAlive:
    """Closes a connection that has been idle for too long.

    Starting and cancelling a timer per request would cost more than the rest of its bookkeeping. So a running
    timer is kept, and checks the idle time of the connection when it fires.

    Attributes:
        idle_since: Loop time of the start of the idle period; None during a request, and before the first one.
    """

    __slots__ = ("_loop", "_timeout_s", "_timer", "_transport", "idle_since")

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        self.idle_since: float | None = None
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._timeout_s = timeout_s
        self._timer: asyncio.TimerHandle | None = None

    def connect(self, transport: asyncio.Transport) -> None:
        """Set the connection to close."""
        self._transport = transport

    def start(self) -> None:
        """Start the idle timeout."""
        self.idle_since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout_s, self._close_if_idle)

    def cancel(self) -> None:
        """Cancel the timer: the connection has ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._transport = None

    def _close_if_idle(self) -> None:
        self._timer = None
        if self.idle_since is None or self._transport is None:
            return
        left_s = self.idle_since + self._timeout_s - self._loop.time()
        if left_s <= 0:
            self._transport.close()
        else:
            self._timer = self._loop.call_later(left_s, self._close_if_idle)
