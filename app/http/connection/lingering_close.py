"""Lingering close: send FIN and discard further input, so the client reads the response before a reset."""

import asyncio

# The values of nginx: long enough for a slow client that sends its whole body before it reads.
LINGER_S = 30.0
IDLE_S = 5.0
"""Maximum time without input."""
_DISCARDED = memoryview(bytearray(64 * 1024))


class LingeringClose(asyncio.BufferedProtocol):
    """The protocol of a connection after its last response, for a client that is still sending.

    If the connection were closed at once, the kernel would send a reset, which can overtake the response.

    Args:
        protocol: Notified when the connection is lost.
        transport: Transport of the connection.
        loop: Event loop for the time limits.
    """

    def __init__(
        self, protocol: asyncio.BaseProtocol, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._protocol = protocol
        self._transport = transport
        self._loop = loop
        self._end = loop.time() + LINGER_S
        self._received = False
        transport.set_protocol(self)
        transport.write_eof()
        self._timer = loop.call_later(IDLE_S, self._look)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Buffer of the event loop for discarded input."""
        return _DISCARDED

    def buffer_updated(self, nbytes: int) -> None:  # noqa: ARG002 - asyncio's signature
        """Discard received bytes."""
        self._received = True

    def _look(self) -> None:
        """Close the connection of a client that stopped sending, or sends for too long."""
        wait_s = min(IDLE_S, self._end - self._loop.time())
        if not self._received or wait_s <= 0:
            self._transport.abort()
            return
        self._received = False
        self._timer = self._loop.call_later(wait_s, self._look)

    def eof_received(self) -> None:
        """Close the connection: the client has sent everything."""
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forward the end of the connection."""
        self._timer.cancel()
        self._protocol.connection_lost(exc)
