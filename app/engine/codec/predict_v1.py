"""The prediction protocol of KServe v1 and TensorFlow Serving: ``{"instances": […]}`` in, ``{"predictions": […]}`` out.

``{"inputs": …}`` is the column format of TensorFlow Serving: tensors by name in, ``{"outputs": …}`` out.
"""

from dataclasses import dataclass
from typing import Any

import orjson

from app.engine.codec import Body, HeaderList, table_json
from app.engine.codec.described import DescribedModel
from app.engine.codec.plain import JSON_HEADER
from app.engine.codec.prepared import prepare
from app.engine.codec.structure import LONG_BYTES, check_structure
from app.engine.codec.table import Table
from app.engine.codec.values import array_from_json, describe, example, parse_json
from app.engine.request import InferenceRequest
from app.engine.results import InferenceResult
from app.errors import InvalidRequestError
from app.runtime.tensors import Array

_IGNORED = ("signature_name", "parameters", "id")
_KEYS = ("instances", "inputs", *_IGNORED)


@dataclass(frozen=True, slots=True)
class V1Response:
    """Response format of this protocol.

    Attributes:
        by_rows: Whether to return a list with an element per row, instead of whole tensors.
    """

    by_rows: bool

    def encode(self, _: DescribedModel, result: InferenceResult) -> tuple[HeaderList, bytes]:
        """Encode the response to one request.

        Raises:
            InvalidRequestError: The outputs have different numbers of rows, so they have no elements by row.
        """
        batch, start, stop = result.batch, result.start, result.stop
        names = batch.output_names
        texts = [batch.nested_json(index, start, stop) for index in range(len(names))]
        if len(texts) == 1:
            return [JSON_HEADER], b'{"%s":%s}' % (b"predictions" if self.by_rows else b"outputs", texts[0])
        if not self.by_rows:
            members = (orjson.dumps(name) + b":" + text for name, text in zip(names, texts, strict=True))
            return [JSON_HEADER], b'{"outputs":{' + b",".join(members) + b"}}"
        values = [orjson.loads(text) for text in texts]
        if any(not isinstance(value, list) or len(value) != len(values[0]) for value in values):
            raise InvalidRequestError("the outputs differ in their number of rows; send 'inputs', not 'instances'")
        rows = [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]
        return [JSON_HEADER], b'{"predictions":%s}' % orjson.dumps(rows)


def decode(
    model: DescribedModel, table: Table | None, body: Body, max_rows: int
) -> tuple[InferenceRequest, V1Response]:
    """Decode a request.

    Args:
        model: The model of the request.
        table: Its columns, if it takes rows of a table.
        body: The whole body.
        max_rows: Maximum rows of a request.

    Raises:
        InvalidRequestError: The request is invalid; the message names the place and the rule.
    """
    expected = _expected(model)
    if len(body) > LONG_BYTES:
        if len(model.inputs) > 1 or table is not None:
            columns = table.columns if table is not None else model.inputs
            table_json.check_size(body, len(columns), max_rows)
        else:
            check_structure(body, model.inputs, len(model.outputs), max_rows)
    document = parse_json(body, expected)
    if not isinstance(document, dict):
        raise InvalidRequestError(f"the body is {describe(document)}; expected {expected}")
    for key in document:
        if key not in _KEYS:
            raise InvalidRequestError(f"unknown key {key[:40]!r}; known: {', '.join(_KEYS)}; expected {expected}")
    if ("instances" in document) == ("inputs" in document):
        raise InvalidRequestError(f"the body must have either 'instances' or 'inputs'; expected {expected}")
    by_rows = "instances" in document
    read = _instances if by_rows else _inputs
    feeds = read(model, table, document["instances" if by_rows else "inputs"], expected)
    return prepare(model, feeds, model.output_names), V1Response(by_rows)


def _expected(model: DescribedModel) -> str:
    if len(model.inputs) == 1:
        return f'{{"instances": {example(model.inputs[0])}}}'
    inside = ", ".join(f'"{spec.name}": …' for spec in model.inputs)
    return f'{{"instances": [{{{inside}}}, …]}}'


def _instances(model: DescribedModel, table: Table | None, instances: Any, expected: str) -> dict[str, Array]:
    if not isinstance(instances, list):
        raise InvalidRequestError(f"'instances' is {describe(instances)}; expected a list: {expected}")
    if not instances or not isinstance(instances[0], dict):
        return _only_input(model, instances, "instances", expected)
    names = {spec.name: None for spec in model.inputs}.keys()
    is_table = table is not None and not (
        set(instances[0]) == names and any(isinstance(value, list) for value in instances[0].values())
    )
    if is_table or names.isdisjoint(instances[0]):
        return table_json.read_table(instances, model, table, "instances", nan=False)
    for row, instance in enumerate(instances):
        if not isinstance(instance, dict) or set(instance) != names:
            wanted = f"an object with a value for each of: {', '.join(names)}"
            raise InvalidRequestError(f"instances[{row}] is {_shown(instance)}; expected {wanted}")
    return {
        spec.name: array_from_json([instance[spec.name] for instance in instances], spec, f"instances.{spec.name}")
        for spec in model.inputs
    }


def _inputs(model: DescribedModel, table: Table | None, inputs: Any, expected: str) -> dict[str, Array]:
    names = {spec.name for spec in model.inputs}
    if not isinstance(inputs, dict):
        return _only_input(model, inputs, "inputs", expected)
    if set(inputs) != names:
        return table_json.read_table(inputs, model, table, "inputs", nan=False)
    return {spec.name: array_from_json(inputs[spec.name], spec, f"inputs.{spec.name}") for spec in model.inputs}


def _only_input(model: DescribedModel, value: Any, where: str, expected: str) -> dict[str, Array]:
    if len(model.inputs) != 1:
        raise InvalidRequestError(
            f"{where!r} has no input names, but model {model.name!r} has {len(model.inputs)}; expected {expected}"
        )
    (spec,) = model.inputs
    return {spec.name: array_from_json(value, spec, where)}


def _shown(instance: Any) -> str:
    return f"an object of {', '.join(instance)[:80]}" if isinstance(instance, dict) else describe(instance)
