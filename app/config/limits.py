"""Per-connection limits: header size, header, body and write timeouts, connection count, body sizes."""

from dataclasses import dataclass
from typing import Any, Literal

from app.config.settings import Settings
from app.errors import BodyTooLargeError, RequestTimeoutError

PROGRESS_BYTES = 1024
"""Minimum number of bytes that a body or response must move within its timeout to count as progress."""
OTHER_BODY_BYTES = 1024 * 1024
"""Maximum body size of requests other than inference, which are all small."""

Waiting = Literal["headers", "body", "write"]
"""The client action that a connection waits for: sending headers, sending a body, or reading the response."""


def _default(name: str) -> Any:
    """The default of a setting, which is defined once, in ``Settings``."""
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
        """Maximum time that a connection may wait without progress."""
        return {"headers": self.header_timeout_s, "body": self.body_timeout_s, "write": self.write_timeout_s}[waiting]

    def timed_out(self, waiting: Waiting) -> RequestTimeoutError:
        """The error for a request that made no progress within its timeout."""
        what = "the complete header" if waiting == "headers" else f"more than {PROGRESS_BYTES} bytes of the body"
        name = f"{waiting if waiting == 'body' else 'header'}_timeout_s"
        return RequestTimeoutError(f"{what} did not arrive within {name} ({self.timeout_s(waiting):g})")

    def too_many_rows(self, rows: int) -> BodyTooLargeError:
        """The error for a request with too many rows."""
        return BodyTooLargeError(
            f"the request has {rows} rows, above max_request_rows ({self.max_request_rows}); send several requests"
        )

    def too_many_connections(self) -> str:
        """The message for a connection over the limit."""
        return f"this worker has max_connections ({self.max_connections}) open connections; try again later"

    def headers_too_long(self) -> str:
        """The message for a request line and headers over the limit."""
        return f"the request line and headers are longer than max_header_bytes ({self.max_header_bytes})"
