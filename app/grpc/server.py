"""The gRPC server: its port, its methods, and its graceful shutdown."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from urllib.parse import unquote

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from app.engine.codec import HeaderList
from app.errors import AppError, InternalError, ModelUnavailableError, status_of
from app.grpc.health import HEALTH_NAME, Health
from app.grpc.inference import Inference
from app.grpc.messages import POOL, SERVICE_NAME, methods, parse
from app.grpc.methods import Method, served_methods
from app.grpc.status import code_of, details_of, headers_of, trailing
from app.service.state import AppState
from app.telemetry.logs import about, log_request, request_id_of_task

log = logging.getLogger(__name__)

_INFER = "ModelInfer"
_CUT_S = 0.5
_LOOK_S = 0.01
_GRPC_LOG = "grpc._cython.cygrpc"
Outcome = tuple[AppError | None, HeaderList, bytes]
"""The error or None, the headers, and the response message."""
Answer = Callable[[Any, Any], Awaitable[Outcome]]
Handle = Callable[[Any, Any], Awaitable[bytes]]


class GrpcStartError(AppError):
    """The gRPC server cannot listen on its address."""


class WithoutEndedCalls(logging.Filter):
    """Drops tracebacks that gRPC logs for calls that ended before their response was sent.

    gRPC does not log one if it knows that the client disconnected or was refused, but it may learn that later.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is to be logged."""
        kind = record.exc_info[0] if record.exc_info else None
        return kind is None or kind.__name__ != "ExecuteBatchError"


_WITHOUT_ENDED_CALLS = WithoutEndedCalls()


class GrpcServer:
    """The gRPC server of one process.

    Args:
        state: State of the application.
    """

    def __init__(self, state: AppState) -> None:
        self._state = state
        self._service = state.service
        self._inference = Inference(state.service)
        self._server: grpc.aio.Server | None = None

    async def start(self, address: str) -> None:
        """Listen on an address; other processes may listen on the same address.

        Args:
            address: Host and port, an IPv6 address in brackets.

        Raises:
            GrpcStartError: Listening on the address failed.
        """
        settings = self._state.settings
        server = grpc.aio.server(
            maximum_concurrent_rpcs=settings.max_connections,
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", settings.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", settings.max_header_bytes),
                ("grpc.absolute_max_metadata_size", settings.max_header_bytes),
                ("grpc.server_handshake_timeout_ms", round(1000 * settings.header_timeout_s)),
            ],
        )
        health = Health(self._state.not_ready_because, lambda: self._state.draining)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE_NAME, self._handlers()), health.handler())
        )
        _describe(server)
        logging.getLogger(_GRPC_LOG).addFilter(_WITHOUT_ENDED_CALLS)
        try:
            server.add_insecure_port(address)
        except RuntimeError as error:
            raise GrpcStartError(f"cannot listen on {address} for gRPC: {error}") from None
        await server.start()
        self._server = server

    async def stop(self, timeout_s: float) -> None:
        """Refuse new calls, and finish once those in flight have their responses.

        Args:
            timeout_s: Time after which the remaining calls end with UNAVAILABLE.
        """
        server = self._server
        if server is None:
            return
        stopping = asyncio.ensure_future(server.stop(timeout_s + _CUT_S))
        await asyncio.wait({stopping}, timeout=timeout_s)
        if not stopping.done():
            log.error(
                "%d gRPC requests are unfinished after shutdown_timeout_s and are cancelled", len(self._inference.calls)
            )
            for call in list(self._inference.calls):
                call.fail(ModelUnavailableError("the server is shutting down"))
            end = time.monotonic() + _CUT_S
            while time.monotonic() < end and not all(each.batcher.idle for each in self._state.repository.servings()):
                await asyncio.sleep(_LOOK_S)  # stopped runs notify the event loop
        await stopping

    def _handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        """A handler for each method of the service; this module parses and serializes their messages."""
        handlers = {name: grpc.unary_unary_rpc_method_handler(partial(_unserved, name)) for name in methods()}
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(_unserved_stream)
        for name, method in served_methods().items():
            handlers[name] = grpc.unary_unary_rpc_method_handler(self._logged(name, partial(self._answer, method)))
        # A stream handler, although one message is read: it can refuse the call before the message is received.
        handlers[_INFER] = grpc.stream_unary_rpc_method_handler(self._logged(_INFER, self._infer))
        return handlers

    async def _infer(self, _: Any, context: Any) -> Outcome:
        headers = headers_of(context.invocation_metadata())
        return await self._inference.infer(context.read, headers, context.time_remaining)

    async def _answer(self, method: Method, message: bytes, context: Any) -> Outcome:
        headers = headers_of(context.invocation_metadata())
        request_id = self._service.request_ids.of(headers)
        request_id_of_task.set(request_id.decode())
        with_id: HeaderList = [(b"x-request-id", request_id)]
        try:
            if self._service.access is not None:
                self._service.access.check(*method.same_as, headers)
            answer = await method(self._state, parse(method.request, message))
            return None, with_id, answer.SerializeToString()
        except AppError as error:
            return error, with_id, b""
        except Exception as error:
            log.error("a gRPC call failed", exc_info=error, extra=about(request_id))
            return InternalError(), with_id, b""

    def _logged(self, name: str, answer: Answer) -> Handle:
        """A method handler for gRPC, which writes the access log if that is enabled."""
        path = f"/{SERVICE_NAME}/{name}".encode()
        access_log = self._service.access_log

        async def handle(message: Any, context: Any) -> bytes:
            began = time.perf_counter()
            error, headers, content = await answer(message, context)
            del message
            if access_log:
                status = 200 if error is None else status_of(error)
                request_id = dict(headers)[b"x-request-id"]
                log_request("GRPC", path, status, time.perf_counter() - began, request_id, _client(context))
            if error is not None:
                await context.abort(code_of(error), details_of(error), trailing(headers, error))
            context.set_trailing_metadata(trailing(headers))
            return content

        return handle


def _client(context: Any) -> str | None:
    """The address of the peer, which gRPC formats as ``ipv4:127.0.0.1:1234`` or ``ipv6:%5B::1%5D:1234``."""
    kind, _, place = unquote(context.peer()).partition(":")
    return place.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else None


async def _unserved(name: str, _: bytes, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{name} is not served; docs/grpc.md lists the served methods")


async def _unserved_stream(_: Any, context: Any) -> None:
    await context.abort(
        grpc.StatusCode.UNIMPLEMENTED, "ModelStreamInfer is not served: each request has one response; call ModelInfer"
    )


def _describe(server: Any) -> None:
    """Add server reflection, which lets tools such as grpcurl discover the methods and their messages."""
    for module in (health_pb2, reflection_pb2):
        POOL.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    names = (SERVICE_NAME, HEALTH_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server, pool=POOL)
