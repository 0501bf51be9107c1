"""Log formats: for a person at a console, or one JSON object per line."""

import contextlib
import json
import logging
import os
import select
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Any

from app.telemetry.log_writer import FLUSH_S, LogWriter

log = logging.getLogger(__name__)
requests = logging.getLogger("app.requests")
request_id_of_task: ContextVar[str | None] = ContextVar("request_id_of_task", default=None)
"""Id of the request that the running task serves; added to its log records."""


class WithRequestId(logging.Filter):
    """Adds the request id to log records of a request."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the id; accepts every record."""
        request_id = request_id_of_task.get()
        if request_id is not None and "request_id" not in (fields := getattr(record, "fields", {})):
            record.fields = {**fields, "request_id": request_id}
        return True


class ConsoleFormatter(logging.Formatter):
    """A line for a person, with the id of the request if there is one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        """The line for a record."""
        request_id = getattr(record, "fields", {}).get("request_id")
        return super().formatMessage(record) + (f" (request {request_id})" if request_id else "")


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (RFC 3339, UTC), level, logger, message, and the exception if there is one.

    The ``fields`` of a record (``extra={"fields": {…}}``) become part of the object.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line for a record."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def open_standard_streams() -> None:
    """Open missing standard streams on /dev/null.

    Otherwise the first sockets would get their numbers, and native code would write its error output to a client.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is assigned, which is this one; workers inherit it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # noqa: FBT003
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115


def configure_logging(level: str, form: str) -> None:
    """Send all logs of the process to standard error in one format, through a queue: writing never blocks.

    Args:
        level: debug, info, warning or error.
        form: ``console`` or ``json``.
    """
    handler = LogWriter(2)
    if form == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(ConsoleFormatter())
    handler.addFilter(WithRequestId())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    logging.getLogger("uvicorn.access").disabled = True
    # Python's default handlers write synchronously.
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    log.critical("the process ends with an error", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(problem: threading.ExceptHookArgs) -> None:
    if problem.exc_value is not None and not isinstance(problem.exc_value, SystemExit):
        log.error("a thread failed", exc_info=(problem.exc_type, problem.exc_value, problem.exc_traceback))


def dropped_log_lines() -> int:
    """Number of log lines of this process that were dropped."""
    return sum(handler.dropped for handler in logging.getLogger().handlers if isinstance(handler, LogWriter))


def say_and_end(text: str) -> None:
    """Write a last line to standard error after all log records, without waiting for a reader."""
    for handler in logging.getLogger().handlers:
        handler.flush()
    with contextlib.suppress(OSError):
        if select.select([], [2], [], FLUSH_S)[1]:
            os.write(2, text.encode("utf-8", "backslashreplace")[: select.PIPE_BUF])


def log_settings(settings: Mapping[str, tuple[Any, str | None]], warnings: Iterable[str] = ()) -> None:
    """Log the effective settings in one record.

    Args:
        settings: Value and origin (None for a default) of each, secrets masked; see ``app.config.settings.effective``.
        warnings: Suspicious environment variables.
    """
    said = [
        f"{name}={'(unset)' if value is None else value}" + (f" (from {origin})" if origin else "")
        for name, (value, origin) in settings.items()
    ]
    fields = {
        "settings": {name: value for name, (value, _) in settings.items()},
        "settings_from": {name: origin for name, (_, origin) in settings.items() if origin},
    }
    log.info("settings: %s", ", ".join(said), extra={"fields": fields})
    for line in warnings:
        log.warning("%s", line)


def about(request_id: bytes) -> dict[str, Any]:
    """``extra`` of a record about one request."""
    return {"fields": {"request_id": request_id.decode("ascii", "replace")}}


def log_request(
    method: str, path: bytes, status: int, seconds: float, request_id: bytes, client: str | None = None
) -> None:
    """Log a completed request; never its content, query or key.

    Args:
        method: Method as received.
        path: Path as received, still encoded.
        status: Status of the response.
        seconds: Time from the request's headers to the end of the response.
        request_id: Id of the request.
        client: Address of the peer.
    """
    shown = path.partition(b"?")[0][:500].decode("ascii", "backslashreplace")
    fields = {
        "method": method,
        "path": shown,
        "status": status,
        "duration_ms": round(1000 * seconds, 3),
        "request_id": request_id.decode("ascii", "replace"),
        "client": client,
    }
    requests.info("%s %s %d in %.1f ms", method, shown, status, 1000 * seconds, extra={"fields": fields})
