"""The queue of one model's inference requests.

See docs/decisions/0007-admission-control.md.
"""

import asyncio
from collections.abc import Iterator

from app.engine.request import Completion, InferenceRequest, Timings


class QueueEntry:
    """An inference request in the queue or in a run, with its completion.

    Attributes:
        request: the request.
        completion: takes the result or the error.
        timings: of the request.
        nbytes: bytes of the feeds; 0 for a request that runs without a queue.
        deadline_ns: moment by which the run has to begin; 0 for none.
        timer: ends the request at its deadline; None without one.
        cancelled: whether its client has left.
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
    """Inference requests in the order of their arrival, those of a higher priority first.

    Args:
        max_rows: rows that may be queued; 0 for no limit.
        max_bytes: bytes of tensors that may be queued; 0 for no limit.

    Attributes:
        rows: rows in the queue; 0 too where all its requests have none.
        nbytes: bytes of tensors in the queue.
        timed: whether an entry may have a deadline.
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
        """Why there is no room for a request, or None; an empty queue has room for any.

        Args:
            rows: of the request.
            nbytes: of its feeds.
        """
        if not self._entries:
            return None
        if self.max_rows and self.rows + rows > self.max_rows:
            return f"{self.rows + rows} rows would wait, more than max_queue_rows ({self.max_rows})"
        if self.max_bytes and self.nbytes + nbytes > self.max_bytes:
            return f"{self.nbytes + nbytes} bytes would wait, more than max_queue_bytes ({self.max_bytes})"
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
        """Take an entry out; whether it was there."""
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
        """Entries whose deadline has passed; they stay."""
        timed = [entry for entry in self._entries if entry.deadline_ns]
        self.timed = bool(timed)
        return [entry for entry in timed if entry.deadline_ns <= now_ns]

    def take(self, limit: int) -> tuple[list[QueueEntry], int]:
        """Take the next batch: the first entry, and all of the same key that fit beside it.

        Args:
            limit: rows of a batch.

        Returns:
            The batch, and its rows.
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
