"""The gRPC health service ``grpc.health.v1``, which reports the same readiness as HTTP."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable

import grpc
from grpc_health.v1 import health_pb2

from app.engine.codec import Headers
from app.errors import AppError
from app.grpc.call import Method, Outcome, Streaming, Unary
from app.grpc.messages import SERVICE_NAME, parse
from app.grpc.status import StatusError

HEALTH_NAME = "grpc.health.v1.Health"
_SERVICES = ("", SERVICE_NAME)
_LOOK_S = 0.25


class Health:
    """Answers health checks.

    Args:
        not_ready_because: Returns the reason why the server is not ready, or None.
        is_draining: Whether a graceful shutdown has begun, which ends watches.
    """

    def __init__(self, not_ready_because: Callable[[], str | None], is_draining: Callable[[], bool]) -> None:
        self._not_ready_because = not_ready_because
        self._is_draining = is_draining

    def methods(self) -> dict[str, Method]:
        """The methods of the service, by name."""
        return {"Check": Unary(self.check), "Watch": Streaming(self.watch)}

    async def check(self, message: bytes | None, _: Headers) -> Outcome:
        """Whether a service is served now."""
        try:
            service = parse(health_pb2.HealthCheckRequest, message or b"").service
            if service not in _SERVICES:
                known = " and ".join(repr(name) for name in _SERVICES)
                raise StatusError(grpc.StatusCode.NOT_FOUND, f"unknown service {service[:80]!r}; known: {known}")
        except AppError as error:
            return error, [], b""
        return None, [], self._answer(self._status())

    async def watch(self, messages: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Stream the health status now and at each change, until the client disconnects or the server shuts down."""
        request = parse(health_pb2.HealthCheckRequest, await anext(messages, b""))
        known, told = request.service in _SERVICES, None
        while True:
            draining = self._is_draining()
            status = self._status() if known else health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            if status != told:
                yield self._answer(status)
                told = status
            if draining:
                return
            await asyncio.sleep(_LOOK_S)

    def _status(self) -> int:
        ready = self._not_ready_because() is None
        response = health_pb2.HealthCheckResponse
        return int(response.SERVING if ready else response.NOT_SERVING)

    def _answer(self, status: int) -> bytes:
        message: bytes = health_pb2.HealthCheckResponse(status=status).SerializeToString()
        return message
