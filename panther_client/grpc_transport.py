"""Transport for calls over gRPC; requires grpcio."""

from collections.abc import Mapping
from typing import Any

import grpc

from panther_client.calls import Call, Reply
from panther_client.errors import ConnectionFailedError, DeadlineExceededError, error_of

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),  # this client retries
]
_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 413,
    grpc.StatusCode.UNIMPLEMENTED: 405,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}


class GrpcTransport:
    """Sends calls and waits.

    Args:
        address: Host and port.
        headers: Headers for every call, sent as metadata.
        secure: Whether the channel uses TLS.
    """

    def __init__(self, address: str, headers: Mapping[str, str], *, secure: bool) -> None:
        self._address, self._metadata = address, _metadata(headers)
        self._channel = (
            grpc.secure_channel(address, grpc.ssl_channel_credentials(), _OPTIONS)
            if secure
            else grpc.insecure_channel(address, _OPTIONS)
        )

    def send(self, call: Call, timeout_s: float) -> Reply:
        """Send a call; network errors are returned in the reply, never raised."""
        try:
            body = self._channel.unary_unary(call.path)(call.content, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            return _failed(error, self._address)
        return Reply(200, body=body)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


class AsyncGrpcTransport:
    """The transport with awaitable methods; see ``GrpcTransport``."""

    def __init__(self, address: str, headers: Mapping[str, str], *, secure: bool) -> None:
        self._address, self._metadata, self._secure = address, _metadata(headers), secure
        self._channel: Any = None  # belongs to the event loop of the first call

    async def send(self, call: Call, timeout_s: float) -> Reply:
        """See ``GrpcTransport.send``."""
        if self._channel is None:
            self._channel = (
                grpc.aio.secure_channel(self._address, grpc.ssl_channel_credentials(), _OPTIONS)
                if self._secure
                else grpc.aio.insecure_channel(self._address, _OPTIONS)
            )
        try:
            body = await self._channel.unary_unary(call.path)(call.content, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            return _failed(error, self._address)
        return Reply(200, body=body)

    async def close(self) -> None:
        """Close the channel."""
        if self._channel is not None:
            await self._channel.close()


def _metadata(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((name.lower(), value) for name, value in headers.items())


def _failed(error: Any, address: str) -> Reply:
    """The reply for a failed call."""
    code, details = error.code(), error.details() or ""
    headers = {name: value for name, value in error.trailing_metadata() or () if isinstance(value, str)}
    if code is grpc.StatusCode.UNAVAILABLE and "x-request-id" not in headers and "retry-after" not in headers:
        reason = ConnectionFailedError(f"{address} can't be reached: {details}")
        return Reply(None, headers, error=reason, maybe_done=True)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and "x-request-id" not in headers:
        return Reply(None, headers, error=DeadlineExceededError(f"{address} did not respond in time: {details}"))
    status = _STATUS.get(code, 500)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "retry-after" in headers:
        status = 503
    return Reply(status, headers, error=error_of(status, details or f"the server responded with {code.name}"))
