"""Interface of a transport: an HTTP/2 server for gRPC methods."""

from typing import Protocol

from app.errors import AppError


class GrpcStartError(AppError):
    """The gRPC server can't listen."""


class Transport(Protocol):
    """A server of HTTP/2 for the methods of ``Services``."""

    async def start(self, address: str) -> None:
        """Listen; other processes may listen on the same address.

        Args:
            address: host and port, an IPv6 address in brackets.

        Raises:
            GrpcStartError: the address can't be listened on.
        """

    async def stop(self, timeout_s: float) -> None:
        """Accept no more calls, and return when those in flight have their answers.

        Args:
            timeout_s: after which what is left is cut off.
        """
