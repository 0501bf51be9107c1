"""Request parser: httptools' parser of one connection, with the headers that it has read of the current request."""

import logging
import re
from typing import Protocol

import httptools

from app.config.limits import Limits

log = logging.getLogger(__name__)

READ_BYTES = 32 * 1024
"""Most bytes that are read from a connection and parsed at once."""
_HOST = re.compile(rb"[\w.~!$&'()*+,;=%:\[\]-]*\Z")
_UPGRADE_TOKENS = {b"upgrade", b"http2-settings"}


class RefusedRequestError(Exception):
    """The request is refused, and nothing after it is read.

    Attributes:
        status: HTTP status code of the answer.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ParserEvents(Protocol):
    """Callbacks of the parser; each may raise ``RefusedRequestError``."""

    def message_began(self) -> None:
        """Called at the first byte of a request."""

    def headers_received(self) -> None:
        """The headers of a request are whole."""

    def body_received(self, piece: bytes) -> None:
        """Called for each piece of the body."""

    def message_received(self) -> None:
        """The request is whole."""


class RequestParser:
    """httptools' parser of one connection.

    An offer to go on by another protocol (``Upgrade: h2c``, as Java's client sends it) is ignored: the parser stops
    behind such headers and takes no body for them, so it is given them once more without the offer.

    Args:
        events: called while data is fed.
        limits: of the connection.

    Attributes:
        url: as it was sent.
        headers: of the current request, names in lower case.
        expects_continue: whether the client waits for ``100 Continue`` before it sends the body.
        in_message: whether a request has begun and is not whole.
    """

    def __init__(self, events: ParserEvents, limits: Limits) -> None:
        self._events = events
        self._limits = limits
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.expects_continue = False
        self.in_message = False
        self._in_headers = False
        self._header_bytes = 0  # of the current request, in all reads but the first
        self._hosts = 0
        self.reset()

    def reset(self) -> None:
        """Start again between two requests."""
        self._parser = httptools.HttpRequestParser(self)
        # A request behind one with "Connection: close" is no error.
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.in_message = False

    def close(self) -> None:
        """Cut the reference cycle between httptools' parser and this object."""
        del self._parser, self._events

    @property
    def method(self) -> bytes:
        """The method of the current request."""
        method: bytes = self._parser.get_method()
        return method

    @property
    def version(self) -> str:
        """The HTTP version of the current request."""
        version: str = self._parser.get_http_version()
        return version

    @property
    def keep_alive(self) -> bool:
        """Whether the client lets the connection stay open after the current request."""
        return self.version != "1.0" and bool(self._parser.should_keep_alive())

    @property
    def has_origin(self) -> bool:
        """Whether the request has an Origin, so that the response needs CORS headers."""
        return any(name == b"origin" for name, _ in self.headers)

    def feed(self, data: bytes | memoryview) -> None:
        """Parse received bytes.

        Raises:
            RefusedRequestError: it is not HTTP, has no valid Host, or its headers are too long.
        """
        if self._in_headers:
            self._header_bytes += len(data)
        while True:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                if self.method == b"CONNECT":
                    raise _not_http() from None
                data = self._headers_without_offer() + bytes(data[offer.args[0] :])
                self.reset()
                continue
            except httptools.HttpParserCallbackError as error:
                if isinstance(error.__context__, RefusedRequestError):
                    raise error.__context__ from None
                log.exception("reading a request failed")
                raise _not_http() from None
            except httptools.HttpParserError:
                raise _not_http() from None
            break
        if self._in_headers and self._header_bytes > self._limits.max_header_bytes:
            raise self._headers_too_long()

    def on_message_begin(self) -> None:
        """Called by httptools."""
        self.in_message = self._in_headers = True
        self._header_bytes = self._hosts = 0
        self.url = b""
        self.headers = []
        self.expects_continue = False
        self._events.message_began()

    def on_url(self, url: bytes) -> None:
        """Called by httptools."""
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by httptools."""
        name = name.lower()
        if name == b"host":
            self._hosts += 1
            if not _HOST.match(value):
                raise RefusedRequestError(400, "the Host header is not valid")
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expects_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Called by httptools."""
        self._in_headers = False
        if self._header_bytes or self._limits.max_header_bytes < READ_BYTES:
            size = len(self.url) + sum([len(name) + len(value) + 4 for name, value in self.headers])
            if size > self._limits.max_header_bytes:
                raise self._headers_too_long()
        if self._parser.should_upgrade():
            return  # see feed
        if self._hosts != 1 and (self._hosts or self.version != "1.0"):
            raise RefusedRequestError(400, f"the request has {self._hosts or 'no'} Host headers; it needs exactly one")
        if self.version == "1.0":
            self.expects_continue = False  # such a client does not know the answer
        self._events.headers_received()

    def on_body(self, body: bytes) -> None:
        """Called by httptools."""
        self._events.body_received(body)

    def on_message_complete(self) -> None:
        """Called by httptools."""
        if not self._parser.should_upgrade():
            self.in_message = False
            self._events.message_received()

    def _headers_without_offer(self) -> bytes:
        lines = [b"%s %s HTTP/%s" % (self.method, self.url, self.version.encode())]
        for name, value in self.headers:
            if name == b"connection":
                options = [option.strip() for option in value.split(b",")]
                kept = [option for option in options if option.lower() not in _UPGRADE_TOKENS]
                lines.append(name + b": " + b", ".join(kept))
            elif name not in _UPGRADE_TOKENS:
                lines.append(name + b": " + value)
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _headers_too_long(self) -> RefusedRequestError:
        return RefusedRequestError(431, self._limits.headers_too_long())


def _not_http() -> RefusedRequestError:
    return RefusedRequestError(400, "the request is not valid HTTP")
