"""Serving: bind the address, then run in this process, or supervise workers."""

import logging

from app.config.model_url import ModelUrl
from app.config.settings import Settings
from app.grpc import extra as grpc_extra
from app.process.sockets import Address, authority, bind
from app.process.supervisor import Supervisor
from app.process.worker_process import ignore_stray_signals
from app.repository.remote import extra as remote_extra

log = logging.getLogger(__name__)


def serve(settings: Settings) -> int:
    """Serve until a signal ends the process.

    Returns:
        The exit status.

    Raises:
        BindError: The address is not available.
        MissingExtraError: gRPC or models by URL are enabled, but their packages are not installed.
    """
    ignore_stray_signals()
    grpc_extra.require_extra(settings)
    if isinstance(settings.model_dir, ModelUrl):
        remote_extra.require_extra(settings.model_dir)
    # gRPC listens separately in each process, on an address that is reserved here.
    grpc = None if settings.grpc_port is None else Address(settings.host, settings.grpc_port, "grpc_port")
    if settings.workers == 1:
        from app.process.worker import serve_alone  # the parent of several workers does without the application

        sock = bind(settings.host, settings.port)
        _say_listening(settings, sock.getsockname()[1], grpc)
        return serve_alone(settings, sock, None if grpc is None else str(grpc))
    address = Address(settings.host, settings.port)
    supervisor = Supervisor(settings, address, grpc)
    _say_listening(settings, address.port, grpc)
    return supervisor.run()


def _say_listening(settings: Settings, port: int, grpc: Address | None) -> None:
    workers = f", {settings.workers} workers" if settings.workers > 1 else ""
    host = authority(settings.host)
    also = "" if grpc is None else f" and for gRPC on {host}:{grpc.port}"
    log.info("listening on http://%s:%d (docs at /docs)%s%s", host, port, also, workers)
