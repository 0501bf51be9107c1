"""Shared context of all connections of one worker, and the limits on their number."""

from app.config.limits import Limits
from app.errors import OverloadedError
from app.grpc.http2.headers import CallHeaders, Fields
from app.grpc.http2.session import configuration
from app.grpc.services import Services

_MAX_KNOWN = 256
_MAX_KNOWN_BYTES = 2048


class Context:
    """Shared context of all connections.

    Args:
        services: Methods to serve.

    Attributes:
        services: Methods to serve.
        limits: Limits of each connection.
        max_body_bytes, max_header_bytes: Limits of a message and of the headers of a call.
        configuration: Configuration of nghttp2.
        known_headers: Headers of calls without a deadline, by their fields: clients repeat them.
        connections, calls: Number of open connections and of calls in flight.
    """

    def __init__(self, services: Services) -> None:
        settings = services.state.settings
        self.services = services
        self.limits = Limits.of(settings)
        self.max_body_bytes = settings.max_body_bytes
        self.max_header_bytes = settings.max_header_bytes
        self.configuration = configuration(settings.max_header_bytes)
        self.known_headers: dict[Fields, CallHeaders] = {}
        self.connections = 0
        self.calls = 0

    @property
    def crowded(self) -> bool:
        """Whether there are more connections than the limit allows."""
        return self.connections > self.limits.max_connections

    def admit(self) -> None:
        """Check that there may be one call more.

        Raises:
            OverloadedError: The limit is reached.
        """
        if self.calls >= self.limits.max_connections:
            raise OverloadedError(
                f"this worker has as many calls in flight as max_connections ({self.limits.max_connections}) allows"
            )

    def remember(self, fields: Fields, given: CallHeaders) -> None:
        """Keep the headers of a call for calls with the same fields; the deadlines of calls mostly differ."""
        if given.timeout_s is None and sum([len(name) + len(value) for name, value in fields]) <= _MAX_KNOWN_BYTES:
            if len(self.known_headers) >= _MAX_KNOWN:
                self.known_headers.clear()
            self.known_headers[fields] = given
