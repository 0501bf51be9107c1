"""Several worker processes behind one port, and the parent that watches over them."""

import contextlib
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection
from functools import partial
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from app.errors import AppError
from app.lifecycle import CUT_S, GracefulServer
from app.listening import accept_all, keep_out
from app.logs import configure_logging
from app.main import Application, create_app
from app.settings import Settings
from app.trial import trials
from app.tuning import end_with_parent, freeze_collector, tune_allocator

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

log = logging.getLogger(__name__)

HUNG_S = 30.0
"""A worker that says nothing for so long is replaced."""
START_S = 120.0
"""The same before its first word: importing takes long where many start at once."""
_LOOK_S = 0.05
_IS_FIRST = os.getpid() == 1  # of a container: whoever has no parent any more is its child
_HOW_ARE_YOU, _ADOPT = b"how are you", b"adopt"
_PING_S = 1.0
_LONGEST_PAUSE_S = 30.0
_START_FAILED = 3


class StartError(AppError):
    """The workers can't be started."""


class Worker:
    """A worker process, as its parent sees it.

    Args:
        make: makes uvicorn's configuration, in the process.
        settings: of the server.
        sock: to listen on.
    """

    def __init__(self, make: Callable[[], uvicorn.Config], settings: Settings, sock: socket.socket) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, self._theirs = context.Pipe()
        # As a daemon it would be ended at once, and not by SIGTERM, should the parent fail.
        self.process = context.Process(target=run_worker, args=(make, settings, sock, self._theirs))
        self._asked_at = self._heard_at = self.began_at = time.monotonic()
        self._heard = False
        self.serves = False
        self._told = False

    @property
    def exitcode(self) -> int | None:
        """How it ended; None while it lives."""
        return self.process.exitcode

    @property
    def pid(self) -> int | None:
        """Its number, once it was started."""
        return self.process.pid

    def start(self) -> None:
        """Start it."""
        self.process.start()
        self._theirs.close()

    def problem(self) -> str | None:
        """Why it must be replaced although it lives, as far as it has told by now, or None; never waits."""
        now = time.monotonic()
        found = None
        with contextlib.suppress(OSError, EOFError):
            while self._pipe.poll(0):
                self.serves, found = self._pipe.recv()
                self._heard, self._heard_at = True, now
            if now - self._asked_at >= _PING_S:
                self._asked_at = now
                self._pipe.send(_HOW_ARE_YOU)
        if found is None and now - self._heard_at > (HUNG_S if self._heard else START_S):
            return f"it has said nothing for {now - self._heard_at:.0f} s"
        return found

    def give(self, connection: socket.socket) -> None:
        """Have it serve a connection that was another worker's to accept."""
        with contextlib.suppress(OSError), connection:
            self._pipe.send(_ADOPT)
            send_handle(self._pipe, connection.fileno(), self.pid)

    def tell_to_end(self) -> None:
        """Pass the signal on, once."""
        if not self._told and self.pid is not None and self.exitcode is None:
            self._told = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)


def reap_orphans(mine: Collection[int | None]) -> None:
    """See to the end of processes that others left behind, such as the helper of a worker that was killed.

    Args:
        mine: numbers of children that somebody else waits for.
    """
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if found.si_pid in mine:
                return  # it is in front of the others, until it was looked after
            os.waitpid(found.si_pid, 0)


def run_worker(
    make: Callable[[], uvicorn.Config], settings: Settings, sock: socket.socket, pipe: "Connection[Any, Any]"
) -> None:
    """Serve; what runs in a worker's process."""
    server = GracefulServer(make(), settings, supervised=True)
    threading.Thread(target=_answer_parent, args=(server, pipe), daemon=True).start()
    server.run([sock])
    sys.exit(0 if server.started else _START_FAILED)


def _answer_parent(server: GracefulServer, pipe: "Connection[Any, Any]") -> None:
    # In a thread of its own: it works where the event loop does not.
    with contextlib.suppress(OSError, EOFError):
        while True:
            if pipe.recv() == _ADOPT:
                server.adopt(socket.socket(fileno=recv_handle(pipe)))
            else:
                pipe.send((server.started, server.problem()))


