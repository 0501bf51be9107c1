"""Running the application under uvicorn."""

import asyncio
import functools
import logging
import os
import socket
from typing import Any, cast

import uvicorn

from app.errors import AppError
from app.lifecycle import GracefulServer
from app.main import create_app
from app.protocol import Connection
from app.settings import Settings
from app.trial import trials
from app.tuning import freeze_collector, tune_allocator
from app.workers import serve_workers

log = logging.getLogger(__name__)

BACKLOG = 2048


class BindError(AppError):
    """The address can't be listened on."""


def authority(host: str) -> str:
    """A host as URLs have it: an address of IPv6 stands in brackets there."""
    return f"[{host}]" if ":" in host else host


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket.

    Args:
        host: an address or name of this machine.
        port: 0 for a free one.
        shared: allow other sockets of the same user on the same port.

    Raises:
        BindError: the port is taken, or the host is not one of this machine; says what to do.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    place = f"{authority(host)}:{port}"
    try:
        sock = socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=shared)
    except TypeError:  # so Python says that no host can have this name
        raise BindError(f"can't listen on {place!r}: a host's name holds no null character") from None
    except OSError as error:
        known = error.errno is not None and error.errno > 0
        reason = os.strerror(error.errno) if known and error.errno else error.strerror or str(error)
        raise BindError(
            f"can't listen on {place}: {reason}; choose another with --host and --port (PANTHER_HOST, PANTHER_PORT)"
        ) from None
    sock.set_inheritable(True)
    return sock


def bind_many(host: str, port: int, count: int) -> list[socket.socket]:
    """As many sockets on one port, for as many workers; see ``bind``."""
    if count == 1:
        return [bind(host, port)]
    # Sockets that share a port would share it with another server's too: first see that it is free.
    with bind(host, port) as probe:
        port = probe.getsockname()[1]
    return [bind(host, port, shared=True) for _ in range(count)]


def make_config(application: Any, settings: Settings, **options: Any) -> uvicorn.Config:
    """How uvicorn runs the application."""
    return uvicorn.Config(
        application,
        loop="uvloop",
        http=cast("type[asyncio.Protocol]", Connection),  # uvicorn makes it and asks no more of it
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        backlog=BACKLOG,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=settings.shutdown_timeout_s,
        **options,
    )


def serve(settings: Settings) -> int:
    """Serve until a signal ends it.

    Returns:
        The exit status.

    Raises:
        BindError: see ``bind``.
    """
    sockets = bind_many(settings.host, settings.port, settings.workers)
    workers = f", {settings.workers} workers" if settings.workers > 1 else ""
    port = sockets[0].getsockname()[1]
    log.info("listening on http://%s:%d (docs at /docs)%s", authority(settings.host), port, workers)
    if settings.workers > 1:
        return serve_workers(settings, sockets, functools.partial(make_config, settings=settings))
    if settings.trial_load_s:
        trials.prepare()
    tune_allocator()
    application = create_app(settings)
    application.state.panther.on_loaded = freeze_collector
    server = GracefulServer(make_config(application, settings), settings)
    server.run(sockets)
    return 0 if server.started else 1
