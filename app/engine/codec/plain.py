"""The plain API: ``{"inputs": …}`` in requests; outputs by name and labelled predictions in responses."""

from typing import Any

import numpy as np
import orjson

from app.engine.codec import Body, HeaderList, numbers, table_json
from app.engine.codec.described import DescribedModel
from app.engine.codec.prepared import prepare
from app.engine.codec.structure import LONG_BYTES, check_structure
from app.engine.codec.table import Table
from app.engine.codec.values import array_from_json, describe, example, parse_json
from app.engine.request import InferenceRequest
from app.engine.results import InferenceResult
from app.errors import InvalidRequestError
from app.runtime.tensors import Array

MAX_TOP_K = 1000
JSON_HEADER = (b"content-type", b"application/json")
_KEYS = ("inputs", "outputs", "top_k")


def expected_body(model: DescribedModel) -> str:
    """Describe the expected body, for an error message."""
    if len(model.inputs) == 1:
        return f'{{"inputs": {example(model.inputs[0])}}}'
    inside = ", ".join(f'"{spec.name}": {example(spec)}' for spec in model.inputs)
    return f'{{"inputs": {{{inside}}}}}'


def decode(
    model: DescribedModel, body: Body, max_rows: int, *, nan: bool = False, table: Table | None = None
) -> tuple[InferenceRequest, int | None]:
    """Decode a JSON body.

    Args:
        model: The model of the request.
        table: Its columns, if it takes rows of a table.
        body: The whole body.
        max_rows: Maximum rows of a request.
        nan: Whether to accept NaN and infinities.

    Returns:
        The request, and the number of labels per row; None for the most likely label.

    Raises:
        InvalidRequestError: The body is invalid; the message names the place and the rule.
    """
    feeds = _quick(model, body)
    if feeds is not None:
        return prepare(model, feeds, model.signature.output_names), None
    return _precise(model, body, max_rows, table, nan=nan)


def _quick(model: DescribedModel, body: Body) -> dict[str, Array] | None:
    """The inputs by the fast path of ``numbers``; None for a body that the precise path must decode or refuse."""
    document = numbers.parse(body)
    if document is None or len(document) != 1:
        return None
    value, inputs = document.get("inputs"), model.signature.inputs
    by_name = value if isinstance(value, numbers.Document) else None
    if len(inputs) != (1 if by_name is None else len(by_name)):
        return None
    feeds: dict[str, Array] = {}
    lists = 0
    for spec in inputs:
        found = numbers.nested(value if by_name is None else by_name.get(spec.name), spec)
        if found is None:
            return None
        feeds[spec.name] = found[0]
        lists += found[1]
    return feeds if numbers.brackets(body, lists) == lists else None


def _precise(
    model: DescribedModel, body: Body, max_rows: int, table: Table | None = None, *, nan: bool
) -> tuple[InferenceRequest, int | None]:
    """Decode by the precise path of ``values``, which takes every valid body; see ``decode``."""
    expected = expected_body(model)
    if len(body) > LONG_BYTES:
        if table is not None:
            table_json.check_size(body, len(table.columns), max_rows)
        else:
            check_structure(body, tuple(model.input_by_name.values()), len(model.outputs), max_rows, texts=nan)
    document = parse_json(body, expected)
    if table_json.is_whole_table(document):
        feeds = table_json.read_table(document, model, table, "", nan=nan)
        return prepare(model, feeds, model.output_names), None
    if not isinstance(document, dict):
        raise InvalidRequestError(f"the body is {describe(document)}; expected {expected}")
    for key in document:
        if key not in _KEYS:
            raise InvalidRequestError(f"unknown key {key[:40]!r}; known: {', '.join(_KEYS)}; expected {expected}")
    if "inputs" not in document:
        raise InvalidRequestError(f"the key 'inputs' is missing; expected {expected}")
    inputs = document["inputs"]
    if table_json.is_table(inputs, model, table):
        feeds = table_json.read_table(inputs, model, table, "inputs", nan=nan)
    else:
        feeds = _feeds(model, inputs, expected, nan=nan)
    output_names = _output_names(model, document.get("outputs"))
    return prepare(model, feeds, output_names), check_top_k(model, document.get("top_k"))


