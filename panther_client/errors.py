"""Errors of a request to a server."""

import json


class ClientError(Exception):
    """Base of all errors of the client.

    Attributes:
        status: The HTTP status of the response, or the equivalent of its gRPC status; None without a
            response.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class InvalidRequestError(ClientError):
    """The request is invalid or does not match the model (400, 413, 415, …)."""


class NotFoundError(ClientError):
    """Unknown model, version or path (404)."""


class AccessDeniedError(ClientError):
    """The API key is missing or unknown (401), or does not allow the operation (403)."""


class OverloadedError(ClientError):
    """The server is overloaded or not ready (429, 503), even after all retries."""


class DeadlineExceededError(ClientError):
    """The request exceeded its timeout, at the server (504) or at the client."""


class ServerError(ClientError):
    """The server or the model failed (other 5xx), or the response is invalid."""


class ConnectionFailedError(ClientError):
    """The server is unreachable, or closed the connection."""


class MissingExtraError(ClientError):
    """The packages for a URL's protocol are not installed."""


_EXACT: dict[int, type[ClientError]] = {
    401: AccessDeniedError,
    403: AccessDeniedError,
    404: NotFoundError,
    429: OverloadedError,
    503: OverloadedError,
    504: DeadlineExceededError,
}


def message_of(status: int, body: bytes) -> str:
    """The server's message, if the HTTP response has one."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return f"the server responded with {status}: {body[:200].decode(errors='replace')}"


def error_of(status: int, message: str) -> ClientError:
    """The error for an unsuccessful response."""
    kind = _EXACT.get(status, InvalidRequestError if status < 500 else ServerError)
    return kind(message, status)
