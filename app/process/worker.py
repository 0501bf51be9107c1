"""One serving process: the only one, or a worker beside others."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import uvicorn

from app.application import Application, create_app
from app.cluster.link import Link, Place
from app.config.settings import Settings
from app.http.connection.protocol import Connection
from app.process.shutdown import CUT_S, GracefulServer, Hooks, ignore_stray_signals
from app.process.sockets import BACKLOG
from app.repository.trial_load import trials
from app.system.tuning import freeze_collector
from app.telemetry.logs import configure_logging

if TYPE_CHECKING:
    from multiprocessing.connection import Connection as Pipe

log = logging.getLogger(__name__)

START_FAILED = 3
"""Status of a worker that would fail in the same way each time."""


@dataclass(frozen=True)
class WorkerOptions:
    """Start options of a worker.

    Attributes:
        settings: of the server.
        slot: its number among the workers, from 0.
        succeeds: whether it replaces another; it then loads its models before it listens.
        grpc_address: where it listens for gRPC; None without it.
    """

    settings: Settings
    slot: int
    succeeds: bool
    grpc_address: str | None = None


def make_config(application: Any, settings: Settings) -> uvicorn.Config:
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
    )


def make_server(
    application: Application, settings: Settings, *, supervised: bool = False, grpc_address: str | None = None
) -> GracefulServer:
    """The server of an application.

    Args:
        application, settings: what it serves, and how.
        supervised: whether a parent passes signals on.
        grpc_address: where it listens for gRPC; None without it.
    """
    state = application.state.panther
    hooks = Hooks(state.stuck_because, state.drain, application.lifecycle.reread_keys)
    if application.grpc is not None and grpc_address is not None:
        hooks = replace(hooks, open=partial(application.grpc.start, grpc_address), close=application.grpc.stop)
    return GracefulServer(make_config(application, settings), settings, hooks, supervised=supervised)


def serve_alone(settings: Settings, sock: socket.socket, grpc_address: str | None = None) -> int:
    """Serve in this process until a signal ends it; the exit status."""
    _prepare(settings)
    server = make_server(create_app(settings, on_loaded=freeze_collector), settings, grpc_address=grpc_address)
    server.run([sock])
    return 0 if server.started else 1


def run_worker(options: WorkerOptions, sock: socket.socket, others: socket.socket, pipe: "Pipe[Any, Any]") -> None:
    """Main function of a worker process.

    Args:
        options: of the worker.
        sock: to listen on.
        others: connects it to the other workers, by way of the parent.
        pipe: to the parent, which asks how it fares.
    """
    ignore_stray_signals()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # the parent blocked it until it would end nothing
    settings = options.settings
    configure_logging(settings.log_level, settings.log_format)
    _prepare(settings)
    place = Place(Link(others), options.slot, load_first=options.succeeds)
    application = create_app(settings, place=place, on_loaded=freeze_collector)
    server = make_server(application, settings, supervised=True, grpc_address=options.grpc_address)
    threading.Thread(target=_answer_parent, args=(server, pipe, settings), daemon=True).start()
    server.run([sock])
    sys.exit(0 if server.started else START_FAILED)


def _prepare(settings: Settings) -> None:
    if settings.trial_load_s:
        trials.prepare()


def _answer_parent(server: GracefulServer, pipe: "Pipe[Any, Any]", settings: Settings) -> None:
    """Say how the worker fares, and end it with its parent; in a thread, which runs where the event loop does not."""
    with contextlib.suppress(OSError, EOFError):
        while True:
            pipe.recv()
            pipe.send((server.started, server.problem()))
    if server.draining:
        return
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(settings.shutdown_delay_s + settings.shutdown_timeout_s + 2 * CUT_S)
    os._exit(1)  # it is stuck, and no parent is left to see that
