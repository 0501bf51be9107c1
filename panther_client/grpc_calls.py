"""Calls over gRPC by the Open Inference Protocol; requires protobuf.

``inference.binpb`` holds the message descriptors; ``scripts/grpc-messages`` writes it. Their pool is private, because
another client in the process may register messages of the same names.
"""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from panther_client import wire
from panther_client.calls import Call, InferOptions, Reply
from panther_client.errors import InvalidRequestError, ServerError
from panther_client.wire import Array, InferResult, PredictResult

_POOL = descriptor_pool.DescriptorPool()
for _file in descriptor_pb2.FileDescriptorSet.FromString(
    files("panther_client").joinpath("inference.binpb").read_bytes()
).file:
    _POOL.Add(_file)
_TYPED = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class GrpcCalls:
    """See ``Calls``."""

    def metadata(self, model: str, version: str | None) -> Call:
        """See ``Calls``."""
        request = _message("ModelMetadataRequest", name=model, version=version or "")
        return _call("ModelMetadata", request, _metadata)

    def infer(self, metadata: Any, model: str, version: str | None, inputs: Any, options: InferOptions) -> Call:
        """See ``Calls``."""
        request = _message("ModelInferRequest", model_name=model, model_version=version or "")
        if options.request_id is not None:
            request.id = options.request_id
        if options.priority is not None:
            request.parameters["priority"].int64_param = options.priority
        if options.timeout_us is not None:
            request.parameters["timeout"].int64_param = options.timeout_us
        for name in options.outputs or ():
            request.outputs.add(name=name)
        for spec, array in wire.matched(metadata, inputs):
            request.inputs.add(name=spec["name"], datatype=spec["datatype"], shape=array.shape)
            try:
                request.raw_input_contents.append(wire.to_bytes(array, spec["datatype"]))
            except UnicodeError as error:
                raise InvalidRequestError(f"input {spec['name']!r} holds text that is not UTF-8: {error}") from None
        return _call("ModelInfer", request, _result)

    def needs_metadata(self) -> bool:
        """Predictions for an array or a table, which becomes tensors here."""
        return True

    def predict(self, metadata: Any, model: str | None, version: str | None, inputs: Any, top_k: int | None) -> Call:
        """See ``Calls``."""
        if top_k is not None:
            raise InvalidRequestError("top_k requires HTTP: the gRPC protocol has no labels")
        call = self.infer(metadata, model or "", version, _tensors(metadata, inputs), InferOptions())

        def read(reply: Reply) -> PredictResult:
            found: InferResult = call.read(reply)
            return PredictResult(found.model_name, found.model_version or "", found.outputs)

        return Call(call.verb, call.path, read, content=call.content)

    def ready(self) -> Call:
        """See ``Calls``."""
        return _call("ServerReady", _message("ServerReadyRequest"), lambda answer: answer.ready)

    def models(self) -> Call:
        """See ``Calls``."""
        request = _message("RepositoryIndexRequest", ready=True)
        return _call("RepositoryIndex", request, lambda answer: _document(answer)["models"])

    def stats(self, model: str | None) -> Call:
        """See ``Calls``."""
        return _call("ModelStatistics", _message("ModelStatisticsRequest", name=model or ""), _document)

    def control(self, action: str, model: str) -> Call:
        """See ``Calls``."""
        name = f"RepositoryModel{action.capitalize()}"
        return _call(name, _message(f"{name}Request", model_name=model), lambda _: None, repeatable=False)


def _message(kind: str, /, **fields: Any) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"inference.{kind}"))(**fields)


def _call(method: str, request: Any, read: Any, *, repeatable: bool = True) -> Call:
    kind = type(_message(f"{method}Response"))

    def parse(reply: Reply) -> Any:
        try:
            answer = kind.FromString(reply.body)
        except DecodeError:
            raise ServerError(f"the response of {len(reply.body)} bytes is not a valid {method}Response") from None
        return read(answer)

    content = request.SerializeToString()
    return Call("", f"/inference.GRPCInferenceService/{method}", parse, content=content, repeatable=repeatable)


def _document(answer: Any) -> Any:
    return json_format.MessageToDict(
        answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _metadata(answer: Any) -> dict[str, Any]:
    """A model's metadata in the JSON form of HTTP."""

    def specs(tensors: Any) -> list[dict[str, Any]]:
        return [{"name": each.name, "datatype": each.datatype, "shape": list(each.shape)} for each in tensors]

    return {
        "name": answer.name,
        "versions": list(answer.versions),
        "platform": answer.platform,
        "inputs": specs(answer.inputs),
        "outputs": specs(answer.outputs),
    }


def _tensors(metadata: Any, inputs: Any) -> Any:
    """Arrays as given; a table as one column per input."""
    if isinstance(inputs, str):
        raise InvalidRequestError("CSV requires HTTP; over gRPC, send the columns or an array")
    table = wire.columns_of(inputs)
    if isinstance(table, list) and table and isinstance(table[0], Mapping):
        names = list(table[0])
        if any(not isinstance(row, Mapping) or list(row) != names for row in table):
            raise InvalidRequestError("each row of the table must have the columns of the first row, in the same order")
        table = {name: [row[name] for row in table] for name in names}
    if not isinstance(table, Mapping):
        return table
    ranks = {spec["name"]: len(spec["shape"]) for spec in metadata["inputs"]}
    if set(table) != set(ranks):
        raise InvalidRequestError(
            f"over gRPC a table must have a column per input: {', '.join(ranks)}; it has {', '.join(map(str, table))}"
        )
    arrays = {name: np.asarray(column) for name, column in table.items()}
    return {
        name: array.reshape(-1, 1) if array.ndim == 1 and ranks[name] == 2 else array for name, array in arrays.items()
    }


def _result(answer: Any) -> InferResult:
    outputs: dict[str, Array] = {}
    raw = list(answer.raw_output_contents)
    if raw and len(raw) != len(answer.outputs):
        raise ServerError(f"the response has {len(answer.outputs)} outputs, but the bytes of {len(raw)}")
    for number, tensor in enumerate(answer.outputs):
        shape = list(tensor.shape)
        if raw:
            outputs[tensor.name] = wire.from_bytes(raw[number], tensor.datatype, shape)
        else:
            outputs[tensor.name] = _typed(tensor, shape)
    parameters = {name: getattr(value, value.WhichOneof("parameter_choice") or "string_param")
                  for name, value in answer.parameters.items()}  # fmt: skip
    return InferResult(answer.model_name, answer.model_version or None, outputs, answer.id or None, parameters)


def _typed(tensor: Any, shape: list[int]) -> Array:
    """A tensor in typed fields, the form that some servers send."""
    try:
        values = getattr(tensor.contents, _TYPED[tensor.datatype])
        return np.array(values, wire.DTYPES[tensor.datatype]).reshape(shape)
    except (KeyError, ValueError, OverflowError) as error:
        raise ServerError(f"the response holds an invalid tensor ({tensor.datatype}, {shape}): {error}") from None
