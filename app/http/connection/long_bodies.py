"""Long bodies on threads: threads copy them from and to the socket, while the event loop serves other clients.

Copying a megabyte between the kernel and a buffer takes longer than all other work of the event loop for the request. A
thread copies without holding the GIL. It uses a duplicate of the socket's descriptor, and the event loop does not read
from the connection meanwhile. The thread returns the connection to the event loop once the body is complete or the
client pauses.

See docs/decisions/0093-long-bodies-beside-the-loop.md.
"""

import asyncio
import contextlib
import queue
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from uvicorn.protocols.http.flow_control import FlowControl

from app.http.connection.body_reader import BodyReader

LONG_BYTES = 256 * 1024
"""Minimum size: the event loop copies a shorter body in less time than a thread needs to start."""
_WAIT_MS = 2
_LONGEST_S = 0.05
"""Maximum time of a thread for one body: the event loop receives the rest, so slow clients cannot hold the threads."""

Buffers = Sequence[bytes | memoryview]


class BodyThreads:
    """Body threads of a process; they start with the first long body.

    Args:
        count: Number of threads; with 0 the event loop copies all bodies.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._started = False

    def submit(self, work: Callable[[], None]) -> None:
        """Hand work to a thread.

        Raises:
            RuntimeError: A thread cannot be started.
        """
        if not self._started:
            for number in range(self.count):
                threading.Thread(target=self._run, name=f"body-{number}", daemon=True).start()
                self._started = True
        self._work.put(work)

    def _run(self) -> None:
        while True:
            self._work.get()()


class LongBodies:
    """Receives and sends the long bodies of one connection in threads.

    Args:
        loop: Event loop of the connection; receives the outcomes.
        threads: Body threads of the process.

    Attributes:
        sending: Whether a thread is sending a response; nothing else may be written meanwhile.
        held: Whether no thread may start, because received bytes are not handled yet.
    """

    __slots__ = ("_busy", "_flow", "_loop", "_lost", "_socket", "_threads", "_transport", "held", "sending")

    def __init__(self, loop: asyncio.AbstractEventLoop, threads: BodyThreads) -> None:
        self.sending = self.held = False
        self._loop = loop
        self._threads = threads
        self._transport: asyncio.Transport
        self._flow: FlowControl
        self._socket: socket.socket | None = None
        self._busy = False
        self._lost = False

    def connect(self, transport: asyncio.Transport, flow: FlowControl) -> None:
        """Attach to a connection."""
        self._transport = transport
        self._flow = flow

    def receive(self, reader: BodyReader, received: Callable[[int], None]) -> None:
        """Receive the rest of a body on a thread, until the client pauses; the event loop receives a short rest.

        Args:
            reader: Reader of the body.
            received: Called with the number of received bytes, unless the body was dropped meanwhile.
        """
        rest = reader.rest
        sock = None if rest is None or self._flow.read_paused else self._take(len(rest))
        if rest is None or sock is None:
            return

        def ended(nbytes: int) -> None:
            if nbytes and reader.rest is rest:
                received(nbytes)

        self._begin(partial(_receive, sock, rest, partial(self._report, ended)))

    def send(self, buffers: Buffers, sent: Callable[[], None]) -> None:
        """Send a response from a thread or from the event loop.

        Args:
            buffers: Pieces of the response.
            sent: Called on the event loop once a thread has sent the response; ``sending`` is true until then.
        """

        def ended(left: Buffers) -> None:
            if left:
                self._transport.writelines(left)
            sent()

        sock = None if self._transport.get_write_buffer_size() else self._take(sum(map(len, buffers)))
        if sock is not None:
            self.sending = self._begin(partial(_send, sock, buffers, partial(self._report, ended)))
        if not self.sending:
            self._transport.writelines(buffers)

    def _take(self, nbytes: int) -> socket.socket | None:
        """Socket for a thread that copies ``nbytes``; None if the event loop copies them."""
        if nbytes < LONG_BYTES or not self._threads.count or self._busy or self._lost or self.held:
            return None
        if self._socket is None:
            found = self._transport.get_extra_info("socket")
            with contextlib.suppress(OSError):  # too many open files
                self._socket = None if found is None else found.dup()
        return self._socket

    def _begin(self, work: Callable[[], None]) -> bool:
        try:
            self._threads.submit(work)
        except RuntimeError:  # a thread cannot be started
            return False
        self._busy = True
        self._transport.pause_reading()
        return True

    def _report(self, ended: Callable[..., None], outcome: object) -> None:
        """Pass the outcome from the thread to the event loop."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._ended, ended, outcome)

    def _ended(self, ended: Callable[..., None], outcome: object) -> None:
        self._busy = self.sending = False
        if self._lost:
            self.close()
        elif not self._transport.is_closing():
            if not self._flow.read_paused:
                self._transport.resume_reading()
            ended(outcome)

    def close(self) -> None:
        """Close the duplicate of the socket once no thread uses it."""
        self._lost = True
        if not self._busy and self._socket is not None:
            self._socket.close()
            self._socket = None


def _receive(sock: socket.socket, rest: memoryview, report: Callable[[int], None]) -> None:
    at, ends_s = 0, time.monotonic() + _LONGEST_S
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    try:
        while at < len(rest) and time.monotonic() < ends_s:
            try:
                count = sock.recv_into(rest[at:])
            except BlockingIOError:
                if not poll.poll(_WAIT_MS):
                    break
                continue
            if not count:  # the event loop also reads the end of the stream
                break
            at += count
    except OSError:  # the event loop gets the same error
        pass
    report(at)


def _send(sock: socket.socket, buffers: Buffers, report: Callable[[Buffers], None]) -> None:
    left = list(buffers)
    try:
        count = sock.sendmsg(left)
        while left and count >= len(left[0]):
            count -= len(left.pop(0))
        if left and count:
            left[0] = memoryview(left[0])[count:]
    except OSError:  # the socket is full or broken: the event loop handles both
        pass
    report(left)
