"""Decoding of gRPC messages into inference requests, by the rules of the protocol over HTTP."""

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from app.engine.codec import Body, binary
from app.engine.codec.described import DescribedModel
from app.engine.codec.model_codec import MOST_INLINE_BYTES, AnswerForm
from app.engine.codec.oip import MAX_HEAD_BYTES, MAX_HEADS
from app.engine.codec.oip_head import Head, read_head
from app.engine.codec.prepared import prepare
from app.engine.request import InferenceRequest
from app.errors import InvalidRequestError
from app.grpc.encoding import GrpcForm
from app.grpc.messages import ModelInferRequest, parse
from app.grpc.typed_contents import array_of
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

    def read(self, body: Body) -> tuple[InferenceRequest, AnswerForm]:
        """Decode the message; see ``Job``."""
        return Reader().read(parse(ModelInferRequest, bytes(body)), self.model, self.deadline_us)


def is_heavy(nbytes: int, model: DescribedModel) -> bool:
    """Whether decoding a message of this size may block a process for long; numbers are cheap to decode."""
    return nbytes > MOST_INLINE_BYTES and any(spec.datatype == "BYTES" for spec in model.inputs)


class Reader:
    """Message decoder; caches the parts around the tensors of raw requests, which clients repeat."""

    def __init__(self) -> None:
        self._heads: WeakKeyDictionary[DescribedModel, dict[bytes, Head]] = WeakKeyDictionary()

    def read(self, request: Any, model: DescribedModel, deadline_us: int) -> tuple[InferenceRequest, GrpcForm]:
        """Decode a ``ModelInferRequest``.

        Args:
            request: The message; its raw contents are removed from it.
            model: The model of the request.
            deadline_us: Time until the client's deadline; 0 for no limit.

        Raises:
            InvalidRequestError: The request is invalid; the message names the place and the rule.
        """
        raw: list[bytes] = list(request.raw_input_contents)
        feeds: dict[str, Array] = {}
        if raw:
            _check_raw(request)
            request.ClearField("raw_input_contents")
            head = self._raw_head(request, model)
            for item, data in zip(head.inputs, raw, strict=True):
                feeds[item.spec.name] = binary.from_bytes(data, 0, len(data), item.spec, item.shape)
            as_raw = True
        else:
            head = _read_head(request, model)
            for item, tensor in zip(head.inputs, request.inputs, strict=True):
                feeds[item.spec.name] = array_of(tensor.contents, item.spec, item.shape)
            given = request.parameters
            as_raw = "binary_data_output" in given and given["binary_data_output"].bool_param
        asked = head.asked
        limits_us = [limit for limit in (asked.timeout_us, deadline_us) if limit]
        prepared = prepare(model, feeds, asked.output_names, asked.priority, min(limits_us, default=0))
        return prepared, GrpcForm(asked, as_raw)

    def _raw_head(self, request: Any, model: DescribedModel) -> Head:
        key = request.SerializeToString()
        heads = self._heads.setdefault(model, {})
        head = heads.get(key)
        if head is None:
            head = _read_head(request, model)
            if len(key) <= MAX_HEAD_BYTES:
                if len(heads) >= MAX_HEADS:
                    heads.clear()
                heads[key] = head
        return head


def _read_head(request: Any, model: DescribedModel) -> Head:
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
    return read_head(model, document)


def _check_raw(request: Any) -> None:
    raw, inputs = request.raw_input_contents, request.inputs
    if len(raw) != len(inputs):
        raise InvalidRequestError(
            f"raw_input_contents has {len(raw)} tensors, but the request has {len(inputs)} inputs; give one per input"
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
