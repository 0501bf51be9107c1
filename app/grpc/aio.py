"""gRPC transport by ``grpc.aio``, the fallback where the package ``ngh2`` is not installed.

See docs/decisions/0074-grpc-by-grpc-aio.md.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any
from urllib.parse import unquote

import grpc

from app.errors import AppError, InternalError
from app.grpc.call import Answered, Direct, Method, Outcome, Streaming, Unary
from app.grpc.gathering import Gathering
from app.grpc.services import Services
from app.grpc.status import code_of, details_of, headers_of, trailing
from app.grpc.transport import GrpcStartError

log = logging.getLogger(__name__)

_GRPC_LOG = "grpc._cython.cygrpc"


class WithoutEndedCalls(logging.Filter):
    """Drops tracebacks that gRPC logs for calls that ended before their response was sent.

    gRPC does not log one if it knows that the client disconnected or was refused, but it may learn that later.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is to be logged."""
        kind = record.exc_info[0] if record.exc_info else None
        return kind is None or kind.__name__ != "ExecuteBatchError"


_WITHOUT_ENDED_CALLS = WithoutEndedCalls()


class AioTransport:
    """The server of ``grpc.aio``; see ``Transport``.

    Args:
        services: Methods to serve.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._gathering = Gathering()
        self._server: grpc.aio.Server | None = None

    async def start(self, address: str) -> None:
        """Listen, see ``Transport``.

        Raises:
            GrpcStartError: Listening on the address failed.
        """
        settings = self._services.state.settings
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
        handlers: dict[str, dict[str, grpc.RpcMethodHandler]] = {}
        for path, method in self._services.methods.items():
            _, service, name = path.split("/")
            handlers.setdefault(service, {})[name] = self._handler(path, method)
        server.add_generic_rpc_handlers(
            tuple(grpc.method_handlers_generic_handler(service, found) for service, found in handlers.items())
        )
        logging.getLogger(_GRPC_LOG).addFilter(_WITHOUT_ENDED_CALLS)
        try:
            server.add_insecure_port(address)
        except RuntimeError as error:
            raise GrpcStartError(f"cannot listen on {address} for gRPC: {error}") from None
        await server.start()
        self._server = server

    async def stop(self, timeout_s: float) -> None:
        """End gracefully, see ``Transport``."""
        if self._server is not None:
            await self._server.stop(timeout_s)

    def _handler(self, path: str, method: Method) -> grpc.RpcMethodHandler:
        if isinstance(method, Streaming):
            return grpc.stream_stream_rpc_method_handler(partial(self._stream, method))
        # A stream handler, although one message is read: it can refuse the call before the message is received.
        answer = partial(self._direct, method) if isinstance(method, Direct) else partial(self._unary, method)
        return grpc.stream_unary_rpc_method_handler(partial(self._handle, path, answer))

    async def _handle(self, path: str, answer: Any, _: Any, context: Any) -> bytes:
        began = time.perf_counter()
        outcome: Outcome = await answer(context)
        if self._services.access_log:
            self._services.log(path, outcome, time.perf_counter() - began, _client(context))
        error, headers, content = outcome
        if error is not None:
            await context.abort(code_of(error), details_of(error), trailing(headers, error))
        context.set_trailing_metadata(trailing(headers))
        return content

    async def _unary(self, method: Unary, context: Any) -> Outcome:
        message = await context.read()
        return await method.answer(
            message if isinstance(message, bytes) else None, headers_of(context.invocation_metadata())
        )

    async def _direct(self, method: Direct, context: Any) -> Outcome:
        answered: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        headers = headers_of(context.invocation_metadata())
        call = method.begin(headers, context.time_remaining, _setter(answered))
        try:
            if not call.answered:
                message = await context.read()
                self._gathering.add(partial(call.receive, message if isinstance(message, bytes) else None))
                del message
            return await answered
        except asyncio.CancelledError:
            call.withdraw()
            raise

    async def _stream(self, method: Streaming, _: Any, context: Any) -> None:
        try:
            async with aclosing(method.answer(_messages(context))) as answers:
                async for message in answers:
                    await context.write(message)
        except AppError as error:
            await context.abort(code_of(error), details_of(error), trailing([], error))
        except (grpc.aio.BaseError, grpc.RpcError):
            raise
        except Exception as error:
            log.error("a gRPC stream failed", exc_info=error)
            await context.abort(code_of(InternalError()), details_of(InternalError()))


def _setter(answered: "asyncio.Future[Outcome]") -> Answered:
    def answer(outcome: Outcome) -> None:
        if not answered.done():
            answered.set_result(outcome)

    return answer


async def _messages(context: Any) -> AsyncIterator[bytes]:
    while isinstance(message := await context.read(), bytes):
        yield message


def _client(context: Any) -> str | None:
    """The address of the peer, which gRPC formats as ``ipv4:127.0.0.1:1234`` or ``ipv6:%5B::1%5D:1234``."""
    kind, _, place = unquote(context.peer()).partition(":")
    return place.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else None
