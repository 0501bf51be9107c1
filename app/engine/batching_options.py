"""Options of dynamic batching and of the queue."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BatchingOptions:
    """Batching and queue options of one model.

    Attributes:
        max_rows: Maximum number of rows in one run; a larger request runs in pieces.
        inline_ns: Runs with at most this expected duration execute on the event loop.
        together: Whether requests may share a run; otherwise each has a separate run.
        delay_ns: Maximum time that the first request of a batch waits for others.
        max_queue_rows: Maximum number of queued rows; 0 for no limit.
        max_queue_bytes: Maximum size of queued tensors; 0 for no limit.
        max_wait_ns: Maximum expected waiting time of a request; 0 for no limit.
    """

    max_rows: int
    inline_ns: int
    together: bool = True
    delay_ns: int = 0
    max_queue_rows: int = 0
    max_queue_bytes: int = 0
    max_wait_ns: int = 0
