"""The gRPC health service ``grpc.health.v1``, which reports the same readiness as HTTP."""

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc
from grpc_health.v1 import health_pb2

from app.grpc.messages import SERVICE_NAME

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

    def handler(self) -> grpc.GenericRpcHandler:
        """The generic handler for the gRPC server."""
        request, answer = health_pb2.HealthCheckRequest.FromString, health_pb2.HealthCheckResponse.SerializeToString
        return grpc.method_handlers_generic_handler(
            HEALTH_NAME,
            {
                "Check": grpc.unary_unary_rpc_method_handler(self.check, request, answer),
                "Watch": grpc.unary_stream_rpc_method_handler(self.watch, request, answer),
            },
        )

    async def check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        """Whether a service is served now."""
        if request.service not in _SERVICES:
            known = " and ".join(repr(name) for name in _SERVICES)
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {request.service[:80]!r}; known: {known}")
        return health_pb2.HealthCheckResponse(status=self._status())

    async def watch(
        self, request: health_pb2.HealthCheckRequest, _: grpc.aio.ServicerContext
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Stream the health status now and at each change, until the client disconnects or the server shuts down."""
        known, told = request.service in _SERVICES, None
        while True:
            draining = self._is_draining()
            status = self._status() if known else health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            if status != told:
                yield health_pb2.HealthCheckResponse(status=status)
                told = status
            if draining:
                return
            await asyncio.sleep(_LOOK_S)

    def _status(self) -> int:
        ready = self._not_ready_because() is None
        response = health_pb2.HealthCheckResponse
        return int(response.SERVING if ready else response.NOT_SERVING)
