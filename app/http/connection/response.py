"""HTTP/1.1 responses as bytes: status line, default headers, headers, body."""

from http import HTTPStatus

from app.engine.codec import HeaderList

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


class DefaultHeaders:
    """uvicorn's default headers (the date) as they are sent; it makes a new list of them every second."""

    def __init__(self) -> None:
        self._list: HeaderList | None = None
        self._lines = b""

    def lines(self, headers: HeaderList) -> bytes:
        """The header lines of a list, encoded once for as long as the list is the same object."""
        if headers is not self._list:
            self._lines = b"".join([name + b": " + value + b"\r\n" for name, value in headers])
            self._list = headers
        return self._lines


def render(
    status: int, default_lines: bytes, headers: HeaderList, content: bytes, *, keep_alive: bool, more: int = 0
) -> bytes:
    """A response as bytes.

    Args:
        status: HTTP status code.
        default_lines: header lines that every response has.
        headers: those of this response, without its length.
        content: the body.
        keep_alive: whether the connection stays open after it.
        more: bytes of the body that follow.
    """
    parts = [_STATUS_LINES[status], default_lines]
    for name, value in headers:
        parts += (name, b": ", value, b"\r\n")
    end = b"\r\n\r\n" if keep_alive else b"\r\nconnection: close\r\n\r\n"
    parts += (b"content-length: %d" % (len(content) + more), end, content)
    return b"".join(parts)
