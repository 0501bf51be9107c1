"""Errors of a request to a server."""

import json


class ClientError(Exception):
    """Base of all errors of the client.

    Attributes:
        status: the HTTP status of the answer, or the one that its gRPC status represents; None where there was no
            answer.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class InvalidRequestError(ClientError):
    """The server doesn't understand the request, or it doesn't fit the model (400, 413, 415, …)."""


class NotFoundError(ClientError):
    """Unknown model, version or path (404)."""


class AccessDeniedError(ClientError):
    """An API key is needed, is not known (401), or is not for this (403)."""


class OverloadedError(ClientError):
    """The server can't answer now (429, 503), and did not within the retries."""


class DeadlineExceededError(ClientError):
    """The request waited longer than its timeout, at the server (504) or here."""


class ServerError(ClientError):
    """The server or the model failed (other 5xx), or the answer can't be understood."""


class ConnectionFailedError(ClientError):
    """The server can't be reached, or went away."""


class MissingExtraError(ClientError):
    """The packages of a URL's protocol are not installed."""


_EXACT: dict[int, type[ClientError]] = {
    401: AccessDeniedError,
    403: AccessDeniedError,
    404: NotFoundError,
    429: OverloadedError,
    503: OverloadedError,
    504: DeadlineExceededError,
}


def message_of(status: int, body: bytes) -> str:
    """The server's own message where an answer of HTTP has one."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {status}: {body[:200].decode(errors='replace')}"


def error_of(status: int, message: str) -> ClientError:
    """The error for an answer that is none of success."""
    kind = _EXACT.get(status, InvalidRequestError if status < 500 else ServerError)
    return kind(message, status)
