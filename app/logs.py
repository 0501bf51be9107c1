"""Log lines: for a person at a console, or one JSON object each."""

import json
import logging
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

log = logging.getLogger(__name__)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, and the exception where there is one.

    What a record carries as ``fields`` (``extra={"fields": {…}}``) is part of the object.
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


def configure_logging(level: str, form: str) -> None:
    """Send all logs of the process to standard error in one form.

    Args:
        level: debug, info, warning or error.
        form: ``console`` or ``json``.
    """
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("uvicorn.access").disabled = True


def log_settings(settings: Mapping[str, tuple[Any, str | None]], warnings: Iterable[str] = ()) -> None:
    """Tell in one record what the server runs with.

    Args:
        settings: value and origin (None for a default) of each, secrets masked; see ``app.settings.effective``.
        warnings: what looks wrong about them.
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
