"""Transport for calls over HTTP; requires httpx."""

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from panther_client.calls import Call, Reply
from panther_client.errors import (
    ConnectionFailedError,
    DeadlineExceededError,
    MissingExtraError,
    error_of,
    message_of,
)

if TYPE_CHECKING:
    import httpx


def require_httpx() -> None:
    """Check that httpx is installed.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import httpx  # noqa: F401 - only to check that it is installed
    except ImportError:
        raise MissingExtraError(
            "http:// and https:// require the extra 'client' (pip install 'panther-sketch[client]'): "
            "package 'httpx' is not installed"
        ) from None


class HttpTransport:
    """Sends calls and waits.

    Args:
        http: An httpx client.
        headers: Headers for every call.
        own: Whether to close the httpx client at the end.
    """

    def __init__(self, http: "httpx.Client", headers: Mapping[str, str], *, own: bool) -> None:
        self._http, self._headers, self._own = http, headers, own

    def send(self, call: Call, timeout_s: float) -> Reply:
        """Send a call; network errors are returned in the reply, never raised."""
        import httpx

        end = time.monotonic() + timeout_s
        headers = {**self._headers, **call.headers}
        try:
            with self._http.stream(
                call.verb, call.path, headers=headers, content=call.content, timeout=timeout_s
            ) as answer:
                parts = []
                for part in answer.iter_bytes():
                    parts.append(part)
                    if time.monotonic() > end:
                        return _late(self._http, timeout_s)
                return _reply(answer, b"".join(parts))
        except httpx.HTTPError as error:
            return _failed(error, self._http, timeout_s)

    def close(self) -> None:
        """Close the connections."""
        if self._own:
            self._http.close()


class AsyncHttpTransport:
    """The transport with awaitable methods; see ``HttpTransport``."""

    def __init__(self, http: "httpx.AsyncClient", headers: Mapping[str, str], *, own: bool) -> None:
        self._http, self._headers, self._own = http, headers, own

    async def send(self, call: Call, timeout_s: float) -> Reply:
        """See ``HttpTransport.send``."""
        import httpx

        headers = {**self._headers, **call.headers}
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._http.request(
                    call.verb, call.path, headers=headers, content=call.content, timeout=timeout_s
                )
        except TimeoutError:
            return _late(self._http, timeout_s)
        except httpx.HTTPError as error:
            return _failed(error, self._http, timeout_s)
        return _reply(answer, answer.content)

    async def close(self) -> None:
        """Close the connections."""
        if self._own:
            await self._http.aclose()


def _reply(answer: "httpx.Response", body: bytes) -> Reply:
    error = None
    if not answer.is_success:
        error = error_of(answer.status_code, message_of(answer.status_code, body))
    return Reply(answer.status_code, {name.lower(): value for name, value in answer.headers.items()}, body, error)


def _where(http: "httpx.Client | httpx.AsyncClient") -> str:
    """The server's URL without its password, if any."""
    return str(http.base_url.copy_with(username=None, password=None))


def _late(http: "httpx.Client | httpx.AsyncClient", timeout_s: float) -> Reply:
    error = DeadlineExceededError(f"{_where(http)} did not respond in time ({timeout_s:.3g} s)")
    return Reply(None, error=error, maybe_done=True)


def _failed(error: "httpx.HTTPError", http: "httpx.Client | httpx.AsyncClient", timeout_s: float) -> Reply:
    """The reply for a call without a response."""
    import httpx

    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return _late(http, timeout_s)
    reason = str(error) or type(error).__name__
    maybe_done = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
    return Reply(None, error=ConnectionFailedError(f"{_where(http)} can't be reached: {reason}"), maybe_done=maybe_done)
