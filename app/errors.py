"""Errors of the server, and the table that maps them to HTTP status codes."""

import re

import orjson

_FOLDERS = re.compile(r"(?<![\w./])/(?:[^\s\"'/:]+/)+")


class AppError(Exception):
    """An error whose message is written for the caller; it never ends in a newline, as those of libraries do."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message.rstrip())


class InvalidRequestError(AppError):
    """The request can't be understood or doesn't fit the model."""


class UnsupportedMediaTypeError(AppError):
    """The body's content type or encoding is none that is known."""


class BodyTooLargeError(AppError):
    """The body, as sent or after decompression, is over the limit."""


class RequestTimeoutError(AppError):
    """The client took too long to send its request."""


class ModelNotFoundError(AppError):
    """No model or version of that name."""


class ModelUnavailableError(AppError):
    """The model is known but can't serve now."""


class OverloadedError(AppError):
    """More requests wait than may.

    Attributes:
        wait_s: after how many seconds the queue should have room again.
    """

    def __init__(self, message: str, wait_s: int = 1) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class ControlForbiddenError(AppError):
    """Loading and unloading models is switched off."""


class UnauthorizedError(AppError):
    """The request brings no API key, or none that is known."""

    def __init__(self, message: str, *, key_sent: bool = False) -> None:
        super().__init__(message)
        self.key_sent = key_sent


class AccessForbiddenError(AppError):
    """The API key that the request brings is not for this."""


class DeadlineExceededError(AppError):
    """The request waited for longer than its own timeout."""


class InferenceFailedError(AppError):
    """The runtime failed on this request."""


class InternalError(AppError):
    """A defect of the server, of which a client learns nothing and the log all."""

    def __init__(self) -> None:
        super().__init__("internal error")


class BenchmarkError(AppError):
    """The model can't be measured beside a dense twin."""


class CardError(AppError):
    """The model card in a file can't be used."""


class LoadError(AppError):
    """A model file can't be served."""


class LoadTimeoutError(LoadError):
    """Loading a model took too long; it may go well another time."""


class DeviceError(LoadError):
    """The device that was asked for is not available."""


STATUS: dict[type[AppError], int] = {
    InvalidRequestError: 400,
    BenchmarkError: 400,
    UnauthorizedError: 401,
    ControlForbiddenError: 403,
    AccessForbiddenError: 403,
    ModelNotFoundError: 404,
    RequestTimeoutError: 408,
    BodyTooLargeError: 413,
    UnsupportedMediaTypeError: 415,
    InferenceFailedError: 500,
    InternalError: 500,
    LoadError: 500,
    ModelUnavailableError: 503,
    OverloadedError: 503,
    DeviceError: 503,
    DeadlineExceededError: 504,
}


def shortened(text: str, most: int = 120) -> str:
    """A text for a message, cut where it is long."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"


def without_folders(message: str) -> str:
    """A message of the runtime without folders: absolute paths are cut to their last name."""
    return _FOLDERS.sub("", message)


def status_of(error: AppError) -> int:
    """The HTTP status of an error: that of its own class or of the nearest base in the table."""
    return next((STATUS[cls] for cls in type(error).__mro__ if cls in STATUS), 500)


def retry_after_s(error: AppError) -> int | None:
    """Seconds after which trying again makes sense, or None where it never does."""
    if isinstance(error, OverloadedError):
        return error.wait_s
    return 1 if isinstance(error, ModelUnavailableError) else None


def error_headers(error: AppError) -> list[tuple[bytes, bytes]]:
    """The headers that go with an error's answer, but for its type."""
    headers = []
    wait_s = retry_after_s(error)
    if wait_s is not None:
        headers.append((b"retry-after", b"%d" % wait_s))
    if isinstance(error, UnauthorizedError):
        # RFC 6750: a reason is given only where a key was sent.
        reason = b', error="invalid_token"' if error.key_sent else b""
        headers.append((b"www-authenticate", b'Bearer realm="panther"' + reason))
    return headers


def error_body(message: str) -> bytes:
    """Encode ``{"error": message}``, the body of every error response."""
    return orjson.dumps({"error": message})