def _feeds(model: DescribedModel, inputs: Any, expected: str, *, nan: bool) -> dict[str, Array]:
    if isinstance(inputs, dict):
        for key in inputs:
            if key not in model.input_by_name:
                names = ", ".join(model.input_by_name)
                raise InvalidRequestError(f"model {model.name!r} has no input {key[:40]!r}; its inputs: {names}")
        for spec in model.inputs:
            if spec.name not in inputs:
                raise InvalidRequestError(f"input {spec.name!r} is missing; expected {expected}")
        return {
            name: array_from_json(inputs[name], spec, f"inputs.{name}", nan=nan)
            for name, spec in model.input_by_name.items()
            if name in inputs
        }
    if len(model.inputs) != 1:
        count = "several inputs" if model.inputs else "no inputs"
        raise InvalidRequestError(
            f"'inputs' is {describe(inputs)}; model {model.name!r} has {count}: expected {expected}"
        )
    spec = model.inputs[0]
    return {spec.name: array_from_json(inputs, spec, "inputs", nan=nan)}


def _output_names(model: DescribedModel, wanted: Any) -> tuple[str, ...]:
    if wanted is None:
        return model.output_names
    if not isinstance(wanted, list) or not wanted:
        raise InvalidRequestError(
            f"'outputs' is {describe(wanted)}; expected a list of names: {', '.join(model.output_names)}"
        )
    for name in wanted:
        if not isinstance(name, str) or name not in model.output_by_name:
            shown = describe(name)
            raise InvalidRequestError(
                f"'outputs' has {shown}; model {model.name!r} has: {', '.join(model.output_names)}"
            )
    return tuple(dict.fromkeys(wanted))


def check_top_k(model: DescribedModel, value: Any) -> int | None:
    """The value of ``top_k``; None if it is missing.

    Raises:
        InvalidRequestError: The value is out of range, or the model has no labels.
    """
    if value is None:
        return None
    if type(value) is not int or not 1 <= value <= MAX_TOP_K:
        raise InvalidRequestError(f"'top_k' is {describe(value)}; expected an integer from 1 to {MAX_TOP_K}")
    if model.labelled is None:
        raise InvalidRequestError(f"'top_k' requires labels, but the card of model {model.name!r} has none")
    return value


class PlainWriter:
    """Encoder of plain responses for one model; constant parts are prepared once."""

    def __init__(self, model: DescribedModel) -> None:
        self._head = b'{"model":%s,"version":%s,"outputs":{' % (orjson.dumps(model.name), orjson.dumps(model.version))
        self._names = {name: orjson.dumps(name) + b":" for name in model.output_names}
        labels = model.labelled.labels if model.labelled is not None else None
        self._labels = [orjson.dumps(label) for label in labels or ()]
        self._predictions = [b'{"label":' + label + b',"probability":' for label in self._labels]

    def encode(self, top_k: int | None, result: InferenceResult) -> tuple[HeaderList, bytes]:
        """The JSON response to one request: headers and body."""
        batch, start, stop = result.batch, result.start, result.stop
        names = batch.output_names
        parts = [self._head, self._names[names[0]], batch.nested_json(0, start, stop)]
        for index in range(1, len(names)):
            parts += (b",", self._names[names[index]], batch.nested_json(index, start, stop))
        heads = self._predictions
        own = slice(None) if batch.whole else slice(start, stop)
        if not heads:
            rows = []
        elif top_k is None:
            rows = [heads[label] + probability + b"}" for label, probability in batch.best()[own]]
        else:
            rows = self._ranked(batch.probabilities, own, top_k)
        if rows or (heads and start == stop and batch.probabilities is not None):
            parts += (b'},"predictions":[', b",".join(rows), b"]}")
        else:
            parts.append(b"}}")
        return [JSON_HEADER], b"".join(parts)

    def _ranked(self, whole: Array | None, own: slice, top_k: int) -> list[bytes]:
        if whole is None:
            return []
        probabilities = whole[own]
        top = min(top_k, probabilities.shape[1])
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        rows = []
        for row, labels in zip(probabilities, order, strict=True):
            texts = orjson.dumps(np.ascontiguousarray(row[labels]), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")
            items = [self._predictions[label] + text + b"}" for label, text in zip(labels, texts, strict=True)]
            rows.append(items[0][:-1] + b',"top_k":[' + b",".join(items) + b"]}")
        return rows
