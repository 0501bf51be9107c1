"""Rate limit against floods of cheap frames: one token bucket per connection."""

import time

BURST = 1000
PER_SECOND = 100
PER_ANSWER = 2
"""Go clients send a PING with each response, to measure the bandwidth."""


class Patience:
    """Token bucket.

    Args:
        burst: Number of events allowed at once.
        per_second: Number of events allowed per second in the long run.
    """

    __slots__ = ("_burst", "_left", "_per_second", "_seen_at")

    def __init__(self, burst: int = BURST, per_second: float = PER_SECOND) -> None:
        self._burst = burst
        self._per_second = per_second
        self._left: float = burst
        self._seen_at = time.monotonic()

    def relax(self) -> None:
        """Allow a few more events, after a response."""
        self._left = min(self._burst, self._left + PER_ANSWER)

    def strain(self) -> bool:
        """Count one event; True if it exceeds the limit."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + self._per_second * (now - self._seen_at)) - 1
        self._seen_at = now
        return self._left < 0
