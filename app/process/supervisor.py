"""The parent of several workers behind one port: it starts them, replaces those that die or hang, and ends them.

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
from app.process.shutdown import CUT_S
from app.process.sockets import Address
from app.process.worker import START_FAILED, WorkerOptions, run_worker
from app.telemetry.aggregate import merge

log = logging.getLogger(__name__)

HUNG_S = 30.0
"""A worker that says nothing for so long is replaced."""
START_S = 120.0
"""The same before its first word: importing takes long where many start at once."""
_LOOK_S = 0.05
_PING_S = 1.0
_SHORT_LIFE_S = 10.0
_LONGEST_PAUSE_S = 30.0


class Worker:
    """A worker process, as its parent sees it; started by its constructor.

    Args:
        options: it is started with.
        sock: to listen on; closed here, so that it goes with the worker.
        listens: whether the socket listens already.

    Attributes:
        listens: whether clients can connect to it.
        channel: this end of what connects it to the other workers.
        member: the worker in the hub, once it is counted in.
    """

    def __init__(self, options: WorkerOptions, sock: socket.socket, *, listens: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.channel, far = socket.socketpair()
        # As a daemon it would be ended at once, and not by SIGTERM, should the parent fail.
        self.process = context.Process(target=run_worker, args=(options, sock, far, theirs))
        # SIGHUP would end it until it has a handler, so it is born with the signal blocked.
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
        """Its number."""
        return self.process.pid or 0

    @property
    def exitcode(self) -> int | None:
        """How it ended; None while it lives."""
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
            return f"it has said nothing for {now - self._heard_at:.0f} s"
        return found

    def send_signal(self, number: int) -> None:
        """Pass a signal on; SIGTERM once."""
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
    """The place of one worker, for one after the other.

    Attributes:
        sock: for the first one; it listens from the start, so that clients can wait.
        worker: the one that lives, or None.
        succeeds: whether the next one replaces another.
        start_at: when it is started.
        pause_s: how long that was put off the last time.
    """

    number: int
    sock: socket.socket | None
    worker: Worker | None = None
    succeeds: bool = False
    start_at: float = 0.0
    pause_s: float = 0.0


class Supervisor:
    """Starts workers, replaces those that die or hang, and ends them all.

    The socket of a worker that died goes with it, so that its share of connections falls to the others; its successor
    listens once its models are loaded.

    Args:
        settings: of the server.
        address: that the workers share.
        grpc: the same for gRPC; None without it.
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
        """Serve until a signal ends it; the exit status."""
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
        # One that dies again and again is started less and less often.
        short = time.monotonic() - worker.began_at <= _SHORT_LIFE_S
        slot.pause_s = min(_LONGEST_PAUSE_S, max(0.5, 2 * slot.pause_s)) if short else 0.0
        slot.start_at = time.monotonic() + slot.pause_s
        log.error("worker %d died (%s); starting another", pid, _how(exitcode))

    async def _start(self, slot: Slot) -> None:
        try:
            # Where no other listens, clients wait for this one instead of being refused.
            listens = slot.sock is not None or not any(worker.listens for worker in self._workers())
            sock, slot.sock = slot.sock or self._address.open(listening=listens), None
            grpc = None if self._grpc is None else str(self._grpc)
            options = WorkerOptions(self._settings, slot.number, slot.succeeds, grpc)
            worker = Worker(options, sock, listens=listens)
        except (OSError, ValueError) as error:
            log.error("can't start a worker: %s", error)
            slot.start_at = time.monotonic() + 1
            return
        slot.worker, slot.succeeds = worker, True
        if self._signals:  # which came while it was not yet among those that they are passed on to
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
            self._failed = self._failed or worker.exitcode not in (0, -signal.SIGTERM)  # the latter before it served
        if len(self._signals) > 1:
            return 128 + self._signals[-1]
        return 1 if self._failed else 0


def _how(exitcode: int | None) -> str:
    with contextlib.suppress(ValueError):
        if exitcode is not None and exitcode < 0:
            return f"by signal {signal.Signals(-exitcode).name}"
    return f"with status {exitcode}"
