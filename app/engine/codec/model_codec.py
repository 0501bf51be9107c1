"""Codec of one model: decodes its requests, and encodes its results."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from urllib.parse import parse_qsl

from app.engine.codec import Api, Body, HeaderList, Headers, arrays, plain, predict_v1
from app.engine.codec.content import Content
from app.engine.codec.csv_form import CSV, CsvResponse, read_csv
from app.engine.codec.described import DescribedModel
from app.engine.codec.oip import HEADER_LENGTH, Decoder
from app.engine.codec.oip_header import ResponseOptions
from app.engine.codec.oip_response import OipWriter
from app.engine.codec.plain import JSON_HEADER
from app.engine.codec.predict_v1 import V1Response
from app.engine.codec.prepared import prepare
from app.engine.codec.table import table_of
from app.engine.request import InferenceRequest
from app.engine.results import InferenceResult
from app.errors import InvalidRequestError, UnsupportedMediaTypeError

# The -d option of curl declares the body as a form; no client sends tensors as a form.
_JSON_TYPES = (b"application/json", b"", b"text/json", b"text/plain", b"application/x-www-form-urlencoded")
_BINARY_TYPES = (arrays.OCTETS, *arrays.NPY)
MOST_INLINE_BYTES = 1 << 20
"""A longer body is decoded by another process, unless it holds binary tensors, which are cheap to decode."""
_MOST_DIGITS = 20


Encode = Callable[[InferenceResult], tuple[HeaderList, Content]]
"""Encodes the response to one request: headers and body."""


@dataclass(frozen=True, slots=True)
class BinaryResponse:
    """Format of one output in binary form.

    Attributes:
        form: Content type.
        index: Index of the output, among the computed outputs.
    """

    form: bytes
    index: int


class OwnForm(ABC):
    """Format of a response that a transport encodes; may be pickled."""

    @abstractmethod
    def encode(self, model: DescribedModel, result: InferenceResult) -> tuple[HeaderList, bytes]:
        """Encode the response to one request: headers and body."""


ResponseForm = int | None | BinaryResponse | CsvResponse | V1Response | ResponseOptions | OwnForm
"""Format of the response: JSON with a number of labels per row (None: the most likely), binary, CSV,
KServe v1, Open Inference Protocol over HTTP, or the format of another transport."""


_PARAMETERS = ("top_k", "output", "nan")


def _allows_nan(query: bytes) -> bool:
    """Whether a query string allows NaN and infinities."""
    value = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)).get("nan", "refuse")
    if value not in ("allow", "refuse"):
        raise InvalidRequestError(f"query parameter nan is {value[:40]!r}; expected allow or refuse")
    return value == "allow"


class ModelCodec:
    """Decoder and encoder for one model; constant parts are prepared once.

    Args:
        model: The model.
        max_rows: Maximum rows of a request.
    """

    def __init__(self, model: DescribedModel, max_rows: int) -> None:
        self._model = model
        self._max_rows = max_rows
        self._table = table_of(model)
        self._plain_writer = plain.PlainWriter(model)
        self._oip_decoder = Decoder(model)
        self._oip_writer = OipWriter(model)
        # The format must not refer to the codec: a replaced model would stay in memory until a garbage collection.
        self._default_encode: Encode = partial(self._plain_writer.encode, None)

    def is_heavy(self, headers: Headers, body: Body, api: Api) -> bool:
        """Whether decoding may block a process for long, so another process should decode the request.

        Args:
            headers, body: Headers and body of the request; the body is not yet decompressed.
            api: API of the request.
        """
        size = len(body)
        if size <= MOST_INLINE_BYTES:
            return False
        if b"content-encoding" in headers or any(spec.datatype == "BYTES" for spec in self._model.inputs):
            return True
        if api == "oip":
            length = headers.get(HEADER_LENGTH, b"")
            return not length.isdigit() or len(length) > _MOST_DIGITS or int(length) > MOST_INLINE_BYTES
        return _content_type(headers) not in _BINARY_TYPES

    def read(self, headers: Headers, query: bytes, body: Body, api: Api) -> tuple[InferenceRequest, ResponseForm]:
        """Decode a request; neither the request nor the response format refers to the codec.

        Args:
            headers, query, body: Parts of the request.
            api: API of the request.

        Raises:
            InvalidRequestError, UnsupportedMediaTypeError: The request is invalid; the message names the rule.
        """
        if api == "plain":
            return self._read_plain(headers, query, body)
        if api == "oip":
            return self._read_oip(headers, body)
        return predict_v1.decode(self._model, self._table, body, self._max_rows)

    def encoder(self, request: InferenceRequest, form: ResponseForm) -> Encode:
        """Encoder for the result of a decoded request."""
        if form is None:
            return self._default_encode
        if isinstance(form, ResponseOptions):
            return partial(_encode_oip, self._oip_writer, form)
        if isinstance(form, int):
            return partial(self._plain_writer.encode, form)
        if isinstance(form, BinaryResponse):
            datatype = self._model.output_by_name[request.output_names[form.index]].datatype
            return partial(_encode_binary, form, datatype)
        return partial(form.encode, self._model)

    def _read_plain(self, headers: Headers, query: bytes, body: Body) -> tuple[InferenceRequest, ResponseForm]:
        model = self._model
        nan = bool(query) and _allows_nan(query)
        content_type = headers.get(b"content-type", b"")
        if content_type != b"application/json":
            content_type = _content_type(headers)
        if content_type in _JSON_TYPES or content_type.endswith(b"+json"):
            request, top_k = plain.decode(model, body, self._max_rows, nan=nan, table=self._table)
        elif content_type == arrays.OCTETS:
            request, top_k = prepare(model, arrays.from_octets(model, body, nan=nan), model.output_names), None
        elif content_type in arrays.NPY:
            request, top_k = prepare(model, arrays.from_npy(model, body, nan=nan), model.output_names), None
        elif content_type == CSV:
            feeds = read_csv(model, self._table, body, self._max_rows, nan=nan)
            request, top_k = prepare(model, feeds, model.output_names), None
        else:
            shown = content_type.decode("latin-1")[:60]
            raise UnsupportedMediaTypeError(
                f"content-type {shown!r} is not supported; "
                "send application/json, text/csv, application/octet-stream or application/x-npy"
            )
        output = None
        if query:
            top_k, output = self._query(query, top_k)
        accept = headers.get(b"accept")
        form = None if accept is None else arrays.wanted_form(accept)
        if form is None:
            return request, top_k
        if form == CSV:
            names = request.output_names
            return request, CsvResponse(tuple(range(len(names))) if output is None else (names.index(output),))
        return request, _binary_response(request.output_names, form, output)

    def _read_oip(self, headers: Headers, body: Body) -> tuple[InferenceRequest, ResponseForm]:
        return self._oip_decoder.decode(body, headers.get(HEADER_LENGTH), self._max_rows)

    def _query(self, query: bytes, given: int | None) -> tuple[int | None, str | None]:
        fields = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
        unknown = [name for name in fields if name not in _PARAMETERS]
        if unknown:
            known = ", ".join(_PARAMETERS)
            raise InvalidRequestError(f"unknown query parameter {unknown[0][:40]!r}; known: {known}")
        output = fields.get("output")
        if output is not None and output not in self._model.output_by_name:
            names = ", ".join(self._model.output_names)
            raise InvalidRequestError(f"model {self._model.name!r} has no output {output[:40]!r}; its outputs: {names}")
        if "top_k" not in fields:
            return given, output
        value = fields["top_k"]
        return plain.check_top_k(self._model, int(value) if value.isdecimal() and len(value) < 10 else value), output


def _content_type(headers: Headers) -> bytes:
    return headers.get(b"content-type", b"").partition(b";")[0].strip().lower()


def _binary_response(names: tuple[str, ...], form: bytes, output: str | None) -> BinaryResponse:
    if output is None and len(names) != 1:
        raise InvalidRequestError(f"a binary response has one output; choose it with ?output=NAME: {', '.join(names)}")
    return BinaryResponse(form, 0 if output is None else names.index(output))


def _encode_oip(writer: OipWriter, options: ResponseOptions, result: InferenceResult) -> tuple[HeaderList, Content]:
    length, body = writer.encode(result, options)
    if length is None:
        return [JSON_HEADER], body
    return [(b"content-type", arrays.OCTETS), (HEADER_LENGTH, b"%d" % length)], body


def _encode_binary(form: BinaryResponse, datatype: str, result: InferenceResult) -> tuple[HeaderList, bytes]:
    batch, start, stop = result.batch, result.start, result.stop
    if form.form in arrays.NPY:
        return [(b"content-type", arrays.NPY[0])], arrays.to_npy(batch.values(form.index, start, stop))
    array = batch.array(form.index, start, stop)
    shape = b",".join([b"%d" % size for size in array.shape])
    return [(b"content-type", arrays.OCTETS), (b"x-shape", shape)], arrays.to_octets(array, datatype)
