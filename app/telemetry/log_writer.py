"""A bounded queue between the log and its reader: an unread pipe, or a full disk, does not block requests."""

import logging
import os
import select
import threading
import time
from collections import deque

MAX_QUEUED_BYTES = 4 * 1024 * 1024
FLUSH_S = 1.0
"""Maximum time that the end of the process waits for the reader."""
_MAX_WRITE_BYTES = 64 * 1024
_PAUSE_S = 0.5


class LogWriter(logging.Handler):
    """Writes lines to a descriptor in a thread; lines beyond the queue's capacity are dropped and counted.

    Args:
        descriptor: Descriptor of the open file, such as 2 for standard error.
        max_bytes: Maximum size of the queued lines.

    Attributes:
        dropped: Number of lines that were dropped so far.
    """

    def __init__(self, descriptor: int, max_bytes: int = MAX_QUEUED_BYTES) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._max_bytes = max_bytes
        self.dropped = 0
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        # Reentrant, because a signal handler may log while its thread is in here. A forked process has no thread yet.
        self._changed = threading.Condition(threading.RLock())
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._reported = self.dropped
        self._writing = False
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the line of a record; never waits for the reader."""
        try:
            line = self.format(record).encode("utf-8", "backslashreplace") + b"\n"
        except Exception as error:  # noqa: BLE001 - an unformattable record must not fail a request
            line = f"a log record of {record.pathname}:{record.lineno} can't be formatted: {error!r}\n".encode()
        with self._changed:
            if self._bytes + len(line) > self._max_bytes:
                self.dropped += 1
                return
            self._lines.append(line)
            self._bytes += len(line)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    @property
    def idle(self) -> bool:
        """Whether the queue is empty."""
        with self._changed:
            return not (self._lines or self._writing)

    def flush(self) -> None:
        """Wait until queued lines are written, at most one second."""
        end = time.monotonic() + FLUSH_S
        with self._changed:
            while not self.idle and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._lines:
                    self._changed.wait()
                lines = self._take()
                self._writing = True
            written = self._write(b"".join(lines))
            with self._changed:
                self._writing = False
                if not written:
                    self.dropped += len(lines)
                elif self.dropped > self._reported:
                    self._report()
                self._changed.notify_all()
            if not written:
                time.sleep(_PAUSE_S)  # wait for space on a full disk, or for a new reader

    def _take(self) -> list[bytes]:
        lines = [self._lines.popleft()]
        size = len(lines[0])
        while self._lines and size + len(self._lines[0]) <= _MAX_WRITE_BYTES:
            lines.append(self._lines.popleft())
            size += len(lines[-1])
        self._bytes -= size
        return lines

    def _report(self) -> None:
        """Insert the number of dropped lines at the front of the queue."""
        count, self._reported = self.dropped - self._reported, self.dropped
        text = f"{count} lines of the log were dropped, because it was not read or could not be written"
        record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, None, None)
        line = self.format(record).encode() + b"\n"
        self._lines.appendleft(line)
        self._bytes += len(line)

    def _write(self, data: bytes) -> bool:
        """Write all data, however long it takes. Return whether it was written."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:  # another process that shares the pipe made it non-blocking
                select.select([], [self._descriptor], [])
            except (OSError, ValueError):
                return False
        return True
