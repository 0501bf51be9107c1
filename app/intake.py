"""What bounds the requests in hand, and keeps the event loop coming round while many arrive at once."""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from app.errors import OverloadedError

SLICE_NS = 10_000_000
"""How long requests are decoded before the loop looks at its sockets again."""


class Intake:
    """Counts the bytes of requests in hand, and decodes what arrived in one turn of the loop in slices.

    Decoding is the loop's own work: were all that arrived decoded in one go, a probe would wait for all of it.

    Args:
        max_bytes: of the bodies in hand, from their arrival to the answer.
        slice_ns: time to spend on decoding in one turn.
    """

    def __init__(self, max_bytes: int, slice_ns: int = SLICE_NS) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self._slice_ns = slice_ns
        self._turn_ns = 0  # when this turn's first request came; 0 before it
        self._scheduled = False  # whether the next turn will be noticed
        self._waiting: deque[Callable[[], None]] = deque()

    @property
    def waiting(self) -> int:
        """Requests that are not yet decoded."""
        return len(self._waiting)

    def hold(self, count: int) -> None:
        """Take so many bytes in hand.

        Raises:
            OverloadedError: too many are.
        """
        if self.held_bytes + count > self.max_bytes:
            raise OverloadedError(
                f"the requests in hand hold {self.held_bytes} bytes, and this one's {count} would exceed "
                f"max_queue_bytes ({self.max_bytes})"
            )
        self.held_bytes += count

    def release(self, count: int) -> None:
        """They are no longer in hand."""
        self.held_bytes -= count

    def may_start(self) -> bool:
        """Whether a request may be decoded at once: then call ``started`` after; if not, give it to ``later``."""
        if self._waiting:
            return False
        if self._turn_ns:
            return time.perf_counter_ns() - self._turn_ns < self._slice_ns
        self._turn_ns = time.perf_counter_ns()
        return True

    def started(self) -> None:
        """A request was decoded at once."""
        if not self._scheduled:
            self._schedule()

    def later(self, start: Callable[[], None]) -> None:
        """Have a request decoded in one of the next turns, in the order of arrival."""
        self._waiting.append(start)
        self.started()

    def _schedule(self) -> None:
        self._scheduled = True
        asyncio.get_running_loop().call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._turn_ns = 0
        self._scheduled = False
        if not self._waiting:
            return
        self._turn_ns = time.perf_counter_ns()
        self._schedule()
        until_ns = self._turn_ns + self._slice_ns
        while self._waiting and time.perf_counter_ns() < until_ns:
            self._waiting.popleft()()
