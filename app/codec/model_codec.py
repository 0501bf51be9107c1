"""All that reads requests and writes answers for one model."""

from functools import partial
from urllib.parse import parse_qsl

from app.calls import Call, Reply
from app.codec import Body, HeaderList, Headers, arrays, plain
from app.codec.oip import HEADER_LENGTH, Decoder
from app.codec.oip_answer import OipWriter
from app.codec.oip_head import Asked
from app.codec.plain import JSON_HEADER
from app.codec.prepared import prepare
from app.errors import InvalidRequestError, UnsupportedMediaTypeError
from app.model import Model
from app.results import Results

# Curl's -d says that its body is a form; nobody sends tensors as a form.
_JSON_TYPES = (b"application/json", b"", b"text/json", b"text/plain", b"application/x-www-form-urlencoded")


class ModelCodec:
    """Reads and writes for one model; what never changes from request to request is made once."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._plain_writer = plain.PlainWriter(model)
        self._oip_decoder = Decoder(model)
        self._oip_writer = OipWriter(model)
        # Nothing here may refer to the codec itself: a model that was replaced would wait for the collector.
        self._default_reply: Reply = partial(self._plain_writer.encode, None)

    def plain(self, headers: Headers, query: bytes, body: Body) -> Call:
        """Read a request of the plain API.

        Raises:
            InvalidRequestError, UnsupportedMediaTypeError: says what is wrong and what is expected.
        """
        model = self._model
        content_type = headers.get(b"content-type", b"")
        if content_type != b"application/json":
            content_type = content_type.partition(b";")[0].strip().lower()
        if content_type in _JSON_TYPES or content_type.endswith(b"+json"):
            call, top_k = plain.decode(model, body)
        elif content_type == arrays.OCTETS:
            call, top_k = prepare(model, arrays.from_octets(model, body), model.output_names), None
        elif content_type in arrays.NPY:
            call, top_k = prepare(model, arrays.from_npy(model, body), model.output_names), None
        else:
            shown = content_type.decode("latin-1")[:60]
            raise UnsupportedMediaTypeError(
                f"content-type {shown!r} is not supported; "
                "send application/json, application/octet-stream or application/x-npy"
            )
        output = None
        if query:
            top_k, output = self._query(query, top_k)
        form = arrays.wanted_form(headers.get(b"accept", b""))
        if form is not None:
            call.reply = self._binary_reply(call.output_names, form, output)
        else:
            call.reply = self._default_reply if top_k is None else partial(self._plain_writer.encode, top_k)
        return call

    def oip(self, headers: Headers, body: Body) -> Call:
        """Read a request of the Open Inference Protocol.

        Raises:
            InvalidRequestError: says what is wrong and what is expected.
        """
        call, asked = self._oip_decoder.decode(body, headers.get(HEADER_LENGTH))
        call.reply = partial(self._reply_oip, asked)
        call.priority, call.timeout_us = asked.priority, asked.timeout_us
        return call

    def _reply_oip(self, asked: Asked, results: Results, start: int, stop: int) -> tuple[HeaderList, bytes]:
        length, body = self._oip_writer.encode(results, start, stop, asked)
        if length is None:
            return [JSON_HEADER], body
        return [(b"content-type", arrays.OCTETS), (HEADER_LENGTH, b"%d" % length)], body

    def _binary_reply(self, names: tuple[str, ...], form: bytes, output: str | None) -> Reply:
        if output is None and len(names) != 1:
            raise InvalidRequestError(
                f"a binary answer holds one output; choose it with ?output=NAME: {', '.join(names)}"
            )
        index = 0 if output is None else names.index(output)
        datatype = self._model.output_by_name[names[index]].datatype
        as_npy = form in arrays.NPY

        def reply(results: Results, start: int, stop: int) -> tuple[HeaderList, bytes]:
            if as_npy:
                return [(b"content-type", arrays.NPY[0])], arrays.to_npy(results.values(index, start, stop))
            array = results.array(index, start, stop)
            shape = b",".join([b"%d" % size for size in array.shape])
            return [(b"content-type", arrays.OCTETS), (b"x-shape", shape)], arrays.to_octets(array, datatype)

        return reply

    def _query(self, query: bytes, given: int | None) -> tuple[int | None, str | None]:
        fields = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
        unknown = [name for name in fields if name not in ("top_k", "output")]
        if unknown:
            raise InvalidRequestError(f"unknown query parameter {unknown[0][:40]!r}; known: top_k, output")
        output = fields.get("output")
        if output is not None and output not in self._model.output_by_name:
            names = ", ".join(self._model.output_names)
            raise InvalidRequestError(f"model {self._model.name!r} has no output {output[:40]!r}; its outputs: {names}")
        if "top_k" not in fields:
            return given, output
        value = fields["top_k"]
        return plain.check_top_k(self._model, int(value) if value.isdecimal() and len(value) < 10 else value), output
