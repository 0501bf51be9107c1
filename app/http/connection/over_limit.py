"""Responses on connections over ``max_connections``: health checks pass, everything else gets 503."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.config.limits import Limits
from app.errors import error_body

RESERVED = 32
"""Maximum number of connections over the limit that are read, which allows health checks."""
HEALTH_CHECKS = {"/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"}


class OverLimitApp:
    """ASGI application for connections over the limit: health checks pass, everything else gets 503.

    Args:
        behind: The application that serves health checks.
        limits: Connection limits, for the message.
        request_id: Id of the refused request; only one is answered, because the connection closes.
    """

    def __init__(self, behind: ASGIApp, limits: Limits, request_id: bytes) -> None:
        self._behind = behind
        self._body = error_body(limits.too_many_connections())
        self._request_id = request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to one request; then the connection closes."""

        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        if scope["path"] in HEALTH_CHECKS:
            await self._behind(scope, receive, send_and_close)
            return
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(self._body)),
            (b"retry-after", b"1"),
            (b"x-request-id", self._request_id),
        ]
        await send_and_close({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": self._body})
