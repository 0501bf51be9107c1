"""The parent of several workers behind one port: starts them, replaces those that die or hang, and ends them.

See docs/decisions/0010-own-supervisor.md.
"""

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import time
from dataclasses import dataclass
from types import FrameType

from app.cluster.hub import Hub, Member
from app.config.settings import Settings
from app.process.sockets import Address
from app.process.worker_options import CUT_S, START_FAILED, WorkerOptions
from app.process.worker_process import run_worker
from app.telemetry.aggregate import merge

log = logging.getLogger(__name__)

HUNG_S = 30.0
"""A worker without a report for this time is replaced."""
START_S = 120.0
"""The same limit before the first report: imports are slow when many workers start at once."""
_LOOK_S = 0.05
_PING_S = 1.0
_SHORT_LIFE_S = 10.0
_LONGEST_PAUSE_S = 30.0


class Worker:
    """A worker process, as its parent sees it; the constructor starts it.

    Args:
        options: Start options of the worker.
        sock: Listening socket; closed in the parent, so it is closed when the worker ends.
        listens: Whether the socket already listens.

    Attributes:
        listens: Whether clients can connect to it.
        channel: The parent's end of the channel to the other workers.
        member: The worker in the hub, once it is registered.
    """

    def __init__(self, options: WorkerOptions, sock: socket.socket, *, listens: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.channel, far = socket.socketpair()
        # If the parent fails, a daemon process would be ended at once, and not by SIGTERM.
        self.process = context.Process(target=run_worker, args=(options, sock, far, theirs))
        # SIGHUP would end it until it has a handler, so it starts with the signal blocked.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        try:
            self.process.start()
        except (OSError, ValueError):
            self.channel.close()
            self._pipe.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
            for end in (sock, far, theirs):
                end.close()
        self.member: Member | None = None
        self.listens = listens
        self.began_at = self._asked_at = self._heard_at = time.monotonic()
        self._heard = False
        self._told_to_end = False

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid or 0

    @property
    def exitcode(self) -> int | None:
        """Exit status; None while it is running."""
        return self.process.exitcode

    def problem(self) -> str | None:
        """Reason to replace a live worker, from its latest report, or None; never blocks."""
        now = time.monotonic()
        found = None
        with contextlib.suppress(OSError, EOFError):
            while self._pipe.poll(0):
                started, found = self._pipe.recv()
                self.listens = self.listens or started
                self._heard, self._heard_at = True, now
            if now - self._asked_at >= _PING_S:
                self._asked_at = now
                self._pipe.send(b"how are you")
        if found is None and now - self._heard_at > (HUNG_S if self._heard else START_S):
            return f"it has not reported for {now - self._heard_at:.0f} s"
        return found

    def send_signal(self, number: int) -> None:
        """Forward a signal; SIGTERM only once."""
        if self.exitcode is None and not (self._told_to_end and number == signal.SIGTERM):
            self._told_to_end = self._told_to_end or number == signal.SIGTERM
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def close(self) -> None:
        """Release the resources of a worker that has ended."""
        self.process.join()
        self._pipe.close()
        self.process.close()


@dataclass(slots=True)
class Slot:
    """The place of one worker, taken by one after the other.

    Attributes:
        sock: Socket of the first worker; it listens from the start, so clients can wait.
        worker: The live worker, or None.
        succeeds: Whether the next worker replaces another.
        start_at: Time of the next start.
        pause_s: Last delay of a start.
    """

    number: int
    sock: socket.socket | None
    worker: Worker | None = None
    succeeds: bool = False
    start_at: float = 0.0
    pause_s: float = 0.0


class Supervisor:
    """Starts workers, replaces those that die or hang, and ends them all.

    The socket of a dead worker is closed, so its share of connections falls to the others; its successor
    listens once its models are loaded.

    Args:
        settings: Settings of the server.
        address: Shared address of the workers.
        grpc: Shared address for gRPC; None without it.
    """

    def __init__(self, settings: Settings, address: Address, grpc: Address | None = None) -> None:
        self._settings = settings
        self._address = address
        self._grpc = grpc
        self._hub = Hub(settings.workers, merge)
        self._slots = [Slot(number, address.open(listening=True)) for number in range(settings.workers)]
        self._signals: list[int] = []
        self._failed = False

    def run(self) -> int:
        """Serve until a signal ends the process; return the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_end)
        signal.signal(signal.SIGHUP, self._on_hangup)
        return asyncio.run(self._run())

    async def _run(self) -> int:
        while not self._signals and not self._failed:
            for slot in self._slots:
                if not self._signals:
                    await self._look_after(slot)
            await asyncio.sleep(_LOOK_S)
        return await self._end()

    def _workers(self) -> list[Worker]:
        return [slot.worker for slot in self._slots if slot.worker is not None]

    def _on_end(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - signal's signature
        self._signals.append(sig)
        for worker in self._workers():
            worker.send_signal(signal.SIGTERM if len(self._signals) == 1 else signal.SIGKILL)

    def _on_hangup(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - signal's signature
        for worker in self._workers():
            worker.send_signal(signal.SIGHUP)

    async def _look_after(self, slot: Slot) -> None:
        worker = slot.worker
        if worker is None:
            if time.monotonic() >= slot.start_at:
                await self._start(slot)
            return
        if worker.exitcode is None:
            problem = worker.problem()
            if problem is None:
                return
            log.error("killing and replacing worker %d: %s", worker.pid, problem)
            worker.process.kill()
            worker.process.join()
        exitcode, pid = worker.exitcode, worker.pid
        slot.worker = None
        if worker.member is not None:
            await self._hub.disconnect(worker.member)
        worker.close()
        if exitcode == START_FAILED:
            log.error("worker %d could not start", pid)
            self._failed = True
            return
        # A worker that keeps dying is started with growing delays.
        short = time.monotonic() - worker.began_at <= _SHORT_LIFE_S
        slot.pause_s = min(_LONGEST_PAUSE_S, max(0.5, 2 * slot.pause_s)) if short else 0.0
        slot.start_at = time.monotonic() + slot.pause_s
        log.error("worker %d died (%s); starting another", pid, _how(exitcode))

    async def _start(self, slot: Slot) -> None:
        try:
            # If no other worker listens, clients wait for this one instead of being refused.
            listens = slot.sock is not None or not any(worker.listens for worker in self._workers())
            sock, slot.sock = slot.sock or self._address.open(listening=listens), None
            grpc = None if self._grpc is None else str(self._grpc)
            options = WorkerOptions(self._settings, slot.number, slot.succeeds, grpc)
            worker = Worker(options, sock, listens=listens)
        except (OSError, ValueError) as error:
            log.error("cannot start a worker: %s", error)
            slot.start_at = time.monotonic() + 1
            return
        slot.worker, slot.succeeds = worker, True
        if self._signals:  # signals that arrived before the worker was registered
            worker.send_signal(signal.SIGTERM)
        worker.member = await self._hub.connect(worker.pid, worker.channel)

    async def _end(self) -> int:
        self._address.close()
        if self._grpc is not None:
            self._grpc.close()
        end = time.monotonic() + self._settings.shutdown_delay_s + self._settings.shutdown_timeout_s + 2 * CUT_S
        for worker in self._workers():
            worker.send_signal(signal.SIGTERM)
        for worker in self._workers():
            while worker.exitcode is None:
                await asyncio.sleep(_LOOK_S)
                if time.monotonic() > end and worker.exitcode is None:
                    log.error("worker %d did not end in time; killing it", worker.pid)
                    worker.process.kill()
            self._failed = self._failed or worker.exitcode not in (0, -signal.SIGTERM)  # SIGTERM before it served
        if len(self._signals) > 1:
            return 128 + self._signals[-1]
        return 1 if self._failed else 0


def _how(exitcode: int | None) -> str:
    with contextlib.suppress(ValueError):
        if exitcode is not None and exitcode < 0:
            return f"by signal {signal.Signals(-exitcode).name}"
    return f"with status {exitcode}"
