"""Errors of the server, and the table that maps them to HTTP status codes."""

import re

import orjson

_FOLDERS = re.compile(r"(?<![\w./])/(?:[^\s\"'/:]+/)+")


class AppError(Exception):
    """An error with a message for the caller; like any other message it does not end in a newline."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message.rstrip())


class InvalidRequestError(AppError):
    """The request is invalid or does not match the model."""


class UnsupportedMediaTypeError(AppError):
    """The content type or content encoding of the body is not supported."""


class BodyTooLargeError(AppError):
    """The body exceeds the limit, compressed or decompressed."""


class RequestTimeoutError(AppError):
    """The client took too long to send its request."""


class ModelNotFoundError(AppError):
    """There is no model or version with that name."""


class ModelUnavailableError(AppError):
    """The model exists but cannot serve requests now."""


class OverloadedError(AppError):
    """A queue or memory budget is full.

    Attributes:
        wait_s: Seconds after which the queue should have room again.
    """

    def __init__(self, message: str, wait_s: int = 1) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class ControlForbiddenError(AppError):
    """Model control (load, unload) is disabled."""


class UnauthorizedError(AppError):
    """The request has no API key, or an unknown one."""

    def __init__(self, message: str, *, key_sent: bool = False) -> None:
        super().__init__(message)
        self.key_sent = key_sent


class AccessForbiddenError(AppError):
    """The API key of the request does not allow the operation."""


class DeadlineExceededError(AppError):
    """The request waited longer than its timeout."""


class InferenceFailedError(AppError):
    """The runtime failed on this request."""


class InternalError(AppError):
    """A defect of the server; its details are in the log only."""

    def __init__(self) -> None:
        super().__init__("internal error")


class BenchmarkError(AppError):
    """The model cannot be compared with a dense twin."""


class CardError(AppError):
    """The model card in a file is not usable."""


class LoadError(AppError):
    """A model file cannot be served."""


class LoadTimeoutError(LoadError):
    """Loading a model timed out; it may succeed later."""


class DeviceError(LoadError):
    """The requested device is not available."""


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
    """A text for a message, truncated if it is long."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"


def without_folders(message: str) -> str:
    """A message of the runtime without folders: absolute paths are reduced to the file name."""
    return _FOLDERS.sub("", message)


def status_of(error: AppError) -> int:
    """The HTTP status of an error: that of its class or of the nearest base class in the table."""
    return next((STATUS[cls] for cls in type(error).__mro__ if cls in STATUS), 500)


def retry_after_s(error: AppError) -> int | None:
    """Seconds after which a retry makes sense, or None if it never does."""
    if isinstance(error, OverloadedError):
        return error.wait_s
    return 1 if isinstance(error, ModelUnavailableError) else None


def error_headers(error: AppError) -> list[tuple[bytes, bytes]]:
    """The headers of an error response, except its content type."""
    headers = []
    wait_s = retry_after_s(error)
    if wait_s is not None:
        headers.append((b"retry-after", b"%d" % wait_s))
    if isinstance(error, UnauthorizedError):
        # RFC 6750: the reason is only given if a key was sent.
        reason = b', error="invalid_token"' if error.key_sent else b""
        headers.append((b"www-authenticate", b'Bearer realm="panther"' + reason))
    return headers


def error_body(message: str) -> bytes:
    """Encode ``{"error": message}``, the body of every error response."""
    return orjson.dumps({"error": message})
