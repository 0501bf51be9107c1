"""The URL of a server, which chooses the protocol, and the API key."""

import os
import re
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from panther_client.errors import InvalidRequestError, MissingExtraError

_SCHEMES = ("http", "https", "grpc", "grpcs")
_USER = re.compile(r"//[^/?#]*@")


@dataclass(frozen=True)
class ServerUrl:
    """Parsed URL of a server.

    Attributes:
        address: Host and port.
        grpc: Whether to use gRPC.
        secure: Whether to use TLS.
    """

    address: str
    grpc: bool
    secure: bool

    @classmethod
    def of(cls, url: str) -> "ServerUrl":
        """Parse a URL.

        Raises:
            InvalidRequestError: The URL is invalid; the message shows it without a password.
        """
        shown = repr(_USER.sub("//***@", url)[:200])
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise InvalidRequestError(f"url {shown} is not valid: {error}") from None
        if parts.scheme not in _SCHEMES or not parts.hostname or parts.query or parts.fragment:
            raise InvalidRequestError(
                f"url {shown} must be {', '.join(f'{name}://' for name in _SCHEMES)} and a host, such as "
                "http://127.0.0.1:8000 or grpc://127.0.0.1:8001"
            )
        grpc = parts.scheme.startswith("grpc")
        if grpc and (port is None or parts.path.strip("/") or "@" in parts.netloc):
            raise InvalidRequestError(f"url {shown} must be {parts.scheme}://HOST:PORT only")
        return cls(parts.netloc, grpc, parts.scheme.endswith("s"))

    def grpc_parts(self) -> tuple[Any, ModuleType]:
        """The calls and the transport for gRPC.

        Raises:
            MissingExtraError: The packages are not installed.
        """
        # gRPC's own lines on standard error repeat what the errors say.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        try:
            from panther_client import grpc_transport
            from panther_client.grpc_calls import GrpcCalls
        except ImportError as error:
            raise MissingExtraError(
                "grpc:// and grpcs:// require the extra 'client-grpc' (pip install 'panther-sketch[client-grpc]'): "
                f"package {error.name!r} is not installed"
            ) from None
        return GrpcCalls(), grpc_transport


def check_key(api_key: str | None) -> dict[str, str]:
    """The header for an API key; empty without one.

    Raises:
        InvalidRequestError: The key is not a valid header value.
    """
    if api_key is None:
        return {}
    if not api_key.isascii() or not api_key.isprintable() or " " in api_key or not api_key:
        raise InvalidRequestError("api_key must consist of printable ASCII characters without spaces")
    return {"authorization": f"Bearer {api_key}"}
