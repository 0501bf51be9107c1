"""Per-connection limits: header size, header, body and write timeouts, connection count, body sizes."""

from dataclasses import dataclass
from typing import Any, Literal

from app.config.settings import Settings
from app.errors import BodyTooLargeError, RequestTimeoutError

PROGRESS_BYTES = 1024
"""Bytes that a body, or a client that reads an answer, must move within its timeout to count as progress."""
OTHER_BODY_BYTES = 1024 * 1024
"""Maximum body size of requests that are not inference; all of these are small."""

Waiting = Literal["headers", "body", "write"]
"""What a connection waits for its client to do: send headers, send a body, or read what was written."""


def _default(name: str) -> Any:
    """The default of a setting, which is written down once: in ``Settings``."""
    return Settings.model_fields[name].default


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of each connection; see the settings of the same names."""

    max_header_bytes: int = _default("max_header_bytes")
    header_timeout_s: float = _default("header_timeout_s")
    body_timeout_s: float = _default("body_timeout_s")
    write_timeout_s: float = _default("write_timeout_s")
    max_connections: int = _default("max_connections")
    max_request_rows: int = _default("max_request_rows")

    @classmethod
    def of(cls, settings: Settings) -> "Limits":
        """Limits from the settings."""
        return cls(**{name: getattr(settings, name) for name in cls.__slots__})

    def timeout_s(self, waiting: Waiting) -> float:
        """How long a connection may wait without progress."""
        return {"headers": self.header_timeout_s, "body": self.body_timeout_s, "write": self.write_timeout_s}[waiting]

    def timed_out(self, waiting: Waiting) -> RequestTimeoutError:
        """The error for a request that made no progress within its timeout."""
        what = "the whole head" if waiting == "headers" else f"more than {PROGRESS_BYTES} bytes of the body"
        name = f"{waiting if waiting == 'body' else 'header'}_timeout_s"
        return RequestTimeoutError(f"{what} did not arrive within {name} ({self.timeout_s(waiting):g})")

    def too_many_rows(self, rows: int) -> BodyTooLargeError:
        """The error for a request of too many rows."""
        return BodyTooLargeError(
            f"the request has {rows} rows; max_request_rows is {self.max_request_rows}. Send them in several requests"
        )

    def too_many_connections(self) -> str:
        """The message for a connection over the limit."""
        return f"this worker has as many connections as max_connections ({self.max_connections}) allows; try again"

    def headers_too_long(self) -> str:
        """The message for a request line and headers over the limit."""
        return f"the request's head is longer than max_header_bytes ({self.max_header_bytes})"
