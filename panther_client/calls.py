"""A request that is ready to be sent, and its answer, for both protocols."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from panther_client.errors import ClientError
from panther_client.wire import InferResult, PredictResult


@dataclass(frozen=True)
class Reply:
    """An answer, or that there was none.

    Attributes:
        status: as HTTP has it, 200 for success; None where there was no answer.
        headers: their names in lower case.
        body: of a success.
        error: what is raised unless it is one.
        maybe_done: whether the server may have acted on the request although there was no answer.
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
        verb: of HTTP; empty for gRPC.
        path: with its query; of gRPC the method.
        read: makes the result of a successful answer.
        repeatable: whether the request may be sent twice: inference may, a load that is under way should not.
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
        """Whether ``predict`` needs the metadata of its model, and so the name of it."""

    def predict(self, metadata: Any, model: str | None, version: str | None, inputs: Any, top_k: int | None) -> Call:
        """Outputs, and labels where the model has them; the result is a ``PredictResult``."""

    def ready(self) -> Call:
        """Whether the server is ready; the result is a bool."""

    def models(self) -> Call:
        """The served models, as a list of dicts."""

    def stats(self, model: str | None) -> Call:
        """Figures; the result is a dict."""

    def control(self, action: str, model: str) -> Call:
        """``load`` or ``unload`` a model."""


__all__ = ["Call", "Calls", "InferOptions", "InferResult", "PredictResult", "Reply"]
