"""Retry policy for requests."""

from dataclasses import dataclass

_RETRIED = (429, 503)
_FIRST_PAUSE_S = 0.1


@dataclass(frozen=True)
class Retries:
    """Number and length of retries if the server is overloaded or unreachable.

    Attributes:
        count: Number of retries after the first try.
        max_wait_s: Maximum Retry-After to wait for; a longer one ends the retries.
    """

    count: int = 3
    max_wait_s: float = 10.0

    def pause_s(self, attempt: int, status: int | None, retry_after: str | None = None) -> float | None:
        """Seconds to wait before the next try; None for no further try.

        Args:
            attempt: Number of previous retries.
            status: Status of the response; None without a response.
            retry_after: Retry-After of the response in seconds.
        """
        if attempt >= self.count or (status is not None and status not in _RETRIED):
            return None
        pause = _FIRST_PAUSE_S * 2**attempt
        if retry_after is not None and retry_after.isdecimal():
            pause = float(retry_after)
        return pause if pause <= self.max_wait_s else None
