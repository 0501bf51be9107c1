"""HTTP/1.1 responses as bytes: status line, default headers, headers, body."""

from http import HTTPStatus

from app.engine.codec import HeaderList

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


class DefaultHeaders:
    """uvicorn's default headers (the date) as bytes; uvicorn makes a new list every second."""

    def __init__(self) -> None:
        self._list: HeaderList | None = None
        self._lines = b""

    def lines(self, headers: HeaderList) -> bytes:
        """The header lines of a list, encoded once per list object."""
        if headers is not self._list:
            self._lines = b"".join([name + b": " + value + b"\r\n" for name, value in headers])
            self._list = headers
        return self._lines


def render(
    status: int, default_lines: bytes, headers: HeaderList, content: bytes, *, keep_alive: bool, more: int = 0
) -> bytes:
    """Encode a complete response, or its beginning.

    Args:
        status: HTTP status code.
        default_lines: Header lines of every response.
        headers: Headers of this response, without its length.
        content: The body.
        keep_alive: Whether the connection stays open after it.
        more: Bytes of the body that are sent separately.
    """
    lines = _STATUS_LINES[status] + default_lines
    for header in headers:
        lines += b"%b: %b\r\n" % header
    end = b"\r\n" if keep_alive else b"connection: close\r\n\r\n"
    return b"%bcontent-length: %d\r\n%b%b" % (lines, len(content) + more, end, content)
