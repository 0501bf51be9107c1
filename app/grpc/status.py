"""Mapping of errors to gRPC status codes, and the details of an error response."""

import grpc

from app.engine.codec import HeaderList, Headers
from app.errors import (
    AccessForbiddenError,
    AppError,
    BodyTooLargeError,
    ControlForbiddenError,
    DeadlineExceededError,
    DeviceError,
    InvalidRequestError,
    ModelNotFoundError,
    ModelUnavailableError,
    OverloadedError,
    UnauthorizedError,
    retry_after_s,
    shortened,
)

CODES: dict[type[AppError], grpc.StatusCode] = {
    InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    UnauthorizedError: grpc.StatusCode.UNAUTHENTICATED,
    ControlForbiddenError: grpc.StatusCode.PERMISSION_DENIED,
    AccessForbiddenError: grpc.StatusCode.PERMISSION_DENIED,
    ModelNotFoundError: grpc.StatusCode.NOT_FOUND,
    BodyTooLargeError: grpc.StatusCode.RESOURCE_EXHAUSTED,  # gRPC's own code for a message over its limit
    OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ModelUnavailableError: grpc.StatusCode.UNAVAILABLE,
    DeviceError: grpc.StatusCode.UNAVAILABLE,
    DeadlineExceededError: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""Status code of all other errors."""
_MOST_CHARACTERS = 2000
"""Maximum length of a message: it is sent as a header, and clients accept 8 KiB of headers in total."""
_READ = frozenset({"authorization", "x-api-key", "x-request-id", "traceparent", "tracestate"})

Metadata = tuple[tuple[str, str], ...]


def code_of(error: AppError) -> grpc.StatusCode:
    """The status code of an error, by its class or the nearest base class in the table."""
    return next((CODES[cls] for cls in type(error).__mro__ if cls in CODES), grpc.StatusCode.INTERNAL)


def details_of(error: AppError) -> str:
    """The message of an error, encoded and shortened for a header."""
    return shortened(str(error), _MOST_CHARACTERS)


def headers_of(metadata: object) -> Headers:
    """Known metadata of a call, as HTTP headers of the same names."""
    headers: Headers = {}
    for name, value in metadata or ():  # type: ignore[attr-defined]
        if name in _READ and isinstance(value, str):
            headers[name.encode()] = value.encode("utf-8", "surrogateescape")
    return headers


def trailing(headers: HeaderList, error: AppError | None = None) -> Metadata:
    """Trailing metadata of a response: its headers, and for some errors the time to retry."""
    metadata = [(name.decode(), value.decode("latin-1")) for name, value in headers]
    wait_s = None if error is None else retry_after_s(error)
    if wait_s is not None:
        # Retry policies of clients read the second entry.
        metadata += [("retry-after", str(wait_s)), ("grpc-retry-pushback-ms", str(1000 * wait_s))]
    return tuple(metadata)
