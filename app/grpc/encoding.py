"""Encoding of responses as gRPC messages, raw or typed like the request."""

from dataclasses import dataclass, field

from app.engine.codec import HeaderList, binary
from app.engine.codec.described import DescribedModel
from app.engine.codec.model_codec import OwnForm
from app.engine.codec.oip_header import ResponseOptions
from app.engine.codec.oip_response import classified
from app.engine.results import InferenceResult
from app.grpc.messages import ModelInferResponse
from app.grpc.typed_contents import FIELDS, contents_of
from app.grpc.wire import joined
from app.runtime.tensors import Array

_MAX_ENVELOPES = 64


@dataclass(frozen=True)
class GrpcForm(OwnForm):
    """Response format of a gRPC request.

    Attributes:
        options: The response options.
        raw: Whether tensors are bytes in ``raw_output_contents``; also true if one of them has no typed form.
    """

    options: ResponseOptions
    raw: bool
    _envelopes: dict[tuple[object, ...], bytes] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Responses without their tensors, by model and shapes: clients repeat requests."""

    def encode(self, model: DescribedModel, result: InferenceResult) -> tuple[HeaderList, bytes]:
        """Encode the response as a serialized ``ModelInferResponse``."""
        options = self.options
        tensors = [self._tensor(model, result, index) for index in range(len(options.output_names))]
        as_raw = self.raw or any(datatype not in FIELDS for datatype, _ in tensors)
        if not as_raw:
            return [], self._response(model, tensors, typed=True)
        key = (model.name, model.version, *[array.shape for _, array in tensors])
        envelope = self._envelopes.get(key)
        if envelope is None:
            envelope = self._response(model, tensors, typed=False)
            if len(self._envelopes) < _MAX_ENVELOPES:
                self._envelopes[key] = envelope
        return [], joined(envelope, [binary.to_bytes(array, datatype) for datatype, array in tensors])

    def _response(self, model: DescribedModel, tensors: list[tuple[str, Array]], *, typed: bool) -> bytes:
        """The serialized response; without the values of its tensors, unless they are typed."""
        response = ModelInferResponse(model_name=model.name, model_version=model.version)
        if self.options.id is not None:
            response.id = self.options.id
        for name, (datatype, array) in zip(self.options.output_names, tensors, strict=True):
            output = response.outputs.add(name=name, datatype=datatype, shape=array.shape)
            if typed:
                output.contents.CopyFrom(contents_of(array, datatype))
        return response.SerializeToString()  # type: ignore[no-any-return]

    def _tensor(self, model: DescribedModel, result: InferenceResult, index: int) -> tuple[str, Array]:
        options = self.options
        if options.classes[index]:
            return "BYTES", classified(model, result, index, options.classes[index])
        return model.output_by_name[options.output_names[index]].datatype, result.array(index)
