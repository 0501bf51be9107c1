"""Header cache: skips parsing for headers that are byte for byte equal to earlier ones.

Measured by ``benchmarks/bench_ablation.py``; the figures are in ``benchmarks/results/ablation.json``.
"""

from dataclasses import dataclass

from app.engine.codec import Headers
from app.service.inference import Target

MAX_TEXT_BYTES = 2048
"""Longer headers are not cached."""
MAX_ENTRIES = 1024


@dataclass(frozen=True, slots=True)
class KnownHeaders:
    """Parsed request line and headers of an inference request.

    Attributes:
        target: The requested model.
        headers: Headers by lowercase name.
        query: Query of the URL.
        content_length: Length of the body in bytes.
    """

    target: Target
    headers: Headers
    query: bytes
    content_length: int


def header_text(received: bytearray, nbytes: int) -> bytes:
    """Request line and headers at the start of the received bytes; empty if incomplete or too long."""
    end = received.find(b"\r\n\r\n", 0, nbytes) + 4
    return bytes(received[:end]) if 4 <= end <= MAX_TEXT_BYTES else b""


class HeaderCache:
    """Headers of admitted inference requests, by their text.

    Requests with cached headers skip the checks of the headers, so the cache is cleared when the API keys change.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, KnownHeaders] = {}
        self.get = self._known.get
        """The cached headers for a text, or None."""
        self.clear = self._known.clear
        """Forget all headers."""

    def __len__(self) -> int:
        return len(self._known)

    def remember(self, text: bytes, target: Target, headers: Headers, query: bytes) -> None:
        """Cache the parsed headers of a text; only for bodies of known length."""
        length = headers.get(b"content-length")
        if length is None or b"transfer-encoding" in headers:
            return
        if len(self._known) >= MAX_ENTRIES:
            self._known.clear()
        self._known[text] = KnownHeaders(target, headers, query, int(length))
