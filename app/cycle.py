"""One inference request on a connection, as uvicorn's protocol and ours see it."""

import time

from app.codec import Headers
from app.inference import Exchange, InferenceService, Target


class _NoEvent:
    """Stands where uvicorn would wake a task that waits for the body; there is none."""

    def set(self) -> None:
        pass


_NO_EVENT = _NoEvent()


class InferenceCycle:
    """One inference request and its answer; to uvicorn it looks like a ``RequestResponseCycle``."""

    __slots__ = (
        "began_s",
        "buffer",
        "chunks",
        "disconnected",
        "exchange",
        "headers",
        "held",
        "keep_alive",
        "query",
        "response_complete",
        "service",
        "size",
        "target",
    )

    message_event = _NO_EVENT

    def __init__(
        self, service: InferenceService, target: Target, headers: Headers, query: bytes, *, keep_alive: bool
    ) -> None:
        self.service = service
        self.began_s = time.perf_counter() if service.access_log else 0.0
        self.target = target
        self.headers = headers
        self.query = query
        self.keep_alive = keep_alive
        self.chunks: list[bytes] = []
        self.buffer: bytearray | None = None  # the body of a long request, to be used again
        self.size = 0
        self.held = 0  # bytes that the intake counts for this request
        self.exchange: Exchange | None = None
        self.disconnected = False
        self.response_complete = False

    def hold(self, count: int) -> None:
        """Take bytes of the body in hand; see ``Intake.hold``."""
        self.service.intake.hold(count - self.held)
        self.held = count

    def release(self) -> None:
        """The body is not needed any more."""
        self.service.intake.release(self.held)
        self.held = 0
