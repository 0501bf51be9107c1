"""Requests on their way through one model, and the queue in which they wait for their run."""

import asyncio
from collections.abc import Callable, Hashable, Iterator

from app.codec import HeaderList
from app.errors import AppError
from app.results import Results
from app.tensors import Array

Done = Callable[["Call", Results | None, AppError | None], None]
Reply = Callable[[Results, int, int], tuple[HeaderList, bytes]]


class Call:
    """One request on its way through the model.

    Decoding makes it; who wants it run says what is to be ``done`` then.

    Attributes:
        feeds: input name to array.
        output_names: outputs to compute, in order.
        rows: rows of the batch dimension; 1 for a model that is not batched.
        nbytes: bytes of the feeds; 0 for a call that is run as it comes, without a queue.
        key: only calls of the same key may run together.
        done: called once, in the event loop, with the results or the error.
        reply: writes the answer: headers and body, from the results and the rows of them that are this call's.
        priority: 1 is the highest; 0 has none and comes last.
        timeout_us: how long the caller waits; 0 for no bound.
        deadline_ns: on ``time.perf_counter_ns``; 0 for none.
    """

    __slots__ = (
        "cancelled", "deadline_ns", "done", "feeds", "infer_ns", "input_ns", "key", "nbytes", "output_names",
        "output_ns", "priority", "queue_ns", "queued_ns", "reply", "rows", "start", "stop", "timeout_us", "timer",
    )  # fmt: skip

    def __init__(
        self,
        feeds: dict[str, Array],
        output_names: tuple[str, ...],
        rows: int,
        key: Hashable,
        done: Done | None = None,
        priority: int = 0,
        deadline_ns: int = 0,
    ) -> None:
        self.feeds = feeds
        self.output_names = output_names
        self.rows = rows
        self.nbytes = 0
        self.key = key
        self.done = done or _nobody
        self.reply: Reply | None = None
        self.priority = priority
        self.timeout_us = 0
        self.deadline_ns = deadline_ns
        self.timer: asyncio.TimerHandle | None = None
        self.cancelled = False
        self.start = 0
        self.stop = rows
        self.queued_ns = self.queue_ns = self.input_ns = self.infer_ns = self.output_ns = 0


def _nobody(call: Call, results: Results | None, error: AppError | None) -> None:
    """Nobody has asked for it yet."""


class CallQueue:
    """Calls in the order of their arrival, those of a higher priority first.

    Args:
        max_rows: rows that may wait; 0 for no bound.
        max_bytes: bytes of tensors that may wait; 0 for no bound.

    Attributes:
        rows, nbytes: what waits.
    """

    def __init__(self, max_rows: int = 0, max_bytes: int = 0) -> None:
        self.max_rows = max_rows
        self.max_bytes = max_bytes
        self.rows = self.nbytes = 0
        self._calls: list[Call] = []
        self._urgent = False  # whether a call has a priority

    def __len__(self) -> int:
        return len(self._calls)

    def __contains__(self, call: Call) -> bool:
        return call in self._calls

    def __iter__(self) -> Iterator[Call]:
        return iter(self._calls)

    def full(self, rows: int, nbytes: int = 0) -> str | None:
        """Why there is no room for a call, or None; one that nothing waits in front of always has room.

        Args:
            rows: of the call.
            nbytes: of its feeds.
        """
        if not self._calls:
            return None
        if self.max_rows and self.rows + rows > self.max_rows:
            return f"{self.rows + rows} rows would wait, more than max_queue_rows ({self.max_rows})"
        if self.max_bytes and self.nbytes + nbytes > self.max_bytes:
            return f"{self.nbytes + nbytes} bytes would wait, more than max_queue_bytes ({self.max_bytes})"
        return None

    def append(self, call: Call) -> None:
        """Add a call at the end."""
        self._calls.append(call)
        self.rows += call.rows
        self.nbytes += call.nbytes
        if call.priority:
            self._urgent = True

    def remove(self, call: Call) -> None:
        """Take a call out."""
        self._calls.remove(call)
        self.rows -= call.rows
        self.nbytes -= call.nbytes

    def take(self, limit: int) -> tuple[list[Call], int]:
        """The next batch and its rows: the first call, and all of the same key that fit beside it in ``limit`` rows."""
        calls = self._calls
        if self._urgent:
            calls.sort(key=lambda call: call.priority or 1 << 62)  # stable: first come, first served within each
        key = calls[0].key
        batch: list[Call] = []
        left: list[Call] = []
        rows = 0
        for call in calls:
            if call.key == key and (not batch or rows + call.rows <= limit):
                batch.append(call)
                rows += call.rows
            else:
                left.append(call)
        self._calls = left
        self.rows -= rows
        self.nbytes -= sum([call.nbytes for call in batch])
        if self._urgent:
            self._urgent = any(call.priority for call in left)
        return batch, rows
