"""The queue of one model's inference requests.

See docs/decisions/0007-admission-control.md.
"""

import asyncio
from collections.abc import Iterator

from app.engine.request import Completion, InferenceRequest, Timings


class QueueEntry:
    """An inference request in the queue or in a run, with its completion.

    Attributes:
        request: The request.
        completion: Receives the result or the error.
        timings: Timings of the request.
        nbytes: Size of the feeds; 0 for a request that runs without queuing.
        deadline_ns: Time by which the run must start; 0 for none.
        timer: Fails the request at its deadline; None without one.
        cancelled: Whether its client has disconnected.
    """

    __slots__ = ("cancelled", "completion", "deadline_ns", "nbytes", "request", "timer", "timings")

    def __init__(self, request: InferenceRequest, completion: Completion, timings: Timings) -> None:
        self.request = request
        self.completion = completion
        self.timings = timings
        self.nbytes = 0
        self.deadline_ns = timings.began_ns + 1000 * request.timeout_us if request.timeout_us else 0
        self.timer: asyncio.TimerHandle | None = None
        self.cancelled = False


class RequestQueue:
    """Inference requests in order of arrival, higher priorities first.

    Args:
        max_rows: Maximum number of queued rows; 0 for no limit.
        max_bytes: Maximum size of queued tensors; 0 for no limit.

    Attributes:
        rows: Rows in the queue; also 0 if no request has rows.
        nbytes: Size of the tensors in the queue.
        timed: Whether an entry may have a deadline.
    """

    def __init__(self, max_rows: int = 0, max_bytes: int = 0) -> None:
        self.max_rows = max_rows
        self.max_bytes = max_bytes
        self.rows = self.nbytes = 0
        self._entries: list[QueueEntry] = []
        self._urgent = False  # whether an entry has a priority
        self.timed = False

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[QueueEntry]:
        return iter(self._entries)

    def why_full(self, rows: int, nbytes: int = 0) -> str | None:
        """The exceeded limit if a request does not fit, or None; an empty queue accepts any request.

        Args:
            rows: Rows of the request.
            nbytes: Size of its feeds.
        """
        if not self._entries:
            return None
        if self.max_rows and self.rows + rows > self.max_rows:
            return f"{self.rows + rows} rows would be queued, more than max_queue_rows ({self.max_rows})"
        if self.max_bytes and self.nbytes + nbytes > self.max_bytes:
            return f"{self.nbytes + nbytes} bytes would be queued, more than max_queue_bytes ({self.max_bytes})"
        return None

    def append(self, entry: QueueEntry) -> None:
        """Add an entry at the end."""
        request = entry.request
        self._entries.append(entry)
        self.rows += request.rows
        self.nbytes += entry.nbytes
        if request.priority:
            self._urgent = True
        if entry.deadline_ns:
            self.timed = True

    def discard(self, entry: QueueEntry) -> bool:
        """Remove an entry. Return whether it was in the queue."""
        try:
            self._entries.remove(entry)
        except ValueError:
            return False
        self.rows -= entry.request.rows
        self.nbytes -= entry.nbytes
        return True

    def find(self, completion: Completion) -> QueueEntry | None:
        """The entry of a completion, or None."""
        return next((entry for entry in self._entries if entry.completion is completion), None)

    def late(self, now_ns: int) -> list[QueueEntry]:
        """Entries with a passed deadline; they stay in the queue."""
        timed = [entry for entry in self._entries if entry.deadline_ns]
        self.timed = bool(timed)
        return [entry for entry in timed if entry.deadline_ns <= now_ns]

    def take(self, limit: int) -> tuple[list[QueueEntry], int]:
        """Take the next batch: the first entry, and all others with the same key that fit.

        Args:
            limit: Maximum rows of a batch.

        Returns:
            The batch, and its number of rows.
        """
        entries = self._entries
        if self._urgent:
            # Stable: first come, first served within each priority.
            entries.sort(key=lambda entry: entry.request.priority or 1 << 62)
        key = entries[0].request.key
        batch: list[QueueEntry] = []
        left: list[QueueEntry] = []
        rows = nbytes = 0
        for entry in entries:
            request = entry.request
            if request.key == key and (not batch or rows + request.rows <= limit):
                batch.append(entry)
                rows += request.rows
                nbytes += entry.nbytes
            else:
                left.append(entry)
        self._entries = left
        self.rows -= rows
        self.nbytes -= nbytes
        if self._urgent:
            self._urgent = any(entry.request.priority for entry in left)
        return batch, rows
