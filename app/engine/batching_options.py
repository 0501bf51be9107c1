"""Options of dynamic batching and of the queue."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BatchingOptions:
    """How a model's requests are batched and queued.

    Attributes:
        max_rows: most rows in one run; a request with more is run in pieces.
        inline_ns: a run expected to take no longer than this happens in the event loop.
        together: whether requests may share a run; if not, each has its own.
        delay_ns: how long the first request of a batch may wait for others.
        max_queue_rows: rows that may be queued; 0 for no limit.
        max_queue_bytes: bytes of tensors that may be queued; 0 for no limit.
        max_wait_ns: how long a request may be expected to wait; 0 for no limit.
    """

    max_rows: int
    inline_ns: int
    together: bool = True
    delay_ns: int = 0
    max_queue_rows: int = 0
    max_queue_bytes: int = 0
    max_wait_ns: int = 0
