"""Messages between the parent and one worker, over a socket pair, which needs no file that could be deleted."""

import asyncio
import socket
from typing import Any

import orjson

Message = dict[str, Any]
_LENGTH_BYTES = 4


class Channel:
    """One end of a connection that carries JSON objects in order.

    Args:
        reader, writer: Streams of the connected socket.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, sock: socket.socket) -> "Channel":
        """The channel over a connected socket; closes the socket with the channel."""
        return cls(*await asyncio.open_connection(sock=sock))

    def send(self, message: Message) -> None:
        """Queue a message; never blocks, and does nothing once the other end is closed."""
        if not self._writer.is_closing():
            data = orjson.dumps(message)
            self._writer.write(len(data).to_bytes(_LENGTH_BYTES, "big") + data)

    async def receive(self) -> Message | None:
        """The next message, or None once the other end is closed."""
        try:
            length = int.from_bytes(await self._reader.readexactly(_LENGTH_BYTES), "big")
            message: Message = orjson.loads(await self._reader.readexactly(length))
        except (OSError, EOFError):
            return None
        return message

    def close(self) -> None:
        """Close this end."""
        self._writer.close()
