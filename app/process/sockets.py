"""Listening sockets: one for a single process, or one per worker on the same port.

See docs/decisions/0009-one-socket-per-worker.md.
"""

import os
import socket
from typing import Any

from app.errors import AppError

BACKLOG = 2048


class BindError(AppError):
    """The address is not available for listening."""


def authority(host: str) -> str:
    """A host in the form of URLs: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def bind(host: str, port: int, *, shared: bool = False, setting: str = "port") -> socket.socket:
    """Open a listening socket.

    Args:
        host: An address or name of this machine.
        port: The port; 0 for a free one.
        shared: Whether other sockets of the same user may use the same port.
        setting: Name of the port's setting, for messages.

    Raises:
        BindError: The port is taken, or the host is not an address of this machine; the message gives the remedy.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    place = f"{authority(host)}:{port}"
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=shared)
    except TypeError:  # Python's error for an impossible host name
        raise BindError(f"can't listen on {place!r}: a host name must not contain a null character") from None
    except OSError as error:
        known = error.errno is not None and error.errno > 0
        reason = os.strerror(error.errno) if known and error.errno else error.strerror or str(error)
        flag, variable = setting.replace("_", "-"), setting.upper()
        raise BindError(
            f"can't listen on {place}: {reason}; choose another with --host and --{flag} "
            f"(PANTHER_HOST, PANTHER_{variable})"
        ) from None


class Address:
    """An address that the workers share, reserved by a socket that is bound but does not listen.

    With a socket per worker (``SO_REUSEPORT``) the kernel spreads connections over the workers. Workers that share a
    socket race for its connections, and the fastest one takes most of them.

    Args:
        host: An address or name of this machine.
        port: The port; 0 for a free one.
        setting: Name of the port's setting, for messages.

    Raises:
        BindError: See ``bind``.
    """

    def __init__(self, host: str, port: int, setting: str = "port") -> None:
        # Shared sockets would also share the port with another server: first check that it is free.
        with bind(host, port, setting=setting) as probe:
            self._family = probe.family
            self._address: tuple[Any, ...] = probe.getsockname()
        self._held = self._bind()

    @property
    def port(self) -> int:
        """The port."""
        found: int = self._address[1]
        return found

    def __str__(self) -> str:
        return f"{authority(self._address[0])}:{self.port}"

    def open(self, *, listening: bool) -> socket.socket:
        """Open a socket for one worker; it receives connections once it listens.

        Raises:
            OSError: No file descriptor is free.
        """
        sock = self._bind()
        if listening:
            sock.listen(BACKLOG)
        return sock

    def close(self) -> None:
        """Release the address."""
        self._held.close()

    def _bind(self) -> socket.socket:
        sock = socket.socket(self._family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if self._family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(self._address)
        except OSError:
            sock.close()
            raise
        return sock
