"""Entry to the gRPC server, which requires the extra ``grpc``: without it no other module here is imported."""

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from app.config.settings import Settings
from app.errors import AppError

if TYPE_CHECKING:
    from app.grpc.server import GrpcServer
    from app.service.state import AppState

_PACKAGES = ("grpc", "google.protobuf", "grpc_health", "grpc_reflection")


class MissingExtraError(AppError):
    """gRPC is enabled, but its packages are not installed."""


def require_extra(settings: Settings) -> None:
    """Check that the packages of the extra are installed if a gRPC port is set.

    Raises:
        MissingExtraError: A package is missing; the message names it and the extra.
    """
    if settings.grpc_port is None:
        return
    for package in (*_PACKAGES, *(("ngh2",) if settings.grpc_transport == "nghttp2" else ())):
        if not _is_installed(package):
            raise MissingExtraError(
                f"grpc_port={settings.grpc_port} requires the extra 'grpc' (pip install 'panther-sketch[grpc]'): "
                f"package {package!r} is not installed"
            )


def grpc_server(state: "AppState") -> "GrpcServer":
    """Make the gRPC server of an application; the caller starts it.

    Raises:
        MissingExtraError: See ``require_extra``.
    """
    require_extra(state.settings)
    # Silence gRPC's own lines on standard error, which are not in the log format; clients get errors in responses.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from app.grpc.server import GrpcServer

    return GrpcServer(state)


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # a package of the extra
        return False
