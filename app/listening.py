"""Where clients come in: those who wait are let in together, and none is reset when the sockets close."""

import asyncio
import contextlib
import ctypes
import socket
import struct
import sys
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

AT_ONCE = 128
"""Connections that are let in during one turn of the event loop, beside the loop's own."""
LOOK_S = 0.002
"""How long after a connection was made others are looked for; where turns are shorter the loop itself keeps up."""
HANDSHAKE_S = 0.01
"""How long a client that was on its way in has to arrive once nobody else is let in."""
_SO_ATTACH_FILTER = 26
# A program of the kernel's classic packet filter: operation, jump if true, jump if false, operand.
_NO_FIRST_PACKETS = (
    (0x30, 0, 0, 13),  # load the byte of the TCP header that holds its flags
    (0x54, 0, 0, 0x12),  # leave SYN and ACK of them
    (0x15, 0, 1, 0x02),  # only SYN?
    (0x06, 0, 0, 0),  # then it begins a connection: drop it
    (0x06, 0, 0, 0xFFFFFFFF),  # else let it through
)


class Listening:
    """The listening sockets of a process, beside the event loop that accepts from them.

    libuv accepts one connection in a turn of the loop. While the loop is busy a turn takes tens of milliseconds, and a
    probe would wait for seconds behind others who are new. So whoever was let in looks whether more wait.

    Args:
        serve: has the event loop serve a connection; returns once its protocol knows of it.
    """

    def __init__(self, serve: Callable[[socket.socket], Coroutine[Any, Any, None]]) -> None:
        self._serve = serve
        self._sockets: list[socket.socket] = []
        self._looking = False
        self._adopted: set[asyncio.Task[None]] = set()

    @property
    def pending(self) -> bool:
        """Whether a connection was accepted that is not yet among the server's."""
        return bool(self._adopted)

    def begin(self, sockets: Iterable[socket.socket]) -> None:
        """Let clients in."""
        self._sockets = list(sockets)

    def look(self) -> None:
        """A client was let in, and others may wait: look for them, at most once in a turn of the loop."""
        if self._sockets and not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def _look(self) -> None:
        self._looking = False
        for sock in self._sockets:
            for connection in accept_all(sock, AT_ONCE):
                self.adopt(connection)

    def adopt(self, connection: socket.socket) -> None:
        """Serve a connection that was accepted already."""
        task = asyncio.get_running_loop().create_task(self._serve(connection))
        self._adopted.add(task)
        task.add_done_callback(self._adopted.discard)

    async def end(self, servers: Iterable[asyncio.Server]) -> None:
        """Let nobody in any more; who was on the way in is served.

        Args:
            servers: of the event loop, on the same sockets.
        """
        for sock in self._sockets:
            keep_out(sock)
        await asyncio.sleep(HANDSHAKE_S)
        # The kernel resets connections that nobody has accepted when the socket goes: accept them first.
        sockets, self._sockets = self._sockets, []
        for sock in sockets:
            for connection in accept_all(sock):
                self.adopt(connection)
        for server in servers:
            server.close()
        for sock in sockets:
            sock.close()
        while self._adopted:
            await asyncio.wait(self._adopted)
        await asyncio.sleep(0)  # what the loop itself has accepted it makes known in the turn that follows


def accept_all(sock: socket.socket, most: int = sys.maxsize) -> list[socket.socket]:
    """The connections that wait at a listening socket."""
    accepted: list[socket.socket] = []
    sock.settimeout(0)
    with contextlib.suppress(OSError):
        while len(accepted) < most:
            accepted.append(sock.accept()[0])
    return accepted


def keep_out(sock: socket.socket) -> None:
    """Have the kernel pass over what would begin a connection at a listening socket; one that has begun goes on.

    A client that comes after the last ``accept`` and before ``close`` would be reset. Unheard, it asks again after a
    second, and is refused or let in by another socket on the port. Where the kernel can't do it, nothing changes.
    """
    if sys.platform == "linux":
        program = b"".join(struct.pack("HBBI", *step) for step in _NO_FIRST_PACKETS)
        memory = ctypes.create_string_buffer(program)
        with contextlib.suppress(OSError):
            sock.setsockopt(
                socket.SOL_SOCKET,
                _SO_ATTACH_FILTER,
                struct.pack("HP", len(_NO_FIRST_PACKETS), ctypes.addressof(memory)),
            )
