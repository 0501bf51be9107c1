"""One inference request on a connection, from its headers to its answer."""

import time

from app.engine.codec import Body, Headers
from app.service.admission import Reservation, join
from app.service.inference import InferenceService, Target
from app.service.inference_call import InferenceCall


class WireRequest:
    """One inference request on a connection.

    Attributes:
        target: the model that is asked for.
        headers: by name, in lower case.
        query: of the URL.
        keep_alive: whether the connection stays open after the answer.
        body: what has come of the body; empty once decoding has begun.
        pooled: the buffer of a long body, to be used again after the answer.
        reservation: the bytes that the body is counted with.
        call: the request in the service; None before it is started and after it is answered.
        response_complete: whether it is answered, or its client has disconnected.
        began_s: when its headers had come; 0 without an access log.
    """

    __slots__ = (
        "began_s", "body", "call", "headers", "keep_alive", "pooled", "query", "reservation", "response_complete",
        "target",
    )  # fmt: skip

    def __init__(
        self, service: InferenceService, target: Target, headers: Headers, query: bytes, *, keep_alive: bool
    ) -> None:
        self.target = target
        self.headers = headers
        self.query = query
        self.keep_alive = keep_alive
        self.body: Body = b""
        self.pooled: bytearray | None = None
        self.reservation = Reservation(service.admission)
        self.call: InferenceCall | None = None
        self.response_complete = False
        self.began_s = time.perf_counter() if service.access_log else 0.0

    def add(self, piece: bytes, max_bytes: int) -> bool:
        """Append a piece of the body, and reserve the memory that the body takes.

        Returns:
            False where the body is longer than ``max_bytes``.

        Raises:
            OverloadedError: too much is in flight.
        """
        if len(self.body) + len(piece) > max_bytes:
            return False
        self.body = join(self.body, piece, self.reservation)
        return True

    def drop_body(self) -> None:
        """Free the received part of the body: the request is refused."""
        self.body = b""
        self.reservation.release()

    def abandon(self) -> None:
        """Cancel the request: its client has disconnected.

        A run that reads the body keeps it, and its reservation, until the run ends.
        """
        self.response_complete = True
        self.body = b""
        self.pooled = None
        call, self.call = self.call, None
        if call is None:
            self.reservation.release()
        else:
            call.cancel()
