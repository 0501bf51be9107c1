import json
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.batching import BATCHED
from helpers.tables import FLOWERS

from app.engine.codec.predict_v1 import V1Response, decode
from app.engine.codec.table import table_of
from app.engine.results import BatchResult, InferenceResult
from app.errors import InferenceFailedError, InvalidRequestError
from app.runtime.signature import HasSignature, Signature
from app.runtime.tensors import TensorSpec


def spec(name, *shape):
    return TensorSpec(name, "FP32", np.dtype(np.float32), shape, (None,) * len(shape))


class Model(HasSignature):
    """As much of a model as a request and its answer look at."""

    def __init__(self, *inputs, outputs=("y",)):
        self.name, self.version, self.columns, self.labelled = "m", "1", None, None
        self.signature = Signature(inputs, [spec(name, None, 2) for name in outputs])
        self.batching, self.takes_empty, self.takes_no_rows = BATCHED, True, True


ONE = Model(spec("x", None, 2))
TWO = Model(spec("a", None, 2), spec("b", None, 1), outputs=("y", "z"))
APART = Model(spec("a", None, 1), spec("b", None, 1))


def feeds(model, document, table=None):
    request, form = decode(model, table or table_of(model), json.dumps(document).encode(), 100)
    return {name: array.tolist() for name, array in request.feeds.items()}, form.by_rows


def test_instances_are_rows_and_inputs_are_tensors():
    rows = [[1.0, 2.0], [3.0, 4.0]]
    assert feeds(ONE, {"instances": rows, "signature_name": "serving_default"}) == ({"x": rows}, True)
    assert feeds(ONE, {"instances": [{"x": row} for row in rows]}) == ({"x": rows}, True)
    assert feeds(ONE, {"inputs": rows}) == ({"x": rows}, False)
    assert feeds(ONE, {"inputs": {"x": rows}}) == ({"x": rows}, False)
    named = {"a": rows, "b": [[5.0], [6.0]]}
    assert feeds(TWO, {"inputs": named}) == (named, False)
    assert feeds(TWO, {"instances": [{"a": rows[0], "b": [5.0]}, {"b": [6.0], "a": rows[1]}]}) == (named, True)


def test_rows_of_a_table_are_instances_too():
    table = ({"a": [[1.0], [3.0]], "b": [[2.0], [4.0]]}, True)
    assert feeds(APART, {"instances": [{"a": 1, "b": 2}, {"b": 4, "a": 3}]}) == table
    assert feeds(APART, {"instances": [{"a": [1], "b": [2]}, {"b": [4], "a": [3]}]}) == table
    flowers = [{"length": 1, "whole": 2, "colour": "blue"}]
    model = Model(spec("x", None, 3))
    assert feeds(model, {"instances": flowers}, FLOWERS) == ({"x": [[1.0, 2.0, 1.0]]}, True)


@pytest.mark.parametrize(
    ("model", "document", "message"),
    [
        (ONE, [], r'the body is a list; expected \{"instances": '),
        (ONE, {}, "the body must have either 'instances' or 'inputs'"),
        (ONE, {"instances": [], "inputs": []}, "the body must have either 'instances' or 'inputs'"),
        (ONE, {"instances": [[1, 2]], "rows": 3}, "unknown key 'rows'; known: instances, inputs"),
        (ONE, {"instances": 3}, "'instances' is 3; expected a list"),
        (ONE, {"instances": [[1, 2], [3]]}, r"instances\[1\] has 1 values; expected 2"),
        (ONE, {"instances": [{"w": 1}]}, "instances is a table, but model 'm' has no column names"),
        (TWO, {"instances": [[1, 2]]}, "'instances' has no input names, but model 'm' has 2"),
        (TWO, {"instances": [{"a": [1, 2], "b": [1]}, {"a": [1, 2]}]}, r"instances\[1\] is an object of a; expected"),
        (TWO, {"instances": [{"a": [1, 2], "b": [1]}, 3]}, r"instances\[1\] is 3; expected an object with a value for"),
        (TWO, {"inputs": {"a": [[1, 2]]}}, "inputs is a table, but model 'm' has no column names"),
    ],
)
def test_what_is_wrong_is_named(model, document, message):
    with pytest.raises(InvalidRequestError, match=message):
        feeds(model, document)


def test_bodies_of_more_values_than_a_request_can_have_are_refused():
    with pytest.raises(InvalidRequestError, match="lists; the maximum for this model is"):
        feeds(ONE, {"instances": [[]] * 40_000})
    with pytest.raises(InvalidRequestError, match="objects; the maximum for 100 rows and 2 columns"):
        feeds(TWO, {"instances": [{}] * 40_000})


def answer(*, by_rows, **outputs):
    model = SimpleNamespace(output_by_name={name: spec(name, None, 2) for name in outputs}, labelled=None)
    batch = BatchResult(model, tuple(outputs), list(outputs.values()))
    headers, body = V1Response(by_rows).encode(model, InferenceResult(batch, 0, 2))
    assert headers == [(b"content-type", b"application/json")]
    return json.loads(body)


def test_answers_by_rows_and_by_tensors():
    y, z = np.array([[1, 2], [3, 4]], np.float32), np.array([5, 6], np.int64)
    assert answer(by_rows=True, y=y) == {"predictions": [[1, 2], [3, 4]]}
    assert answer(by_rows=False, y=y) == {"outputs": [[1, 2], [3, 4]]}
    assert answer(by_rows=True, y=y, z=z) == {"predictions": [{"y": [1, 2], "z": 5}, {"y": [3, 4], "z": 6}]}
    assert answer(by_rows=False, y=y, z=z) == {"outputs": {"y": [[1, 2], [3, 4]], "z": [5, 6]}}


def test_what_has_no_rows_or_is_no_json_is_refused():
    y = np.ones((2, 2), np.float32)
    for z in (np.ones(3, np.float32), np.float32(1)):
        with pytest.raises(InvalidRequestError, match="the outputs differ in their number of rows; send 'inputs'"):
            answer(by_rows=True, y=y, z=np.asarray(z))
    with pytest.raises(InferenceFailedError, match="output 'y' holds NaN or infinity"):
        answer(by_rows=True, y=y * np.nan)
