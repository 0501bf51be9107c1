"""The way to the gRPC server, which needs the extra ``grpc``: nothing of this folder is imported without it."""

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from app.config.settings import Settings
from app.errors import AppError
from app.service.state import AppState

if TYPE_CHECKING:
    from app.grpc.server import GrpcServer

_PACKAGES = ("grpc", "google.protobuf", "grpc_health", "grpc_reflection")


class MissingExtraError(AppError):
    """gRPC was asked for, and its packages are not installed."""


def require_extra(settings: Settings) -> None:
    """Check that the packages of the extra are installed if a gRPC port is set.

    Raises:
        MissingExtraError: names the extra, and the first package that is missing.
    """
    if settings.grpc_port is None:
        return
    for package in (*_PACKAGES, *(("ngh2",) if settings.grpc_transport == "nghttp2" else ())):
        if not _is_installed(package):
            raise MissingExtraError(
                f"grpc_port={settings.grpc_port} needs the extra 'grpc' (pip install 'panther-sketch[grpc]'): "
                f"package {package!r} is not installed"
            )


def grpc_server(state: AppState) -> "GrpcServer":
    """The gRPC server of an application, which is yet to be started.

    Raises:
        MissingExtraError: see ``require_extra``.
    """
    require_extra(state.settings)
    # gRPC's own lines on standard error are not those of the log; what a client does wrong its answer says.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from app.grpc.server import GrpcServer

    return GrpcServer(state)


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of its package
        return False
