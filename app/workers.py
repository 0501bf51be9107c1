"""Several worker processes behind one port, under uvicorn's supervisor."""

import shutil
import socket
import tempfile
from functools import partial
from pathlib import Path

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from app.logs import configure_logging
from app.main import Application, create_app
from app.settings import Settings
from app.tuning import end_with_parent, freeze_collector, tune_allocator


class Workers(Multiprocess):
    """uvicorn's supervisor, with a socket for each worker.

    Workers that share one socket race for its connections, and the quickest takes most of them. With a socket each
    (``SO_REUSEPORT``) the kernel spreads them. The parent keeps all of them open: connections that arrive while a
    worker is replaced wait for its successor.
    """

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket]) -> None:
        self._each = sockets
        super().__init__(config, sockets)

    @property
    def sockets(self) -> list[socket.socket]:
        """The socket of the worker that is about to be started: the first that has died, else the next."""
        slot = len(self.processes)
        for index, process in enumerate(self.processes):
            if process.exitcode is not None:
                slot = index
                break
        return [self._each[slot % len(self._each)]]

    @sockets.setter
    def sockets(self, value: list[socket.socket]) -> None:
        self._each = value


def make_worker(settings: Settings, folder: Path) -> Application:
    """The application of one worker; called in its process."""
    configure_logging(settings.log_level, settings.log_format)
    end_with_parent()
    tune_allocator()
    application = create_app(settings, peers_folder=folder)
    application.state.panther.on_loaded = freeze_collector
    return application


def serve_workers(settings: Settings, sockets: list[socket.socket], config: "partial[uvicorn.Config]") -> int:
    """Run the workers until a signal ends them.

    Args:
        settings: of every worker.
        sockets: one for each.
        config: makes uvicorn's configuration of an application.

    Returns:
        The exit status.
    """
    folder = Path(tempfile.mkdtemp(prefix="panther-"))
    try:
        supervisor = Workers(
            config(partial(make_worker, settings, folder), factory=True, workers=len(sockets)), sockets
        )
        supervisor.run()
        failed = any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes)
        return 1 if failed else 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)
