"""Cross-origin protection: origins and host names allowed for control requests."""

import ipaddress
from collections.abc import Iterable, Mapping

from app.errors import AccessForbiddenError

_OWN_PAGES = (b"same-origin", b"none")  # none: the user typed the address
_SHOWN = 100


class CrossOriginGuard:
    """Refuses control requests that a page of another origin may have sent.

    A browser sends some requests for any page without asking, to a server on its own machine too; it only keeps the
    answer from the page. It says whose page it is by ``Sec-Fetch-Site``, where the server is local or behind TLS, and
    by ``Origin``. Clients that are no browsers send neither.

    A page whose host name was pointed at this server's address after it was loaded (DNS rebinding) is of the same
    origin for the browser; only ``Host`` gives it away. So this has to be an IP address, a loopback name, or a name of
    the allow list.

    Args:
        origins: origins whose pages may change what is served (CORS); ``*`` for all.
        hosts: names that ``Host`` may have besides; ``*.`` before a name allows the names below it, ``*`` allows all.
    """

    def __init__(self, origins: Iterable[str] = (), hosts: Iterable[str] = ()) -> None:
        self._origins = frozenset(origins)
        self._hosts = frozenset(host.lower().rstrip(".") for host in hosts)
        self._suffixes = tuple(host[1:] for host in self._hosts if host.startswith("*."))

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Check that a control request is allowed.

        Raises:
            AccessForbiddenError: it comes from a page of another origin, or with a host name that is not allowed.
        """
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if host and not self.allows_host(host):
            raise AccessForbiddenError(
                f"a request for the host {host[:_SHOWN]!r} may not change what is served; "
                "PANTHER_ALLOWED_HOSTS names the hosts that may"
            )
        if not self._allows_page(headers, host):
            origin = headers.get(b"origin", b"").decode("latin-1")
            raise AccessForbiddenError(
                f"a page of {origin[:_SHOWN] or 'another origin'} may not change what is served; "
                "PANTHER_CORS_ORIGINS names those that may"
            )

    def allows_host(self, host: str) -> bool:
        """Whether ``Host`` may have this value, in lower case, with or without a port."""
        name = _without_port(host).rstrip(".")
        if "*" in self._hosts or name in self._hosts or name == "localhost":
            return True
        return name.endswith((".localhost", *self._suffixes)) or _is_address(name)

    def _allows_page(self, headers: Mapping[bytes, bytes], host: str) -> bool:
        origin = headers.get(b"origin", b"").decode("latin-1")
        if "*" in self._origins or origin in self._origins:
            return True
        site = headers.get(b"sec-fetch-site")
        if site is not None and site not in _OWN_PAGES:
            return False
        if not origin:
            return True
        if origin == "null":
            return False
        # Behind a proxy the page's origin is not the address of the server; the browser knows better.
        return site == b"same-origin" or origin.partition("://")[2].lower() == host


def _without_port(host: str) -> str:
    if host.startswith("["):
        address, end, _ = host[1:].partition("]")
        return address if end else ""
    return host.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
