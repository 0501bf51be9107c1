"""A request that is ready to be sent, and its response, for both protocols."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from panther_client.errors import ClientError
from panther_client.wire import InferResult, PredictResult


@dataclass(frozen=True)
class Reply:
    """A response, or the failure to get one.

    Attributes:
        status: HTTP status, 200 for success; None without a response.
        headers: Headers by lowercase name.
        body: Body of a successful response.
        error: The error to raise; None on success.
        maybe_done: Whether the server may have handled the request although there was no response.
    """

    status: int | None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    error: ClientError | None = None
    maybe_done: bool = False


@dataclass(frozen=True)
class Call:
    """One request.

    Attributes:
        verb: HTTP method; empty for gRPC.
        path: Path and query; for gRPC the method.
        read: Makes the result from a successful response.
        repeatable: Whether the request may be sent twice: true for inference, false for a load that may be in progress.
    """

    verb: str
    path: str
    read: Callable[[Reply], Any]
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    repeatable: bool = True


@dataclass(frozen=True)
class InferOptions:
    """See ``Client.infer``."""

    outputs: Sequence[str] | None = None
    request_id: str | None = None
    priority: int | None = None
    timeout_us: int | None = None
    binary: bool = True


class Calls(Protocol):
    """Makes the calls of one protocol."""

    def metadata(self, model: str, version: str | None) -> Call:
        """Inputs and outputs of a model."""

    def infer(self, metadata: Any, model: str, version: str | None, inputs: Any, options: InferOptions) -> Call:
        """Inference; the result is an ``InferResult``."""

    def needs_metadata(self) -> bool:
        """Whether ``predict`` requires the metadata of its model, and so its name."""

    def predict(self, metadata: Any, model: str | None, version: str | None, inputs: Any, top_k: int | None) -> Call:
        """Outputs, and labels if the model has them; the result is a ``PredictResult``."""

    def ready(self) -> Call:
        """Whether the server is ready; the result is a bool."""

    def models(self) -> Call:
        """The served models, as a list of dicts."""

    def stats(self, model: str | None) -> Call:
        """Statistics; the result is a dict."""

    def control(self, action: str, model: str) -> Call:
        """Load or unload a model, by ``action``."""


__all__ = ["Call", "Calls", "InferOptions", "InferResult", "PredictResult", "Reply"]
