"""Replay: handle bytes again that were received into the buffer of a body, but belong to another request."""

import asyncio

from app.http.connection.long_bodies import LongBodies


def replay(
    connection: asyncio.BufferedProtocol, transport: asyncio.Transport, long: LongBodies, received: bytes
) -> None:
    """Pass bytes to a connection as if they arrived now, in pieces as large as its buffers.

    Args:
        connection: The connection; its reader must not offer a buffer.
        transport: Its transport. Bytes after the end of the connection are discarded.
        long: Its long bodies. No thread may start meanwhile, because it would receive later bytes first.
        received: The bytes.
    """
    view = memoryview(received)
    long.held = True
    while view and transport.get_protocol() is connection and not transport.is_closing():
        buffer = memoryview(connection.get_buffer(-1))
        count = min(len(view), len(buffer))
        buffer[:count] = view[:count]
        connection.buffer_updated(count)
        view = view[count:]
    long.held = False
