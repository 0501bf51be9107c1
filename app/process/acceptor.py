"""Accepting connections: all waiting ones at once, and none is reset when the sockets close.

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
"""Maximum number of connections accepted per turn of the event loop, in addition to the loop's own."""
HANDSHAKE_S = 0.01
"""Time for a handshake in progress to finish if no other one starts."""
_SO_ATTACH_FILTER = 26
# A program of the kernel's classic packet filter (struct sock_filter): operation, jumps if true and if false, operand.
_DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte of the TCP header that holds the flags
    (0x54, 0, 0, 0x12),  # keep SYN and ACK of them
    (0x15, 0, 1, 0x02),  # SYN alone?
    (0x06, 0, 0, 0),  # drop the packet: it starts a connection
    (0x06, 0, 0, 0xFFFFFFFF),  # pass any other
)
LOOK_S = 0.002
"""Delay from a new connection to accepting the others; with shorter turns the event loop itself keeps up."""


class Acceptor:
    """Accepts connections from the listening sockets of a process, in addition to the event loop.

    libuv accepts one connection per turn of the loop. While the loop is busy a turn takes tens of milliseconds, and a
    health check would wait for seconds behind other new connections. So with each new connection, all other waiting
    ones are accepted too.

    Args:
        serve: Lets the event loop serve a connection; returns once its protocol is connected.
    """

    def __init__(self, serve: Callable[[socket.socket], Coroutine[Any, Any, None]]) -> None:
        self._serve = serve
        self._sockets: list[socket.socket] = []
        self._scheduled = False
        self._accepted: set[asyncio.Task[None]] = set()

    @property
    def pending(self) -> bool:
        """Whether an accepted connection is not yet registered with the server."""
        return bool(self._accepted)

    def start(self, sockets: Iterable[socket.socket]) -> None:
        """Start accepting from these sockets."""
        self._sockets = list(sockets)

    def connection_made(self) -> None:
        """Accept other waiting connections after one was opened, at most once per turn of the loop."""
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
        """Accept waiting connections, then close the sockets; the kernel resets connections that were not accepted.

        New connections do not start meanwhile, see ``drop_syn``.

        Args:
            servers: Servers of the event loop on the same sockets.
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
        await asyncio.sleep(0)  # the loop registers its accepted connections in the next turn


def accept_all(sock: socket.socket, most: int = sys.maxsize) -> list[socket.socket]:
    """Accept the waiting connections of a listening socket."""
    accepted: list[socket.socket] = []
    sock.settimeout(0)
    with contextlib.suppress(OSError):
        while len(accepted) < most:
            accepted.append(sock.accept()[0])
    return accepted


def drop_syn(sock: socket.socket) -> None:
    """Make the kernel drop SYN packets at a listening socket; handshakes in progress go on.

    A client that connects between the last ``accept`` and ``close`` would be reset. Without a response it sends its SYN
    again after a second, and is refused, or served by another socket on the port. On a kernel without such a filter
    nothing changes.
    """
    if sys.platform == "linux":
        program = b"".join(struct.pack("HBBI", *step) for step in _DROP_SYN)
        memory = ctypes.create_string_buffer(program)
        with contextlib.suppress(OSError):
            sock.setsockopt(
                socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(_DROP_SYN), ctypes.addressof(memory))
            )
