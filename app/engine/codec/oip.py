"""Inference requests of the Open Inference Protocol v2: JSON, binary tensors, raw mode."""

import typing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from app.engine.codec import Body, binary, numbers, table_json
from app.engine.codec.casting import cast
from app.engine.codec.described import DescribedModel
from app.engine.codec.oip_columns import PANDAS, read_columns
from app.engine.codec.oip_header import (
    EXPECTED,
    KEYS,
    Input,
    JsonHeader,
    ResponseOptions,
    content_type,
    read_header,
    read_options,
)
from app.engine.codec.prepared import prepare
from app.engine.codec.structure import LONG_BYTES, check_structure
from app.engine.codec.table import Table, table_of
from app.engine.codec.values import array_from_list, describe, parse_json
from app.engine.request import InferenceRequest
from app.errors import InvalidRequestError
from app.runtime.tensors import Array, TensorSpec

HEADER_LENGTH = b"inference-header-content-length"
MAX_HEADERS = 256
MAX_HEADER_BYTES = 2048
_MOST_DIGITS = 20


@dataclass
class Decoder:
    """Decodes requests for one model; caches JSON headers, which clients repeat."""

    model: DescribedModel
    _headers: dict[bytes, JsonHeader] = field(default_factory=dict)
    _table: Table | None = None

    def __post_init__(self) -> None:
        self._table = table_of(self.model)

    def decode(
        self, body: Body, header_length: bytes | None, max_rows: int
    ) -> tuple[InferenceRequest, ResponseOptions]:
        """Decode a request.

        Args:
            body: The whole body.
            header_length: The value of Inference-Header-Content-Length; None if the header is missing.
            max_rows: Maximum rows of a request.

        Raises:
            InvalidRequestError: The request is invalid; the message names the place and the rule.
        """
        if header_length is None:
            quick = self._quick(body)
            if quick is not None:
                return self._request(*quick)
            length = len(body)
        else:
            length = self._header_length(body, header_length)
            if length == 0:
                return self._raw(body)
        text = bytes(body[:length])
        header = self._headers.get(text) or self._read(text, max_rows)
        if not isinstance(header, JsonHeader):
            return self._request(*header)
        return self._request(self._feeds(header, body, length), header.options)

    def _request(self, feeds: dict[str, Array], options: ResponseOptions) -> tuple[InferenceRequest, ResponseOptions]:
        request = prepare(self.model, feeds, options.output_names, options.priority, options.timeout_us)
        return request, options

    def _header_length(self, body: Body, value: bytes) -> int:
        if not value.isdigit() or len(value) > _MOST_DIGITS or int(value) > len(body):
            shown = value.decode("latin-1")[:40]
            raise InvalidRequestError(
                f"Inference-Header-Content-Length is {shown!r}; "
                f"expected a number of bytes, at most the body's {len(body)}"
            )
        return int(value)

    def _read(self, text: bytes, max_rows: int) -> JsonHeader | tuple[dict[str, Array], ResponseOptions]:
        """Parse the JSON header; for tables, the whole request."""
        if len(text) > LONG_BYTES:
            if self._table is not None:
                table_json.check_size(text, len(self._table.columns), max_rows)
            else:
                check_structure(text, tuple(self.model.input_by_name.values()), len(self.model.outputs), max_rows)
        document = parse_json(text, EXPECTED)
        if isinstance(document, dict) and content_type(document, "the request") == PANDAS:
            options = read_options(self.model, document)
            return read_columns(self.model, self._table, document, nan=options.nan), options
        header = read_header(self.model, document, casts=True)
        # JSON headers with inline data are rarely repeated.
        if len(text) <= MAX_HEADER_BYTES and all(item.size is not None for item in header.inputs):
            if len(self._headers) >= MAX_HEADERS:
                self._headers.clear()
            self._headers[text] = header
        return header

    def _feeds(self, header: JsonHeader, body: Body, offset: int) -> dict[str, Array]:
        feeds: dict[str, Array] = {}
        for item in header.inputs:
            if item.size is None:
                feeds[item.spec.name] = _from_json(item, nan=header.options.nan)
                continue
            if offset + item.size > len(body):
                raise InvalidRequestError(
                    f"input {item.spec.name!r} has binary_data_size {item.size}; "
                    f"the body has {len(body) - offset} bytes left"
                )
            array = binary.from_bytes(body, offset, item.size, item.given or item.spec, item.shape)
            feeds[item.spec.name] = array if item.given is None else cast(array, item.spec)
            offset += item.size
        if offset != len(body):
            raise InvalidRequestError(f"the body has {len(body) - offset} bytes after its last tensor")
        return feeds

    def _raw(self, body: Body) -> tuple[InferenceRequest, ResponseOptions]:
        model = self.model
        if len(model.inputs) != 1:
            raise InvalidRequestError(f"raw binary requires one input; model {model.name!r} has {len(model.inputs)}")
        feeds = raw_feeds(model, body)
        names = model.output_names
        options = ResponseOptions(names, (True,) * len(names), (0,) * len(names))
        return self._request(feeds, options)

    def _quick(self, body: Body) -> tuple[dict[str, Array], ResponseOptions] | None:
        """Decode by the fast path of ``numbers``; None for a body that the precise path must decode or refuse."""
        document = numbers.parse(body)
        if document is None:
            return None
        inputs = document.get("inputs")
        if not isinstance(inputs, numbers.List) or len(inputs) != len(self.model.inputs):
            return None
        rest: dict[str, Any] = {}
        inputs_seen = False
        for key in document:
            if key not in KEYS or key in rest or (key == "inputs" and inputs_seen):
                return None
            if key == "inputs":
                inputs_seen = True
            else:
                value = document[key]
                rest[key] = value.as_dict() if isinstance(value, numbers.Document) else value
                if isinstance(value, numbers.List):
                    rest[key] = value.as_list()
        lists = 1 + ("outputs" in rest)
        feeds: dict[str, Array] = {}
        for item in inputs:
            found = _quick_input(self.model, item)
            if found is None or found[0] in feeds:
                return None
            feeds[found[0]] = found[1]
            lists += found[2]
        if numbers.brackets(body, lists) != lists:
            return None
        return feeds, read_options(self.model, rest)


