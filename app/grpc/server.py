"""The gRPC server of one process: the choice of its transport, and its graceful shutdown."""

import asyncio
import logging
import time

from app.errors import ModelUnavailableError
from app.grpc.aio import AioTransport
from app.grpc.services import Services
from app.grpc.transport import Transport
from app.service.state import AppState

log = logging.getLogger(__name__)

_CUT_S = 0.5
_LOOK_S = 0.01


class GrpcServer:
    """The gRPC server of one process.

    Args:
        state: State of the application.
    """

    def __init__(self, state: AppState) -> None:
        self._state = state
        self._services = Services(state)
        self._transport: Transport | None = None

    async def start(self, address: str) -> None:
        """Listen on an address; other processes may listen on the same address.

        Args:
            address: Host and port, an IPv6 address in brackets.

        Raises:
            GrpcStartError: Listening on the address failed.
        """
        transport = self._choose()
        await transport.start(address)
        self._transport = transport

    async def stop(self, timeout_s: float) -> None:
        """Refuse new calls, and finish once those in flight have their responses.

        Args:
            timeout_s: Time after which the remaining calls end with UNAVAILABLE.
        """
        transport, calls = self._transport, self._services.inference.calls
        if transport is None:
            return
        stopping = asyncio.ensure_future(transport.stop(timeout_s + _CUT_S))
        await asyncio.wait({stopping}, timeout=timeout_s)
        if not stopping.done():
            log.error("%d gRPC requests are unfinished after shutdown_timeout_s and are cancelled", len(calls))
            for call in list(calls):
                call.fail(ModelUnavailableError("the server is shutting down"))
            end = time.monotonic() + _CUT_S
            while time.monotonic() < end and not all(each.batcher.idle for each in self._state.repository.servings()):
                await asyncio.sleep(_LOOK_S)  # stopped runs notify the event loop
        await stopping

    def _choose(self) -> Transport:
        wanted = self._state.settings.grpc_transport
        if wanted == "grpcio":
            return AioTransport(self._services)
        try:
            from app.grpc.http2.transport import Http2Transport
        except ImportError as error:
            if wanted == "nghttp2":
                raise
            log.warning("gRPC is served by grpcio, which is several times slower than nghttp2: %s", error)
            return AioTransport(self._services)
        return Http2Transport(self._services)
