"""One serving process: a single process, or one of several workers."""

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import uvicorn

from app.application import Application, create_app
from app.cluster.link import Link, Place
from app.config.settings import Settings
from app.http.connection.protocol import Connection
from app.process.shutdown import GracefulServer, Hooks
from app.process.sockets import BACKLOG
from app.process.worker_options import CUT_S, WorkerOptions
from app.repository.trial_load import trials
from app.system.tuning import freeze_collector

if TYPE_CHECKING:
    from multiprocessing.connection import Connection as Pipe


def make_config(application: Any, settings: Settings) -> uvicorn.Config:
    """Configuration of uvicorn for the application."""
    return uvicorn.Config(
        application,
        loop="uvloop",
        # The protocol of each accepted connection; uvicorn only constructs it.
        http=cast("type[asyncio.Protocol]", Connection),
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
    """Make the server of an application.

    Args:
        application, settings: The application and its settings.
        supervised: Whether a parent passes signals on.
        grpc_address: Address for gRPC; None without it.
    """
    state = application.state.panther
    hooks = Hooks(state.stuck_because, state.drain, application.lifecycle.reread_keys)
    if application.grpc is not None and grpc_address is not None:
        hooks = replace(hooks, open=partial(application.grpc.start, grpc_address), close=application.grpc.stop)
    return GracefulServer(make_config(application, settings), settings, hooks, supervised=supervised)


def serve_alone(settings: Settings, sock: socket.socket, grpc_address: str | None = None) -> int:
    """Serve in this process until a signal ends it; return the exit status."""
    _prepare(settings)
    server = make_server(create_app(settings, on_loaded=freeze_collector), settings, grpc_address=grpc_address)
    server.run([sock])
    return 0 if server.started else 1


def serve_supervised(
    options: WorkerOptions, sock: socket.socket, others: socket.socket, pipe: "Pipe[Any, Any]"
) -> bool:
    """Serve as one of several workers, as `run_worker` describes; return whether the server started."""
    settings = options.settings
    _prepare(settings)
    place = Place(Link(others), options.slot, load_first=options.succeeds)
    application = create_app(settings, place=place, on_loaded=freeze_collector)
    server = make_server(application, settings, supervised=True, grpc_address=options.grpc_address)
    threading.Thread(target=_answer_parent, args=(server, pipe, settings), daemon=True).start()
    server.run([sock])
    return server.started


def _prepare(settings: Settings) -> None:
    if settings.trial_load_s:
        trials.prepare()


def _answer_parent(server: GracefulServer, pipe: "Pipe[Any, Any]", settings: Settings) -> None:
    """Report the worker's status, and end it with its parent. Runs in a thread, even while the event loop is stuck."""
    with contextlib.suppress(OSError, EOFError):
        while True:
            pipe.recv()
            pipe.send((server.started, server.problem()))
    if server.draining:
        return
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(settings.shutdown_delay_s + settings.shutdown_timeout_s + 2 * CUT_S)
    os._exit(1)  # the process is stuck, and no parent can replace it
