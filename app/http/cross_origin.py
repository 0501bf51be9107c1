"""Cross-origin protection: origins and host names allowed for control requests."""

import ipaddress
from collections.abc import Iterable, Mapping

from app.errors import AccessForbiddenError

_OWN_PAGES = (b"same-origin", b"none")  # none: the user entered the URL
_SHOWN = 100


class CrossOriginGuard:
    """Refuses control requests that a page of another origin may have sent.

    A browser sends some requests for any page without a preflight, even to a server on the same machine; it only hides
    the response from the page. It names the page's origin in ``Sec-Fetch-Site`` (on local servers and over TLS), and
    in ``Origin``. Clients other than browsers send neither.

    After DNS rebinding (a page's host name resolves to this server after the page was loaded) the page has the same
    origin for the browser; only ``Host`` reveals it. So this must be an IP address, a loopback name, or a name of
    the allow list.

    Args:
        origins: Origins of pages that may change the served models (CORS); ``*`` for all.
        hosts: Additional names allowed in ``Host``; ``*.`` before a name allows its subdomains, ``*`` allows all.
    """

    def __init__(self, origins: Iterable[str] = (), hosts: Iterable[str] = ()) -> None:
        self._origins = frozenset(origins)
        self._hosts = frozenset(host.lower().rstrip(".") for host in hosts)
        self._suffixes = tuple(host[1:] for host in self._hosts if host.startswith("*."))

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Check that a control request is allowed.

        Raises:
            AccessForbiddenError: The request is from a page of another origin, or its host name is not allowed.
        """
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if host and not self.allows_host(host):
            raise AccessForbiddenError(
                f"a request for the host {host[:_SHOWN]!r} may not change the served models; "
                "add the host to PANTHER_ALLOWED_HOSTS to allow it"
            )
        if not self._allows_page(headers, host):
            origin = headers.get(b"origin", b"").decode("latin-1")
            raise AccessForbiddenError(
                f"a page of {origin[:_SHOWN] or 'another origin'} may not change the served models; "
                "add the origin to PANTHER_CORS_ORIGINS to allow it"
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
        # Behind a proxy the page's origin differs from the address of the server; trust the browser.
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
