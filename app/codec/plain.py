"""The plain API: ``{"inputs": …}`` in, outputs by name and labelled predictions out."""

from typing import Any

import numpy as np
import orjson

from app.calls import Call
from app.codec import Body, HeaderList, numbers
from app.codec.prepared import prepare
from app.codec.values import array_from_json, describe, example, parse_json
from app.errors import InvalidRequestError
from app.model import Model
from app.results import Results
from app.tensors import Array

MAX_TOP_K = 1000
JSON_HEADER = (b"content-type", b"application/json")
_KEYS = ("inputs", "outputs", "top_k")


def expected_body(model: Model) -> str:
    """What a body looks like, for a message."""
    if len(model.inputs) == 1:
        return f'{{"inputs": {example(model.inputs[0])}}}'
    inside = ", ".join(f'"{spec.name}": {example(spec)}' for spec in model.inputs)
    return f'{{"inputs": {{{inside}}}}}'


def decode(model: Model, body: Body) -> tuple[Call, int | None]:
    """Read a JSON body.

    Returns:
        The call, and how many labels are wanted of each row; None where it is only the likeliest.

    Raises:
        InvalidRequestError: names what is wrong and what is expected.
    """
    feeds = _quick(model, body)
    if feeds is not None:
        return prepare(model, feeds, model.output_names), None
    return _precise(model, body)


def _quick(model: Model, body: Body) -> dict[str, Array] | None:
    document = numbers.parse(body)
    if document is None or len(document) != 1:
        return None
    value = document.get("inputs")
    if isinstance(value, numbers.List) and len(model.inputs) == 1:
        values: dict[str, object] = {model.inputs[0].name: value}
    elif isinstance(value, numbers.Document) and len(value) == len(model.inputs):
        values = {spec.name: value.get(spec.name) for spec in model.inputs}
    else:
        return None
    feeds: dict[str, Array] = {}
    lists = 0
    for spec in model.inputs:
        found = numbers.nested(values[spec.name], spec)
        if found is None:
            return None
        feeds[spec.name] = found[0]
        lists += found[1]
    return feeds if numbers.brackets(body, lists) == lists else None


def _precise(model: Model, body: Body) -> tuple[Call, int | None]:
    expected = expected_body(model)
    document = parse_json(body, expected)
    if not isinstance(document, dict):
        raise InvalidRequestError(f"the body is {describe(document)}; expected {expected}")
    for key in document:
        if key not in _KEYS:
            raise InvalidRequestError(f"unknown key {key[:40]!r}; known: {', '.join(_KEYS)}; expected {expected}")
    if "inputs" not in document:
        raise InvalidRequestError(f"the key 'inputs' is missing; expected {expected}")
    feeds = _feeds(model, document["inputs"], expected)
    output_names = _output_names(model, document.get("outputs"))
    return prepare(model, feeds, output_names), check_top_k(model, document.get("top_k"))


def _feeds(model: Model, inputs: Any, expected: str) -> dict[str, Array]:
    if isinstance(inputs, dict):
        for key in inputs:
            if key not in model.input_by_name:
                names = ", ".join(model.input_by_name)
                raise InvalidRequestError(f"model {model.name!r} has no input {key[:40]!r}; its inputs: {names}")
        for name in model.input_by_name:
            if name not in inputs:
                raise InvalidRequestError(f"input {name!r} is missing; expected {expected}")
        return {spec.name: array_from_json(inputs[spec.name], spec, f"inputs.{spec.name}") for spec in model.inputs}
    if len(model.inputs) != 1:
        count = "several inputs" if model.inputs else "no inputs"
        raise InvalidRequestError(
            f"'inputs' is {describe(inputs)}; model {model.name!r} has {count}: expected {expected}"
        )
    spec = model.inputs[0]
    return {spec.name: array_from_json(inputs, spec, "inputs")}


def _output_names(model: Model, wanted: Any) -> tuple[str, ...]:
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


def check_top_k(model: Model, value: Any) -> int | None:
    """``top_k`` as the caller gave it; None where it was not given.

    Raises:
        InvalidRequestError: out of range, or the model has no labels.
    """
    if value is None:
        return None
    if type(value) is not int or not 1 <= value <= MAX_TOP_K:
        raise InvalidRequestError(f"'top_k' is {describe(value)}; expected an integer from 1 to {MAX_TOP_K}")
    if model.labelled is None:
        raise InvalidRequestError(f"'top_k' needs labels, and model {model.name!r} has none in its card")
    return value


class PlainWriter:
    """Writes answers of one model; what never changes is made once."""

    def __init__(self, model: Model) -> None:
        self._head = b'{"model":%s,"version":%s,"outputs":{' % (orjson.dumps(model.name), orjson.dumps(model.version))
        self._names = {name: orjson.dumps(name) + b":" for name in model.output_names}
        labels = model.labelled.labels if model.labelled is not None else None
        self._labels = [orjson.dumps(label) for label in labels or ()]
        self._predictions = [b'{"label":' + label + b',"probability":' for label in self._labels]

    def encode(self, top_k: int | None, results: Results, start: int, stop: int) -> tuple[HeaderList, bytes]:
        """The JSON answer to the request that owns these rows: headers and body."""
        names = results.output_names
        parts = [self._head, self._names[names[0]], results.nested_json(0, start, stop)]
        for index in range(1, len(names)):
            parts += (b",", self._names[names[index]], results.nested_json(index, start, stop))
        heads = self._predictions
        if not heads:
            rows = []
        elif top_k is None:
            rows = [heads[label] + probability + b"}" for label, probability in results.best()[start:stop]]
        else:
            rows = self._ranked(results.probabilities, start, stop, top_k)
        parts += (b'},"predictions":[', b",".join(rows), b"]}") if rows else (b"}}",)
        return [JSON_HEADER], b"".join(parts)

    def _ranked(self, whole: Array | None, start: int, stop: int, top_k: int) -> list[bytes]:
        if whole is None:
            return []
        probabilities = whole[start:stop]
        top = min(top_k, probabilities.shape[1])
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        rows = []
        for row, labels in zip(probabilities, order, strict=True):
            texts = orjson.dumps(np.ascontiguousarray(row[labels]), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")
            items = [self._predictions[label] + text + b"}" for label, text in zip(labels, texts, strict=True)]
            rows.append(items[0][:-1] + b',"top_k":[' + b",".join(items) + b"]}")
        return rows
