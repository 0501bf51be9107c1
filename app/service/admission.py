"""Admission control: a byte budget for the bodies of in-flight requests, and time-sliced decoding.

See docs/decisions/0007-admission-control.md.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from app.engine.codec import Body
from app.errors import OverloadedError

SLICE_NS = 10_000_000
"""Time for decoding requests before the event loop polls its sockets again."""


class AdmissionControl:
    """A byte budget for in-flight bodies, and a time budget for decoding in each turn of the event loop.

    Decoding happens on the event loop: if everything that arrived in one turn were decoded at once, a health check
    would have to wait for all of it.

    Args:
        max_bytes: Budget for bodies, from their arrival to their response.
        slice_ns: Time for decoding in one turn.

    Attributes:
        reserved_bytes: Bytes reserved by in-flight requests.
    """

    def __init__(self, max_bytes: int, slice_ns: int = SLICE_NS) -> None:
        self.max_bytes = max_bytes
        self.reserved_bytes = 0
        self._slice_ns = slice_ns
        self._turn_ns = 0  # arrival of this turn's first request; 0 before it
        self._scheduled = False  # whether a callback for the next turn is scheduled
        self._waiting: deque[Callable[[], None]] = deque()

    @property
    def waiting(self) -> int:
        """Requests that are not yet decoded."""
        return len(self._waiting)

    def may_start(self) -> bool:
        """Whether a request may be decoded at once: call ``started`` afterwards; otherwise pass it to ``later``."""
        if self._waiting:
            return False
        if self._turn_ns:
            return time.perf_counter_ns() - self._turn_ns < self._slice_ns
        self._turn_ns = time.perf_counter_ns()
        return True

    def started(self) -> None:
        """Count a request that was decoded at once."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._next_turn)

    def later(self, start: Callable[[], None]) -> None:
        """Decode a request in a later turn, in the order of arrival."""
        self._waiting.append(start)
        self.started()

    def _next_turn(self) -> None:
        self._turn_ns = 0
        self._scheduled = False
        if not self._waiting:
            return
        self._turn_ns = time.perf_counter_ns()
        self.started()
        until_ns = self._turn_ns + self._slice_ns
        while self._waiting and time.perf_counter_ns() < until_ns:
            self._waiting.popleft()()


class Reservation:
    """The bytes of the budget that one request holds.

    ``release`` or the end of the last reference releases them. A body that a run still reads
    stays counted until the run ends, even if its client has disconnected.

    Args:
        admission: The budget.

    Attributes:
        nbytes: Reserved bytes.
    """

    __slots__ = ("_admission", "nbytes")

    def __init__(self, admission: AdmissionControl) -> None:
        self._admission = admission
        self.nbytes = 0

    def reserve(self, count: int) -> None:
        """Reserve ``count`` more bytes; a negative count releases some.

        Raises:
            OverloadedError: The budget would be exceeded.
        """
        admission = self._admission
        if admission.reserved_bytes + count > admission.max_bytes:
            raise OverloadedError(
                f"in-flight requests hold {admission.reserved_bytes} bytes, and this one's {count} would exceed "
                f"max_queue_bytes ({admission.max_bytes})"
            )
        admission.reserved_bytes += count
        self.nbytes += count

    def release(self) -> None:
        """Release all bytes; repeated calls have no effect."""
        self._admission.reserved_bytes -= self.nbytes
        self.nbytes = 0

    def __del__(self) -> None:
        if self.nbytes:
            self.release()


def join(body: Body, piece: bytes, reservation: Reservation) -> Body:
    """Append a piece to a body, and reserve its bytes.

    Pieces are joined on arrival: a list of pieces of two bytes would take 28 times their length.

    Raises:
        OverloadedError: See ``Reservation.reserve``.
    """
    if not body:
        reservation.reserve(len(piece))
        return piece
    joined = body if isinstance(body, bytearray) else bytearray(body)
    joined += piece
    reservation.reserve(joined.__alloc__() - reservation.nbytes)
    return joined
