"""Interface of a transport: an HTTP/2 server for gRPC methods."""

from typing import Protocol

from app.errors import AppError


class GrpcStartError(AppError):
    """The gRPC server cannot listen on its address."""


class Transport(Protocol):
    """A server of HTTP/2 for the methods of ``Services``."""

    async def start(self, address: str) -> None:
        """Listen on an address; other processes may listen on the same address.

        Args:
            address: Host and port, an IPv6 address in brackets.

        Raises:
            GrpcStartError: Listening on the address failed.
        """

    async def stop(self, timeout_s: float) -> None:
        """Refuse new calls, and finish once those in flight have their responses.

        Args:
            timeout_s: Time after which the remaining connections are closed.
        """
