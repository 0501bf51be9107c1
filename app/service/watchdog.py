"""Slow-client (slowloris) protection: header, body and write timeouts of all connections, with one timer.

There is no timer per request. Each worker checks its connections twice a second, and when a timeout of a
known connection expires; it closes those without progress. A wait that starts between two checks is noticed up to half
a second late, so a timeout of ten seconds closes a connection after ten to ten and a half.

See docs/decisions/0014-limit-connections-with-a-watchdog.md.
"""

import asyncio
import math
from collections.abc import Iterable
from typing import Protocol, cast

from app.config.limits import PROGRESS_BYTES, Limits, Waiting

CHECK_S = 0.5


class Watched(Protocol):
    """A connection, as the watchdog sees it."""

    def waiting_for(self) -> tuple[Waiting, object] | None:
        """The client action that blocks the connection, with a progress mark; None if the server must act."""

    def time_out(self, waiting: Waiting) -> None:
        """Close the connection: it was blocked without progress for too long."""


class Watchdog:
    """Checks the connections of a worker twice a second, while there are any.

    Args:
        connections: The open connections; read at each check.
        limits: The timeouts.
    """

    def __init__(self, connections: Iterable[object], limits: Limits) -> None:
        self._connections = connections
        self._limits = limits
        shortest_s = min(limits.header_timeout_s, limits.body_timeout_s, limits.write_timeout_s)
        self._every_s = min(CHECK_S, shortest_s / 5)
        self._timer: asyncio.TimerHandle | None = None
        self._seen: dict[object, tuple[Waiting, object, float]] = {}

    def wake(self) -> None:
        """Start the checks at the first connection."""
        if self._timer is None:
            self._check_in(self._every_s)

    def _check_in(self, wait_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._check_all)

    def _check_all(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        seen: dict[object, tuple[Waiting, object, float]] = {}
        for connection in list(self._connections):
            self._check(cast("Watched", connection), now, seen)
        self._seen = seen
        if seen or self._connections:
            ends = [since + self._limits.timeout_s(waiting) for waiting, _, since in seen.values()]
            # Many timeouts in a row must not cause continuous checks.
            self._check_in(min(self._every_s, max(self._every_s / 4, min(ends, default=math.inf) - now)))

    def _check(self, connection: Watched, now: float, seen: dict[object, tuple[Waiting, object, float]]) -> None:
        found = connection.waiting_for()
        if found is None:
            return
        waiting, mark = found
        before = self._seen.get(connection)
        if before is None or before[0] != waiting or _progressed(waiting, before[1], mark):
            seen[connection] = waiting, mark, now
        elif now - before[2] < self._limits.timeout_s(waiting):
            seen[connection] = before
        else:
            connection.time_out(waiting)


def _progressed(waiting: Waiting, before: object, now: object) -> bool:
    """Whether a connection has made progress since the last check, or reads another request."""
    if waiting == "headers" or not isinstance(before, int) or not isinstance(now, int):
        return before is not now
    # Progress: more of the body arrived, less output is pending, or there is more output.
    return now - before >= PROGRESS_BYTES if waiting == "body" else before - now >= PROGRESS_BYTES or now > before
