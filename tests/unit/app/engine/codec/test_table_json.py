import json

import numpy as np
import pytest
from helpers.batching import BATCHED

from app.engine.codec import plain, table_json
from app.engine.codec.table import table_of
from app.errors import InvalidRequestError
from app.runtime.card import Column
from app.runtime.signature import HasSignature, Signature
from app.runtime.tensors import TensorSpec

ROWS = [[5.0, 1.5], [6.0, 2.5]]


def spec(name, shape):
    return TensorSpec(name, "FP32", np.dtype(np.float32), shape, (None,) * len(shape))


class Model(HasSignature):
    """As much of a model as decoding looks at."""

    def __init__(self, *names, columns=None):
        self.name, self.version = "flowers", "1"
        inputs = [spec("x", (None, 2))] if not names else [spec(name, (None, 1)) for name in names]
        self.signature = Signature(inputs, [spec("y", (None, 2))])
        self.columns = [Column(name=name) for name in columns] if columns else None
        self.batching, self.takes_empty, self.takes_no_rows, self.labelled = BATCHED, True, True, None


NAMED = Model(columns=("sepal", "petal"))
APART = Model("sepal", "petal")
PLAIN = Model()


def feeds(model, document, **options):
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return plain.decode(model, body, 1000, table=table_of(model), **options)[0].feeds


RECORDS = [{"sepal": 5.0, "petal": 1.5}, {"petal": 2.5, "sepal": 6}]
COLUMNS = {"petal": [1.5, 2.5], "sepal": [5.0, 6]}
SPLIT = {"columns": ["petal", "sepal"], "index": [7, 8], "data": [[1.5, 5.0], [2.5, 6]]}


@pytest.mark.parametrize(
    "document", [RECORDS, SPLIT, {"inputs": RECORDS}, {"inputs": COLUMNS}, {"inputs": SPLIT, "outputs": ["y"]}]
)
def test_every_form_gives_the_same_rows_whatever_the_order_of_the_columns(document):
    assert feeds(NAMED, document)["x"].tolist() == ROWS
    apart = feeds(APART, document)
    assert {name: array.tolist() for name, array in apart.items()} == {"sepal": [[5], [6]], "petal": [[1.5], [2.5]]}


def test_tensors_are_taken_as_ever():
    assert feeds(NAMED, {"inputs": ROWS})["x"].tolist() == ROWS
    assert feeds(NAMED, {"inputs": {"x": ROWS}})["x"].tolist() == ROWS
    assert feeds(APART, {"inputs": {"sepal": [[5.0]], "petal": [[1.5]]}})["sepal"].tolist() == [[5.0]]


@pytest.mark.parametrize(
    ("model", "document", "message"),
    [
        (PLAIN, RECORDS, "the body is a table, but model 'flowers' has no column names; send rows of numbers"),
        (PLAIN, {"inputs": RECORDS}, "inputs is a table, but model 'flowers' has no column names"),
        (NAMED, [*RECORDS, 3], r"\[2\] is 3; expected an object, one value per column"),
        (NAMED, [{"sepal": 1}], r"\[0\] lacks the column 'petal'; the columns are: sepal, petal"),
        (NAMED, {"inputs": [{"sepal": 1, "petal": "no"}]}, r"inputs\[0\].petal is the string 'no'; expected a number"),
        (NAMED, {"inputs": {"sepal": [1]}}, "inputs lacks the column 'petal'"),
        (NAMED, {"inputs": {"sepal": [1], "petal": 3}}, "inputs.petal is 3; expected a list with a value per row"),
        (NAMED, {"inputs": {"sepal": [1], "petal": [[3]]}}, r"inputs.petal\[0\] is a list; expected a number"),
        (NAMED, {**SPLIT, "data": [[1.5]]}, r"data\[0\] has 1 values; expected a list of 2 values"),
        (NAMED, {**SPLIT, "data": 3}, "data is 3; expected a list of rows"),
        (NAMED, {**SPLIT, "columns": "sepal"}, "columns is the string 'sepal'; expected a list of names"),
        (NAMED, {**SPLIT, "top_k": 2}, "top_k is an unknown key; known: columns, data, index"),
        (NAMED, {"inputs": {**SPLIT, "data": [[1, None]]}}, r"inputs.data\[0\]\[1\] \(sepal\) is null"),
    ],
)
def test_what_is_wrong_is_named(model, document, message):
    with pytest.raises(InvalidRequestError, match=message):
        feeds(model, document)


def test_missing_values_are_nan_where_they_are_allowed():
    assert np.isnan(feeds(NAMED, [{"sepal": None, "petal": 1}], nan=True)["x"][0, 0])


def test_a_body_of_more_objects_than_a_table_can_have_is_refused_before_it_is_parsed():
    body = b"[" + b",".join([b'{"sepal":1,"petal":2}'] * 6000) + b"]"
    with pytest.raises(InvalidRequestError, match="the body holds 6000 objects; the maximum for 1000 rows"):
        feeds(NAMED, body)
    whole = json.dumps([{"sepal": 1, "petal": 2}] * 900).encode() + b" " * 70_000
    assert feeds(NAMED, whole)["x"].shape == (900, 2)


def test_is_whole_table():
    assert table_json.is_whole_table(RECORDS)
    assert table_json.is_whole_table(SPLIT)
    assert not table_json.is_whole_table({"inputs": RECORDS})
    assert not table_json.is_whole_table([[1.0]])
    assert not table_json.is_whole_table([])
