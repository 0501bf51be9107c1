"""Decoding of gRPC messages into inference requests, by the rules of the protocol over HTTP."""

from dataclasses import dataclass
from typing import Any
from weakref import ref

from app.engine.codec import Body, binary
from app.engine.codec.described import DescribedModel
from app.engine.codec.model_codec import MOST_INLINE_BYTES, ResponseForm
from app.engine.codec.oip import MAX_HEADERS
from app.engine.codec.oip_header import JsonHeader, read_header
from app.engine.codec.prepared import prepare
from app.engine.request import InferenceRequest
from app.errors import InvalidRequestError
from app.grpc.encoding import GrpcForm
from app.grpc.messages import ModelInferRequest, parse
from app.grpc.typed_contents import array_of
from app.grpc.wire import split
from app.runtime.tensors import Array
from app.service.decode_worker import Job

_SIZE = "binary_data_size"  # member of HTTP's JSON header; gRPC bytes carry their length


@dataclass(frozen=True)
class GrpcJob(Job):
    """A message for decoding in another process.

    Attributes:
        deadline_us: Time until the client's deadline; 0 for no limit.
    """

    deadline_us: int

    def read(self, body: Body) -> tuple[InferenceRequest, ResponseForm]:
        """Decode the message; see ``Job``."""
        return Reader().open(body).read(self.model, self.deadline_us)


def is_heavy(nbytes: int, model: DescribedModel) -> bool:
    """Whether decoding a message of this size may block a process for long; numbers are cheap to decode."""
    return nbytes > MOST_INLINE_BYTES and any(spec.datatype == "BYTES" for spec in model.inputs)


class Envelope:
    """All of a message but its raw tensors, validated once for each model in turn.

    Args:
        request: A ``ModelInferRequest`` without raw tensors.

    Attributes:
        request: The same.
        target: Name and version of the model, both possibly empty.
    """

    __slots__ = ("_validated", "request", "target")

    def __init__(self, request: Any) -> None:
        self.request = request
        self.target: tuple[str, str] = (request.model_name, request.model_version)
        self._validated: tuple[ref[DescribedModel], JsonHeader, GrpcForm] | None = None

    def validated(self, model: DescribedModel, count: int) -> tuple[JsonHeader, GrpcForm]:
        """The validated envelope of raw tensors, and the response format.

        Args:
            model: The model of the request.
            count: Number of raw tensors.

        Raises:
            InvalidRequestError: The envelope is invalid; the message names the place and the rule.
        """
        known = self._validated
        if known is None or known[0]() is not model or len(known[1].inputs) != count:
            _check_raw(self.request, count)
            header = _read_header(self.request, model)
            known = self._validated = ref(model), header, GrpcForm(header.options, raw=True)
        return known[1], known[2]


@dataclass(frozen=True, slots=True)
class Opened:
    """A message, split into its envelope and its raw tensors.

    Attributes:
        envelope: The envelope.
        raw: The raw tensors; empty for a request with typed contents.
    """

    envelope: Envelope
    raw: list[Body]

    def read(self, model: DescribedModel, deadline_us: int) -> tuple[InferenceRequest, GrpcForm]:
        """Decode the message.

        Args:
            model: The model of the request.
            deadline_us: Time until the client's deadline; 0 for no limit.

        Raises:
            InvalidRequestError: The request is invalid; the message names the place and the rule.
        """
        request = self.envelope.request
        feeds: dict[str, Array] = {}
        if self.raw:
            header, form = self.envelope.validated(model, len(self.raw))
            for item, data in zip(header.inputs, self.raw, strict=True):
                feeds[item.spec.name] = binary.from_bytes(data, 0, len(data), item.spec, item.shape)
        else:
            header = _read_header(request, model)
            for item, tensor in zip(header.inputs, request.inputs, strict=True):
                feeds[item.spec.name] = array_of(tensor.contents, item.spec, item.shape)
            given = request.parameters
            as_raw = "binary_data_output" in given and given["binary_data_output"].bool_param
            form = GrpcForm(header.options, as_raw)
        options, timeout_us = header.options, deadline_us
        if options.timeout_us and (not deadline_us or options.timeout_us < deadline_us):
            timeout_us = options.timeout_us
        return prepare(model, feeds, options.output_names, options.priority, timeout_us), form


class Reader:
    """Message parser; caches the envelopes of raw requests, which clients repeat."""

    def __init__(self) -> None:
        self._envelopes: dict[bytes, Envelope] = {}

    def open(self, message: Body) -> Opened:
        """Parse a ``ModelInferRequest``.

        Raises:
            InvalidRequestError: The bytes are not a valid message.
        """
        parts = split(message)
        envelope = None if parts is None else self._envelope(parts[0])
        if parts is None or envelope is None:
            request = parse(ModelInferRequest, message)
            raw: list[Body] = list(request.raw_input_contents)
            request.ClearField("raw_input_contents")
            return Opened(Envelope(request), raw)
        return Opened(envelope, parts[1])

    def _envelope(self, text: bytes) -> Envelope | None:
        """The envelope of raw tensors; None if it is invalid, which an error about the whole message tells."""
        envelope = self._envelopes.get(text)
        if envelope is None:
            try:
                envelope = Envelope(parse(ModelInferRequest, text))
            except InvalidRequestError:
                return None
            if len(self._envelopes) >= MAX_HEADERS:
                self._envelopes.clear()
            self._envelopes[text] = envelope
        return envelope


def _read_header(request: Any, model: DescribedModel) -> JsonHeader:
    """All of a message but its tensors, validated like the JSON header of HTTP."""
    if not request.inputs:
        names = ", ".join(model.input_by_name)
        raise InvalidRequestError(f"the request has no inputs; model {model.name!r} has: {names}")
    document: dict[str, Any] = {
        "inputs": [_input(item) for item in request.inputs],
        # Applies to outputs without typed contents, too: the form of the request decides the form of the response.
        "parameters": {"binary_data_output": True, **_parameters(request.parameters)},
    }
    if request.id:
        document["id"] = request.id
    if request.outputs:
        document["outputs"] = [
            {"name": item.name, "parameters": _parameters(item.parameters)} for item in request.outputs
        ]
    return read_header(model, document)


def _check_raw(request: Any, count: int) -> None:
    inputs = request.inputs
    if count != len(inputs):
        raise InvalidRequestError(
            f"raw_input_contents has {count} tensors, but the request has {len(inputs)} inputs; give one per input"
        )
    for item in inputs:
        if item.HasField("contents"):
            raise InvalidRequestError(
                f"input {item.name[:40]!r} has contents, but the request has raw_input_contents; use one form"
            )


def _input(item: Any) -> dict[str, Any]:
    """An input in the JSON form of HTTP, without its values."""
    parameters = _parameters(item.parameters)
    parameters[_SIZE] = 0  # the values are separate; their decoder checks their number
    return {"name": item.name, "datatype": item.datatype, "shape": list(item.shape), "parameters": parameters}


def _parameters(found: Any) -> dict[str, Any]:
    """Parameters as JSON values; those without a value are null."""
    parameters = {}
    for name, parameter in found.items():
        kind = parameter.WhichOneof("parameter_choice")
        parameters[name] = None if kind is None else getattr(parameter, kind)
    return parameters
