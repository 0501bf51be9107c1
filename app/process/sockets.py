"""Listening sockets: one for one process, or one for each worker on the same port.

See docs/decisions/0009-one-socket-per-worker.md.
"""

import os
import socket
from typing import Any

from app.errors import AppError

BACKLOG = 2048


class BindError(AppError):
    """The address can't be listened on."""


def authority(host: str) -> str:
    """A host as URLs have it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def bind(host: str, port: int, *, shared: bool = False, setting: str = "port") -> socket.socket:
    """A listening socket.

    Args:
        host: an address or name of this machine.
        port: 0 for a free one.
        shared: allow other sockets of the same user on the same port.
        setting: that the port comes from, for messages.

    Raises:
        BindError: the port is taken, or the host is not one of this machine; says what to do.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    place = f"{authority(host)}:{port}"
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=shared)
    except TypeError:  # so Python says that no host can have this name
        raise BindError(f"can't listen on {place!r}: a host's name holds no null character") from None
    except OSError as error:
        known = error.errno is not None and error.errno > 0
        reason = os.strerror(error.errno) if known and error.errno else error.strerror or str(error)
        flag, variable = setting.replace("_", "-"), setting.upper()
        raise BindError(
            f"can't listen on {place}: {reason}; choose another with --host and --{flag} "
            f"(PANTHER_HOST, PANTHER_{variable})"
        ) from None


class Address:
    """An address that the workers share, held for them by a socket that is bound and does not listen.

    With a socket each (``SO_REUSEPORT``) the kernel spreads connections over the workers; those that share one socket
    race for its connections, and the quickest takes most of them.

    Args:
        host: an address or name of this machine.
        port: 0 for a free one.
        setting: that the port comes from, for messages.

    Raises:
        BindError: see ``bind``.
    """

    def __init__(self, host: str, port: int, setting: str = "port") -> None:
        # Sockets that share a port would share it with another server's too: first see that it is free.
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
        """A socket for one worker; it gets connections once it listens.

        Raises:
            OSError: no descriptor is left.
        """
        sock = self._bind()
        if listening:
            sock.listen(BACKLOG)
        return sock

    def close(self) -> None:
        """Give the address up."""
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
