"""What a client may take of the server: bytes and time of a request's head, time of its body, connections.

Nothing is timed for each request. Each worker looks at its connections twice a second, and when the time of one that it
saw is over; it ends what has stood at the same point for too long. What was never seen there is seen half a second late
at most, so that a limit of ten seconds ends a connection after ten to ten and a half.
"""

import asyncio
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol, cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import BodyTooLargeError, RequestTimeoutError
from app.settings import Settings

LOOK_S = 0.5
PROGRESS_BYTES = 1024
"""A body that brings no more than this in its time, or a client that takes no more, does not get on."""
RESERVED = 32
"""Connections beyond the limit that are let in for probes; what else they ask is answered with 503."""
PROBES = {"/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"}
OTHER_BODY_BYTES = 1024 * 1024
"""Most bytes of a body that is none of inference: all of these are small."""

Standing = Literal["head", "body", "write"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What each connection is held to; see the settings of the same names."""

    max_header_bytes: int = 32 * 1024
    header_timeout_s: float = 10.0
    body_timeout_s: float = 20.0
    write_timeout_s: float = 30.0
    max_connections: int = 4096
    max_request_rows: int = 1_000_000

    @classmethod
    def of(cls, settings: Settings) -> "Limits":
        """As the settings say."""
        return cls(**{name: getattr(settings, name) for name in cls.__slots__})

    def time_s(self, standing: Standing) -> float:
        """How long a connection may stand at one point."""
        return {"head": self.header_timeout_s, "body": self.body_timeout_s, "write": self.write_timeout_s}[standing]

    def too_slow(self, standing: Standing) -> RequestTimeoutError:
        """The error for a request that does not get on."""
        what = "the whole head" if standing == "head" else f"more than {PROGRESS_BYTES} bytes of the body"
        name = f"{standing if standing == 'body' else 'header'}_timeout_s"
        return RequestTimeoutError(f"{what} did not arrive within {name} ({self.time_s(standing):g})")

    def too_many_rows(self, rows: int) -> BodyTooLargeError:
        """The error for a request of too many rows."""
        return BodyTooLargeError(
            f"the request has {rows} rows; max_request_rows is {self.max_request_rows}. Send them in several requests"
        )

    def too_many_connections(self) -> str:
        """What a connection beyond the limit is told."""
        return f"this worker has as many connections as max_connections ({self.max_connections}) allows; try again"

    def too_long_a_head(self) -> str:
        """What is said of a head that is too long."""
        return f"the request's head is longer than max_header_bytes ({self.max_header_bytes})"


class Watched(Protocol):
    """A connection, as the watch sees it."""

    def standing(self) -> tuple[Standing, object] | None:
        """What the client is waited for, and how far it has come; None where the server is the one to act."""

    def time_out(self, standing: Standing) -> None:
        """End the connection: it stood there for too long."""


class Watch:
    """Looks at the connections of a worker twice a second, for as long as there are any.

    Args:
        connections: those that are open; looked at anew each time.
        limits: how long they may stand.
    """

    def __init__(self, connections: Iterable[object], limits: Limits) -> None:
        self._connections = connections
        self._limits = limits
        shortest_s = min(limits.header_timeout_s, limits.body_timeout_s, limits.write_timeout_s)
        self._every_s = min(LOOK_S, shortest_s / 5)
        self._timer: asyncio.TimerHandle | None = None
        self._seen: dict[object, tuple[Standing, object, float]] = {}

    def wake(self) -> None:
        """A connection was made."""
        if self._timer is None:
            self._look_in(self._every_s)

    def _look_in(self, wait_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._look)

    def _look(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        seen: dict[object, tuple[Standing, object, float]] = {}
        for connection in list(self._connections):
            self._look_at(cast("Watched", connection), now, seen)
        self._seen = seen
        if seen or self._connections:
            ends = [since + self._limits.time_s(standing) for standing, _, since in seen.values()]
            # Many that are over one after the other must not make it look all the time.
            self._look_in(min(self._every_s, max(self._every_s / 4, min(ends, default=math.inf) - now)))

    def _look_at(self, connection: Watched, now: float, seen: dict[object, tuple[Standing, object, float]]) -> None:
        found = connection.standing()
        if found is None:
            return
        standing, mark = found
        before = self._seen.get(connection)
        if before is None or before[0] != standing or _moved(standing, before[1], mark):
            seen[connection] = standing, mark, now
        elif now - before[2] < self._limits.time_s(standing):
            seen[connection] = before
        else:
            connection.time_out(standing)


def _moved(standing: Standing, before: object, now: object) -> bool:
    """Whether a connection has got on, or is at another request."""
    if standing == "head" or not isinstance(before, int) or not isinstance(now, int):
        return before is not now
    # Of a body more has come; of what is written less is left, or there is more to write.
    return now - before >= PROGRESS_BYTES if standing == "body" else before - now >= PROGRESS_BYTES or now > before


class Crowded:
    """Stands for the application on a connection beyond the limit: it answers probes, and says 503 to all else.

    Args:
        behind: the application.
        limits: for the message.
        request_id: of the answer.
    """

    def __init__(self, behind: ASGIApp, limits: Limits, request_id: bytes) -> None:
        self._behind = behind
        self._body = error_body(limits.too_many_connections())
        self._request_id = request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; the connection ends with it."""

        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        if scope["path"] in PROBES:
            await self._behind(scope, receive, send_and_close)
            return
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(self._body)),
            (b"retry-after", b"1"),
            (b"x-request-id", self._request_id),
        ]
        await send_and_close({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": self._body})


def error_body(message: str) -> bytes:
    """``{"error": …}``, the one form of every error."""
    return json.dumps({"error": message}).encode()
