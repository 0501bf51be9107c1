"""Errors of a remote model repository."""

from app.errors import AppError, ModelUnavailableError


class RemoteError(ModelUnavailableError):
    """The remote repository, or a part of it, cannot be mirrored now; the served models stay."""


class MissingExtraError(AppError):
    """A URL is set, but the packages for its scheme are not installed."""


class MirrorStoppedError(RemoteError):
    """The server is shutting down."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")
