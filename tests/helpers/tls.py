"""One TLS context for all clients of httpx in a process; reading the certificate authorities takes 20 ms each time."""

import functools
import ssl
from typing import Any

from httpx._transports import default


def reuse() -> None:
    """Share the context of clients that have no certificate, authorities or environment of their own."""
    create = default.create_ssl_context
    if hasattr(create, "cache_info"):
        return

    @functools.cache
    def created() -> ssl.SSLContext:
        return create()

    @functools.wraps(create)
    def create_ssl_context(verify: Any = True, cert: Any = None, trust_env: bool = True) -> ssl.SSLContext:
        plain = verify is True and cert is None
        return created() if plain else create(verify=verify, cert=cert, trust_env=trust_env)

    create_ssl_context.cache_info = created.cache_info
    default.create_ssl_context = create_ssl_context
