"""When a request is sent again."""

from dataclasses import dataclass

_RETRIED = (429, 503)
_FIRST_PAUSE_S = 0.1


@dataclass(frozen=True)
class Retries:
    """How often and how long to try again where the server is overloaded or can't be reached.

    Attributes:
        count: tries after the first.
        max_wait_s: a longer Retry-After is not waited for.
    """

    count: int = 3
    max_wait_s: float = 10.0

    def pause_s(self, attempt: int, status: int | None, retry_after: str | None = None) -> float | None:
        """Seconds to wait before the next try; None where there is to be none.

        Args:
            attempt: how many tries there were before the last one.
            status: of the answer; None where there was none.
            retry_after: what the answer says in seconds.
        """
        if attempt >= self.count or (status is not None and status not in _RETRIED):
            return None
        pause = _FIRST_PAUSE_S * 2**attempt
        if retry_after is not None and retry_after.isdecimal():
            pause = float(retry_after)
        return pause if pause <= self.max_wait_s else None
