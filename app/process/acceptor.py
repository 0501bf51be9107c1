"""Accepting connections: all that wait together, and none is reset when the sockets close.

See docs/decisions/0011-accept-connections-in-batches.md.
See docs/decisions/0012-drain-the-backlog-on-shutdown.md.
"""

import asyncio
import contextlib
import ctypes
import socket
import struct
import sys
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

AT_ONCE = 128
"""Connections that are accepted during one turn of the event loop, beside the loop's own."""
HANDSHAKE_S = 0.01
"""How long a handshake that has begun may take once no other begins."""
_SO_ATTACH_FILTER = 26
# A program of the kernel's classic packet filter (struct sock_filter): operation, jumps if true and if false, operand.
_DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte of the TCP header that holds the flags
    (0x54, 0, 0, 0x12),  # keep SYN and ACK of them
    (0x15, 0, 1, 0x02),  # SYN alone?
    (0x06, 0, 0, 0),  # drop the packet: it begins a connection
    (0x06, 0, 0, 0xFFFFFFFF),  # pass any other
)
LOOK_S = 0.002
"""How long after a connection was made others are accepted; where turns are shorter the loop itself keeps up."""


class Acceptor:
    """Accepts from the listening sockets of a process, beside the event loop.

    libuv accepts one connection in a turn of the loop. While the loop is busy a turn takes tens of milliseconds, and a
    health check would wait for seconds behind other new connections. So each new connection has all others accepted
    that wait.

    Args:
        serve: has the event loop serve a connection; returns once its protocol knows of it.
    """

    def __init__(self, serve: Callable[[socket.socket], Coroutine[Any, Any, None]]) -> None:
        self._serve = serve
        self._sockets: list[socket.socket] = []
        self._scheduled = False
        self._accepted: set[asyncio.Task[None]] = set()

    @property
    def pending(self) -> bool:
        """Whether a connection was accepted that is not yet among the server's."""
        return bool(self._accepted)

    def start(self, sockets: Iterable[socket.socket]) -> None:
        """Accept from these sockets from now on."""
        self._sockets = list(sockets)

    def connection_made(self) -> None:
        """A connection was opened, and others may wait: accept them, at most once in a turn of the loop."""
        if self._sockets and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_later(LOOK_S, self._accept)

    def _accept(self) -> None:
        self._scheduled = False
        for sock in self._sockets:
            self._take(accept_all(sock, AT_ONCE))

    def _take(self, connections: Iterable[socket.socket]) -> None:
        for connection in connections:
            task = asyncio.get_running_loop().create_task(self._serve(connection))
            self._accepted.add(task)
            task.add_done_callback(self._accepted.discard)

    async def close(self, servers: Iterable[asyncio.Server]) -> None:
        """Accept the connections that wait, then close the sockets: the kernel resets those that were not accepted.

        New connections are not begun meanwhile, see ``drop_syn``.

        Args:
            servers: of the event loop, on the same sockets.
        """
        for sock in self._sockets:
            drop_syn(sock)
        await asyncio.sleep(HANDSHAKE_S)
        sockets, self._sockets = self._sockets, []
        for sock in sockets:
            self._take(accept_all(sock))
        for server in servers:
            server.close()
        for sock in sockets:
            sock.close()
        while self._accepted:
            await asyncio.wait(self._accepted)
        await asyncio.sleep(0)  # what the loop itself has accepted it makes known in the turn that follows


def accept_all(sock: socket.socket, most: int = sys.maxsize) -> list[socket.socket]:
    """The connections that wait at a listening socket."""
    accepted: list[socket.socket] = []
    sock.settimeout(0)
    with contextlib.suppress(OSError):
        while len(accepted) < most:
            accepted.append(sock.accept()[0])
    return accepted


def drop_syn(sock: socket.socket) -> None:
    """Make the kernel drop SYN packets at a listening socket; handshakes in progress go on.

    A client that connects after the last ``accept`` and before ``close`` would be reset. Unanswered, it sends its SYN
    again after a second, and is refused, or served by another socket on the port. Where the kernel has no such filter
    nothing changes.
    """
    if sys.platform == "linux":
        program = b"".join(struct.pack("HBBI", *step) for step in _DROP_SYN)
        memory = ctypes.create_string_buffer(program)
        with contextlib.suppress(OSError):
            sock.setsockopt(
                socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(_DROP_SYN), ctypes.addressof(memory))
            )
