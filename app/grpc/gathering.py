"""Gathering: decode concurrent requests together, so that they share a batch."""

import asyncio
from collections.abc import Callable

from app.service.admission import AdmissionControl

LOOK_S = 0.001
"""The shortest timer of the event loop; during it, gRPC's threads pass on some more calls."""
MOST_S = 0.004
"""Maximum time that a request waits for others."""
PROBE_EVERY = 16


class Gathering:
    """Decodes concurrent requests together, so that they share a batch.

    gRPC passes on one call per turn of the event loop. Decoded at once, each would run alone, however many clients
    there are. So if the last requests came together, the first of the next ones waits while others arrive. If
    they came one at a time, each starts at once, except for one in sixteen, which waits to detect a
    change.

    Args:
        admission: Says when a request may be decoded.
    """

    def __init__(self, admission: AdmissionControl) -> None:
        self._admission = admission
        self._starts: list[Callable[[], None]] = []
        self._alone = 0  # requests that came one at a time since the last check
        self._together = False

    def add(self, start: Callable[[], None]) -> None:
        """Decode a request, now or together with others within milliseconds."""
        if self._starts:
            self._starts.append(start)
            return
        self._alone += 1
        if not self._together and self._alone < PROBE_EVERY:
            self._start(start)
            return
        self._alone = 0
        self._starts.append(start)
        loop = asyncio.get_running_loop()
        loop.call_later(LOOK_S, self._wake, 1, loop.time() + MOST_S)

    def _wake(self, seen: int, until: float) -> None:
        """Check two turns later: a call that gRPC has passed on needs turns of the event loop to arrive here."""
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, self._look, seen, until)

    def _look(self, seen: int, until: float) -> None:
        """Start the gathered requests once no more arrive, or the first has waited too long."""
        loop, count = asyncio.get_running_loop(), len(self._starts)
        if count > seen and loop.time() < until:
            loop.call_later(LOOK_S, self._wake, count, until)
            return
        self._together = count > 1
        starts, self._starts = self._starts, []
        for start in starts:
            self._start(start)

    def _start(self, start: Callable[[], None]) -> None:
        if self._admission.may_start():
            start()
            self._admission.started()
        else:
            self._admission.later(start)