def raw_feeds(model: DescribedModel, body: Body) -> dict[str, Array]:
    """Decode the only input of a model from raw bytes; their number determines the one dynamic dimension.

    Raises:
        InvalidRequestError: The number of bytes is not a multiple of a row.
    """
    spec = model.inputs[0]
    dynamic = [index for index, size in enumerate(spec.shape) if size is None]
    if spec.any_rank:
        raise InvalidRequestError(f"raw binary has no shape, which input {spec.name!r} requires; send .npy or JSON")
    if len(dynamic) > 1:
        raise InvalidRequestError(
            f"raw binary allows at most one dynamic dimension; input {spec.name!r} has the shape {spec.readable_shape}"
        )
    if spec.datatype == "BYTES":
        one = (1,) * len(spec.shape)
        if not spec.accepts(one):
            raise InvalidRequestError(
                f"raw binary is a single string; input {spec.name!r} has the shape {spec.readable_shape}"
            )
        array = np.empty(1, dtype=object)
        array[0] = binary.text(body, spec)
        return {spec.name: array.reshape(one)}
    unit = spec.dtype.itemsize * binary.element_count(tuple(size for size in spec.shape if size is not None))
    if not body or (unit and len(body) % unit) or (not dynamic and len(body) != unit):
        noun = "a multiple of " if dynamic else ""
        raise InvalidRequestError(
            f"the body has {len(body)} bytes; input {spec.name!r} ({spec.datatype} {spec.readable_shape}) "
            f"needs {noun}{unit}"
        )
    count = len(body) // unit if unit else 0
    shape = tuple(count if size is None else size for size in spec.shape)
    return {spec.name: binary.from_bytes(body, 0, len(body), spec, shape)}


def _quick_input(model: DescribedModel, item: Any) -> tuple[str, Array, int] | None:
    """An input with only name, shape, datatype and data: its name, its tensor, and its number of lists."""
    if not isinstance(item, numbers.Document) or len(item) != 4:
        return None
    name, data, sizes = item.get("name"), item.get("data"), item.get("shape")
    spec = model.input_by_name.get(name) if isinstance(name, str) else None
    if (
        spec is None
        or spec in model.optional_inputs
        or item.get("datatype") != spec.datatype
        or not isinstance(sizes, numbers.List)
    ):
        return None
    shape: tuple[Any, ...] = tuple(typing.cast("list[Any]", sizes.as_list()))
    if not all(type(size) is int for size in shape) or not spec.accepts(shape):
        return None
    found = _quick_data(data, spec, shape)
    return None if found is None else (spec.name, found[0], found[1] + 1)


def _quick_data(data: Any, spec: TensorSpec, shape: tuple[int, ...]) -> tuple[Array, int] | None:
    if not isinstance(data, numbers.List) or not len(data):
        return None
    first: object = data[0]
    if isinstance(first, numbers.List):
        found = numbers.nested(data, spec)
        return found if found is not None and found[0].shape == shape else None
    array = numbers.flat(data, spec)
    if array is None or array.size != binary.element_count(shape) or array.size != len(data):
        return None
    return array.reshape(shape), 1


def _from_json(item: Input, *, nan: bool) -> Array:
    spec, where = item.spec, f"inputs.{item.spec.name}.data"
    flat: list[Any] = []
    if not isinstance(item.data, list):
        if item.shape or isinstance(item.data, dict):
            raise InvalidRequestError(f"{where} is {describe(item.data)}; expected a list")
        flat = [item.data]
    elif item.data and isinstance(item.data[0], list):
        _flatten(item.data, item.shape, 0, where, flat)
    else:
        flat = item.data
        expected = binary.element_count(item.shape)
        if len(flat) != expected:
            raise InvalidRequestError(f"{where} has {len(flat)} values; shape {list(item.shape)} takes {expected}")
    if item.given is not None and spec.dtype.kind in "iu":
        flat = [int(value) if isinstance(value, float) and value.is_integer() else value for value in flat]
    elif item.given is not None and item.given.datatype == "BOOL" and spec.datatype != "BOOL":
        flat = [int(value) if isinstance(value, bool) else value for value in flat]
    return array_from_list(flat, spec, where, nan=nan).reshape(item.shape)


def _flatten(value: Any, shape: tuple[int, ...], depth: int, where: str, flat: list[Any]) -> None:
    if not isinstance(value, list) or depth >= len(shape) or len(value) != shape[depth]:
        found = f"{len(value)} values" if isinstance(value, list) else describe(value)
        wanted = f"{shape[depth]} values" if depth < len(shape) else "a single value"
        raise InvalidRequestError(f"{where} has {found}; shape {list(shape)} requires {wanted}")
    if depth == len(shape) - 1:
        flat.extend(value)
        return
    for position, item in enumerate(value):
        _flatten(item, shape, depth + 1, f"{where}[{position}]", flat)