class Supervisor:
    """Starts workers, replaces those that die or hang, and ends them all.

    Workers that share one socket race for its connections, and the quickest takes most of them. With a socket each
    (``SO_REUSEPORT``) the kernel spreads them. That of a worker that died goes with it, so that its share falls to the
    others, who get what waited there too; its successor listens once its models are loaded.

    Args:
        make_config: gives what makes a worker's configuration of uvicorn, told whether it succeeds another.
        settings: of the server.
        sockets: one for each worker.
    """

    def __init__(
        self,
        make_config: Callable[[bool], Callable[[], uvicorn.Config]],
        settings: Settings,
        sockets: list[socket.socket],
    ) -> None:
        self._make_config = make_config
        self._settings = settings
        self._address = sockets[0].getsockname()
        self._sockets = sockets
        self._workers: list[Worker | None] = [None] * len(sockets)
        self._had = [False] * len(sockets)
        self._start_at = [0.0] * len(sockets)
        self._pause_s = [0.0] * len(sockets)
        self._signals: list[int] = []
        self._failed = False

    def run(self) -> int:
        """Serve until a signal ends it; the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        while not self._signals and not self._failed:
            for slot in range(len(self._workers)):
                if not self._signals:
                    self._look_after(slot)
            if _IS_FIRST:
                reap_orphans({child.pid for child in multiprocessing.active_children()})
            time.sleep(_LOOK_S)
        return self._end()

    def _on_signal(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - signal's signature
        self._signals.append(sig)
        # The workers' own sockets are then the last: when they close them nobody is left waiting in a queue.
        for sock in self._sockets:
            sock.close()
        for worker in self._workers:
            if worker is None:
                continue
            if len(self._signals) == 1:
                worker.tell_to_end()
            elif worker.exitcode is None:
                worker.process.kill()

    def _look_after(self, slot: int) -> None:
        worker = self._workers[slot]
        if worker is None:
            if time.monotonic() >= self._start_at[slot]:
                self._start(slot)
            return
        if worker.exitcode is None:
            problem = worker.problem()
            if problem is None:
                return
            log.error("worker %d is killed and replaced: %s", worker.pid, problem)
            worker.process.kill()
        worker.process.join()
        if worker.exitcode == _START_FAILED:
            # It would fail in the same way each time.
            log.error("worker %d could not start", worker.pid)
            self._failed = True
            return
        self._workers[slot] = None
        self._hand_over(slot)
        # One that dies again and again is started less and less often.
        lived_s = time.monotonic() - worker.began_at
        self._pause_s[slot] = 0.0 if lived_s > 10 else min(_LONGEST_PAUSE_S, max(0.5, 2 * self._pause_s[slot]))
        self._start_at[slot] = time.monotonic() + self._pause_s[slot]
        log.error("worker %d died (%s); another is started", worker.pid, _how(worker.exitcode))

    def _hand_over(self, slot: int) -> None:
        others = [other for other in self._workers if other is not None and other.serves and other.exitcode is None]
        if others:  # else what waits there waits for the successor
            keep_out(self._sockets[slot])
            for number, connection in enumerate(accept_all(self._sockets[slot])):
                others[number % len(others)].give(connection)
            self._sockets[slot].close()

    def _start(self, slot: int) -> None:
        succeeds = self._had[slot]
        self._had[slot] = True
        if self._sockets[slot].fileno() < 0:
            self._sockets[slot] = bind_later(self._sockets[slot].family, self._address)
        try:
            worker = Worker(self._make_config(succeeds), self._settings, self._sockets[slot])
            self._workers[slot] = worker
            worker.start()
        except (OSError, ValueError) as error:
            if not self._signals:  # else its socket was closed meanwhile
                log.error("a worker can't be started: %s", error)
                self._workers[slot] = None
                self._start_at[slot] = time.monotonic() + 1

    def _end(self) -> int:
        for sock in self._sockets:
            sock.close()
        workers = [worker for worker in self._workers if worker is not None and worker.pid is not None]
        end = time.monotonic() + self._settings.shutdown_delay_s + self._settings.shutdown_timeout_s + 2 * CUT_S
        for worker in workers:
            worker.tell_to_end()
        for worker in workers:
            while worker.exitcode is None:
                worker.process.join(_LOOK_S)
                if time.monotonic() > end and worker.exitcode is None:
                    log.error("worker %d did not end in time and is killed", worker.pid)
                    worker.process.kill()
            self._failed = self._failed or worker.exitcode not in (0, -signal.SIGTERM)  # the latter before it served
        if len(self._signals) > 1:
            return 128 + self._signals[-1]
        return 1 if self._failed else 0


def _how(exitcode: int | None) -> str:
    with contextlib.suppress(ValueError):
        if exitcode is not None and exitcode < 0:
            return f"by signal {signal.Signals(-exitcode).name}"
    return f"with status {exitcode}"


def bind_later(family: int, address: tuple[Any, ...]) -> socket.socket:
    """A socket on an address that others of this server listen on; it gets no connections until it listens too."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(address)
    sock.set_inheritable(True)
    return sock


def make_worker(settings: Settings, folder: Path, succeeds: bool) -> Application:
    """The application of one worker; called in its process.

    Args:
        settings: of the server.
        folder: where the workers meet.
        succeeds: whether the worker replaces another; it then loads its models before it listens.
    """
    configure_logging(settings.log_level, settings.log_format)
    end_with_parent()
    if settings.trial_load_s:
        trials.prepare()
    tune_allocator()
    application = create_app(settings, peers_folder=folder)
    application.state.panther.on_loaded = freeze_collector
    application.state.panther.load_first = succeeds
    return application


def serve_workers(settings: Settings, sockets: list[socket.socket], config: "partial[uvicorn.Config]") -> int:
    """Run the workers until a signal ends them.

    Args:
        settings: of every worker.
        sockets: one for each.
        config: makes uvicorn's configuration of an application.

    Returns:
        The exit status.

    Raises:
        StartError: there is nowhere for them to meet.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="panther-"))
    except OSError as error:
        raise StartError(f"the workers need a folder for temporary files: {error.strerror}; TMPDIR names one") from None
    try:

        def make_config(succeeds: bool) -> Callable[[], uvicorn.Config]:
            return partial(config, partial(make_worker, settings, folder, succeeds), factory=True)

        return Supervisor(make_config, settings, sockets).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
