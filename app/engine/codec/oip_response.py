"""Responses of the Open Inference Protocol v2."""

import numpy as np
import orjson

from app.engine.codec import binary
from app.engine.codec.content import LONG_BYTES, Content, LongContent, long_view
from app.engine.codec.described import DescribedModel
from app.engine.codec.oip_header import ResponseOptions
from app.engine.results import InferenceResult
from app.runtime.tensors import Array

_MAX_HEADERS = 1024


class OipWriter:
    """Encodes responses of one model."""

    def __init__(self, model: DescribedModel) -> None:
        self._model = model
        self._header = b'{"model_name":%s,"model_version":%s' % (orjson.dumps(model.name), orjson.dumps(model.version))
        self._names = {
            spec.name: b'{"name":%s,"datatype":"%s","shape":' % (orjson.dumps(spec.name), spec.datatype.encode())
            for spec in model.outputs
        }
        self._headers: dict[tuple[str, tuple[int, ...]], bytes] = {}  # JSON headers for one binary tensor, by its shape

    def encode(self, result: InferenceResult, options: ResponseOptions) -> tuple[int | None, Content]:
        """Encode the response to one request.

        Returns:
            The length of the JSON header (None if all is JSON), and the body.
        """
        batch, start, stop = result.batch, result.start, result.stop
        if options.binary == (True,) and options.classes == (0,) and options.id is None:
            return self._one_binary(options.output_names[0], batch.array(0, start, stop), batch.arrays[0].nbytes)
        outputs: list[bytes] = []
        tails: list[bytes] = []
        for index, name in enumerate(options.output_names):
            if options.classes[index]:
                array = classified(self._model, result, index, options.classes[index])
                text = b'{"name":%s,"datatype":"BYTES","shape":' % orjson.dumps(name)
                flat, datatype = orjson.dumps(array.reshape(-1).tolist()), "BYTES"
            else:
                array = batch.array(index, start, stop)
                text, flat, datatype = self._names[name], None, self._model.output_by_name[name].datatype
            if options.binary[index]:
                tail = binary.to_bytes(array, datatype)
                tails.append(tail)
                outputs.append(text + _shape_and_size(array, tail))
            else:
                data = flat or batch.flat_json(index, start, stop)
                outputs.append(text + _shape(array) + b',"data":' + data + b"}")
        identity = b"" if options.id is None else b',"id":' + orjson.dumps(options.id)
        header = self._header + identity + b',"outputs":[' + b",".join(outputs) + b"]}"
        return (len(header), b"".join((header, *tails))) if not options.all_json else (None, header)

    def _one_binary(self, name: str, array: Array, batch_bytes: int) -> tuple[int, Content]:
        """Encode one binary tensor. The JSON header depends only on its shape, unless its elements differ in length."""
        datatype = self._model.output_by_name[name].datatype
        view = None if array.nbytes < LONG_BYTES or datatype == "BYTES" else long_view(array, batch_bytes)
        tail = binary.to_bytes(array, datatype) if view is None else view
        header = self._headers.get((name, array.shape))
        if header is None:
            header = self._header + b',"outputs":[' + self._names[name] + _shape_and_size(array, tail) + b"]}"
            if datatype != "BYTES" and len(self._headers) < _MAX_HEADERS:
                self._headers[name, array.shape] = header
        return len(header), header + tail if view is None else LongContent(header, (view,))


def classified(model: DescribedModel, result: InferenceResult, index: int, count: int) -> Array:
    """The ``count`` largest values along the last axis, as strings ``value:index`` or ``value:index:label``."""
    batch = result.batch
    values = batch.values(index, result.start, result.stop)
    labelled = model.labelled
    labels = labelled.labels if labelled is not None and labelled.name == batch.output_names[index] else None
    values = np.atleast_1d(values)  # a scalar is a list of one value
    # Invert the bits of integers: float64 cannot distinguish large ones, and the smallest has no negative.
    descending = np.invert(values) if values.dtype.kind in "iu" else -values.astype(np.float64)
    order = np.argsort(descending, axis=-1, kind="stable")[..., : min(count, values.shape[-1])]
    texts = np.empty(order.shape, dtype=object)
    for place in np.ndindex(order.shape):
        best = int(order[place])
        value = values[(*place[:-1], best)]
        text = f"{value:d}:{best}" if values.dtype.kind in "iu" else f"{value:f}:{best}"
        texts[place] = f"{text}:{labels[best]}" if labels else text
    return texts


def _shape(array: Array) -> bytes:
    return b"[" + b",".join([b"%d" % size for size in array.shape]) + b"]"


def _shape_and_size(array: Array, tail: bytes | memoryview) -> bytes:
    return _shape(array) + b',"parameters":{"binary_data_size":%d}}' % len(tail)
