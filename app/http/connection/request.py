"""One inference request on a connection, from its headers to its response."""

import time

from app.engine.codec import Body, Headers
from app.service.admission import Reservation, join
from app.service.inference import InferenceService, Target
from app.service.inference_call import InferenceCall


class WireRequest:
    """One inference request on a connection.

    Attributes:
        target: The requested model.
        headers: Headers by lowercase name.
        query: Query of the URL.
        keep_alive: Whether the connection stays open after the response.
        body: The received part of the body; empty once decoding has begun.
        pooled: The buffer of a long body, reused after the response.
        reservation: Reserved bytes of the body.
        call: The request in the service; None before its start and after its response.
        response_complete: Whether the response was sent, or the client has disconnected.
        began_s: Time at which its headers were complete; 0 without an access log.
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
        """Append a piece of the body, and reserve its memory.

        Returns:
            False if the body is longer than ``max_bytes``.

        Raises:
            OverloadedError: The byte budget is exhausted.
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
        """Cancel the request, because its client has disconnected.

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
