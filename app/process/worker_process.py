"""Main function of a worker process; the parent imports it without the application.

The parent is ready to listen sooner, and has neither a runtime nor a web framework in its memory.
"""

import logging
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

from app.process.worker_options import START_FAILED, WorkerOptions
from app.telemetry.logs import configure_logging

if TYPE_CHECKING:
    from multiprocessing.connection import Connection as Pipe

log = logging.getLogger(__name__)


def run_worker(options: WorkerOptions, sock: socket.socket, others: socket.socket, pipe: "Pipe[Any, Any]") -> None:
    """Main function of a worker process.

    Args:
        options: Start options of the worker.
        sock: Socket to listen on.
        others: Connects it to the other workers, through the parent.
        pipe: Connects it to the parent, which requests its status.
    """
    ignore_stray_signals()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # the parent blocked it until a handler was installed
    configure_logging(options.settings.log_level, options.settings.log_format)
    try:
        from app.process.worker import serve_supervised
    except ImportError:
        log.exception("a package of the server cannot be imported")
        sys.exit(START_FAILED)
    sys.exit(0 if serve_supervised(options, sock, others, pipe) else START_FAILED)


def ignore_stray_signals() -> None:
    """Ignore signals without a meaning for the server; SIGHUP gets a handler once it serves."""
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.SIG_IGN)
