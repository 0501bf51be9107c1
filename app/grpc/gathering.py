"""Gathering: decode concurrent requests together, so that they share a batch."""

import asyncio
from collections.abc import Callable

LOOK_S = 0.001
"""The shortest timer of the event loop; in it gRPC's own threads hand over some more calls."""
MOST_S = 0.004
"""How long a request waits for others at most."""
PROBE_EVERY = 16


class Gathering:
    """Decodes concurrent requests together, for ``grpc.aio``.

    gRPC hands over one call in a turn of the event loop. Decoded as they come, each would run by itself, however many
    clients there are. So where the last requests came together, the first of the next waits for as long as others come;
    where they came one by one, each is started at once, but for one in sixteen, which waits to see whether that has
    changed.
    """

    def __init__(self) -> None:
        self._starts: list[Callable[[], None]] = []
        self._alone = 0  # requests that came one by one, since the last look
        self._together = False

    def add(self, start: Callable[[], None]) -> None:
        """Decode a request, now or together with others within milliseconds."""
        if self._starts:
            self._starts.append(start)
            return
        self._alone += 1
        if not self._together and self._alone < PROBE_EVERY:
            start()
            return
        self._alone = 0
        self._starts.append(start)
        loop = asyncio.get_running_loop()
        loop.call_later(LOOK_S, self._wake, 1, loop.time() + MOST_S)

    def _wake(self, seen: int, until: float) -> None:
        """Look two turns later: a call that gRPC has handed over takes turns of the event loop to arrive here."""
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, self._look, seen, until)

    def _look(self, seen: int, until: float) -> None:
        """Start those that were gathered once no more come, or for too long."""
        loop, count = asyncio.get_running_loop(), len(self._starts)
        if count > seen and loop.time() < until:
            loop.call_later(LOOK_S, self._wake, count, until)
            return
        self._together = count > 1
        starts, self._starts = self._starts, []
        for start in starts:
            start()
