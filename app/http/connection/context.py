"""Shared context of all connections of one worker."""

from collections.abc import Iterable

from app.config.limits import Limits
from app.http.connection.header_cache import HeaderCache
from app.http.connection.long_bodies import BodyThreads
from app.http.connection.response import DefaultHeaders
from app.service.inference import InferenceService
from app.service.watchdog import Watchdog


class ConnectionContext:
    """Shared context of all connections of one worker.

    Attributes:
        service: The inference service.
        limits: Limits of each connection.
        header_cache: Headers of admitted inference requests.
        default_headers: Header lines of every response.
        threads: Copy long bodies from and to sockets.
    """

    def __init__(self, service: InferenceService, limits: Limits, threads: BodyThreads) -> None:
        self.service = service
        self.limits = limits
        self.header_cache = HeaderCache()
        self.default_headers = DefaultHeaders()
        self.threads = threads
        self._watchdog: Watchdog | None = None

    def watch(self, connections: Iterable[object]) -> None:
        """Enforce the timeouts of connections; called for each new one, with the set of all."""
        if self._watchdog is None:
            self._watchdog = Watchdog(connections, self.limits)
        self._watchdog.wake()
