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
    """Where a server is.

    Attributes:
        address: host and port.
        grpc: whether it is asked over gRPC.
        secure: whether over TLS.
    """

    address: str
    grpc: bool
    secure: bool

    @classmethod
    def of(cls, url: str) -> "ServerUrl":
        """The parts of a URL.

        Raises:
            InvalidRequestError: it breaks a rule; shows it without a password.
        """
        shown = repr(_USER.sub("//***@", url)[:200])
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise InvalidRequestError(f"url {shown} can't be understood: {error}") from None
        if parts.scheme not in _SCHEMES or not parts.hostname or parts.query or parts.fragment:
            raise InvalidRequestError(
                f"url {shown} must be {', '.join(f'{name}://' for name in _SCHEMES)} and a host, such as "
                "http://127.0.0.1:8000 or grpc://127.0.0.1:8001"
            )
        grpc = parts.scheme.startswith("grpc")
        if grpc and (port is None or parts.path.strip("/") or "@" in parts.netloc):
            raise InvalidRequestError(f"url {shown} must be {parts.scheme}://HOST:PORT alone")
        return cls(parts.netloc, grpc, parts.scheme.endswith("s"))

    def grpc_parts(self) -> tuple[Any, ModuleType]:
        """The maker of calls over gRPC, and the module that sends them.

        Raises:
            MissingExtraError: the packages are not installed.
        """
        # gRPC's own lines on standard error say nothing that an error does not.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        try:
            from panther_client import grpc_transport
            from panther_client.grpc_calls import GrpcCalls
        except ImportError as error:
            raise MissingExtraError(
                "grpc:// and grpcs:// need the extra 'client-grpc' (pip install 'panther-sketch[client-grpc]'): "
                f"package {error.name!r} is not installed"
            ) from None
        return GrpcCalls(), grpc_transport


def check_key(api_key: str | None) -> dict[str, str]:
    """The header of an API key; none without one.

    Raises:
        InvalidRequestError: it can be no header's value.
    """
    if api_key is None:
        return {}
    if not api_key.isascii() or not api_key.isprintable() or " " in api_key or not api_key:
        raise InvalidRequestError("api_key must be of visible ASCII characters without spaces")
    return {"authorization": f"Bearer {api_key}"}
