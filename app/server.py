"""Running the application under uvicorn."""

import functools
import gc
import logging
import os
import signal
import socket

import uvicorn

from app.errors import AppError
from app.main import Application, create_app
from app.protocol import InferenceProtocol
from app.settings import Settings

log = logging.getLogger(__name__)


class BindError(AppError):
    """The address can't be listened on."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        BindError: the port is taken, or the host is not one of this machine; says what to do.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        known = error.errno is not None and error.errno > 0
        reason = os.strerror(error.errno) if known and error.errno else error.strerror or str(error)
        raise BindError(
            f"can't listen on {host}:{port}: {reason}; "
            "choose another with --host and --port (PANTHER_HOST, PANTHER_PORT)"
        ) from None
    sock.set_inheritable(True)
    return sock


def serve(settings: Settings) -> int:
    """Serve until a signal ends it.

    Returns:
        The exit status.

    Raises:
        BindError: see ``bind``.
    """
    sock = bind(settings.host, settings.port)
    application = create_app(settings)
    application.state.panther.on_loaded = freeze_collector
    server = uvicorn.Server(make_config(application))
    log.info("listening on http://%s:%d (docs at /docs)", settings.host, sock.getsockname()[1])
    # uvicorn sends itself the signal again once it has shut down; stopping on request is a success
    signal.signal(signal.SIGTERM, lambda *_: None)
    server.run([sock])
    return 0 if server.started else 1


def make_config(application: Application) -> uvicorn.Config:
    """How uvicorn runs the application."""
    return uvicorn.Config(
        application,
        loop="uvloop",
        http=functools.partial(InferenceProtocol, application.service),  # type: ignore[arg-type]
        proxy_headers=False,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
    )


def freeze_collector() -> None:
    """What lives once the models are loaded lives as long as the process: the collector need not look at it again."""
    gc.collect()
    gc.freeze()
