"""Shared context of all connections of one worker, and the limits on their number."""

from app.config.limits import Limits
from app.errors import OverloadedError
from app.grpc.http2.session import configuration
from app.grpc.services import Services


class Context:
    """Shared context of all connections.

    Args:
        services: Methods to serve.

    Attributes:
        services: Methods to serve.
        limits: Limits of each connection.
        max_body_bytes, max_header_bytes: Limits of a message and of the headers of a call.
        configuration: Configuration of nghttp2.
        connections, calls: Number of open connections and of calls in flight.
    """

    def __init__(self, services: Services) -> None:
        settings = services.state.settings
        self.services = services
        self.limits = Limits.of(settings)
        self.max_body_bytes = settings.max_body_bytes
        self.max_header_bytes = settings.max_header_bytes
        self.configuration = configuration(settings.max_header_bytes)
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
