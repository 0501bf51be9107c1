"""Request parser: httptools' parser for one connection, with the headers of the current request."""

import logging
import re
from typing import Protocol

import httptools

from app.config.limits import Limits

log = logging.getLogger(__name__)

READ_BYTES = 32 * 1024
"""Maximum number of bytes that are read from a connection and parsed at once."""
_HOST = re.compile(rb"[\w.~!$&'()*+,;=%:\[\]-]*\Z")
_UPGRADE_TOKENS = {b"upgrade", b"http2-settings"}


class RefusedRequestError(Exception):
    """The request is refused, and nothing after it is read.

    Attributes:
        status: HTTP status code of the response.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ParserEvents(Protocol):
    """Callbacks of the parser; each may raise ``RefusedRequestError``."""

    def message_began(self) -> None:
        """Called at the first byte of a request."""

    def headers_received(self) -> None:
        """Called when the headers of a request are complete."""

    def body_received(self, piece: bytes) -> None:
        """Called for each piece of the body."""

    def message_received(self) -> None:
        """Called when a request is complete."""


class RequestParser:
    """httptools' parser of one connection.

    An ``Upgrade`` header (``h2c`` from Java's client) is ignored: the parser stops after such
    headers without reading a body, so it parses them again without the upgrade.

    Args:
        events: Callbacks for parsed input.
        limits: Limits of the connection.

    Attributes:
        url: The URL as received.
        headers: Headers of the current request, with lowercase names.
        expects_continue: Whether the client waits for ``100 Continue`` before it sends the body.
        in_message: Whether a request has started and is not complete.
    """

    def __init__(self, events: ParserEvents, limits: Limits) -> None:
        self._events = events
        self._limits = limits
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.expects_continue = False
        self.in_message = False
        self._in_headers = False
        self._header_bytes = 0  # header bytes of the current request, without the first read
        self._hosts = 0
        self.reset()

    def reset(self) -> None:
        """Start again between two requests."""
        self._parser = httptools.HttpRequestParser(self)
        # A request after one with "Connection: close" is not an error.
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.in_message = False

    def close(self) -> None:
        """Break the reference cycle between httptools' parser and this object."""
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
        """Whether the client allows the connection to stay open after the current request."""
        return self.version != "1.0" and bool(self._parser.should_keep_alive())

    @property
    def has_origin(self) -> bool:
        """Whether the request has an Origin, so that the response needs CORS headers."""
        return any(name == b"origin" for name, _ in self.headers)

    def feed(self, data: bytes | memoryview) -> None:
        """Parse received bytes.

        Raises:
            RefusedRequestError: The input is not HTTP, has no valid Host, or its headers are too long.
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
                log.exception("parsing a request failed")
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
            raise RefusedRequestError(400, f"the request has {self._hosts or 'no'} Host headers; exactly 1 is required")
        if self.version == "1.0":
            self.expects_continue = False  # clients of older HTTP versions do not understand 100 Continue
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
