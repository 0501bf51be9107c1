"""The quick path and the precise one must not differ: what the first takes, the second takes alike."""

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.batching import BATCHED
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.engine.codec import numbers, plain
from app.engine.codec.oip import Decoder
from app.engine.codec.values import array_from_json
from app.errors import InvalidRequestError
from app.runtime.signature import HasSignature, Signature
from app.runtime.tensors import TensorSpec

DTYPES = {"FP32": np.float32, "FP64": np.float64, "INT32": np.int32, "INT64": np.int64}


class Fake(HasSignature):
    """As much of a model as decoding looks at."""

    def __init__(self, datatype="FP32", width=3):
        self.name, self.version = "fake", "1"
        spec = TensorSpec("x", datatype, np.dtype(DTYPES[datatype]), (None, width), ("batch", None))
        self.signature = Signature([spec], [replace(spec, name="y")])
        self.batching = BATCHED
        self.takes_empty = self.takes_no_rows = True
        self.labelled = self.columns = None


numbers_of_json = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0, -0.0, 1e39, -1e39, 3.4028234663852886e38, 3.4028235e38, 1e-50, 2**31, -(2**31) - 1, 2**63]),
)
odd = st.one_of(
    st.none(), st.booleans(), st.text(max_size=3), st.just([]), st.just({}), st.lists(numbers_of_json, max_size=3)
)
rows = st.lists(
    st.lists(st.one_of(numbers_of_json, numbers_of_json, numbers_of_json, odd), min_size=2, max_size=4), max_size=4
)
square = st.integers(1, 4).flatmap(
    lambda count: st.lists(st.lists(numbers_of_json, min_size=3, max_size=3), min_size=count, max_size=count)
)


def precise(model, value):
    try:
        return array_from_json(value, model.inputs[0], "inputs")
    except InvalidRequestError:
        return None


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(sorted(DTYPES)), st.one_of(rows, square))
@example("FP32", [[[], [1, 2], 3]])
@example("FP32", [[1, 2, 3], [[4], 5, 6]])
@example("FP32", [[1, 2, 3, 4], [5, 6]])
@example("INT64", [[1, 2, 3.0]])
def test_what_the_quick_path_takes_the_precise_one_takes_alike(datatype, value):
    model = Fake(datatype)
    body = json.dumps({"inputs": value}).encode()
    expected = precise(model, value)
    feeds = plain._quick(model, body)
    if feeds is not None:
        assert expected is not None, "the quick path took what the precise one refuses"
        np.testing.assert_array_equal(feeds["x"], expected)
        assert feeds["x"].dtype == expected.dtype
    try:
        decoded = plain.decode(model, body, 1000)[0].feeds["x"]
    except InvalidRequestError:
        assert expected is None
    else:
        np.testing.assert_array_equal(decoded, expected)


@settings(max_examples=200, deadline=None)
@given(st.one_of(rows, square), st.booleans(), st.sampled_from([None, "outputs", "parameters", "id"]))
def test_so_does_the_protocols_quick_path(value, flat, extra):
    model = Fake()
    data = [item for row in value for item in row] if flat else value
    document = {"inputs": [{"name": "x", "shape": [len(value), 3], "datatype": "FP32", "data": data}]}
    if extra is not None:
        document[extra] = {"outputs": [{"name": "y"}], "parameters": {"priority": 1}, "id": "[[["}[extra]
    body = json.dumps(document).encode()
    decoder = Decoder(model)
    quick = decoder._quick(body)
    decoder._quick = lambda _: None
    try:
        slow = decoder.decode(body, None, 1000)[0].feeds["x"]
    except InvalidRequestError:
        slow = None
    if quick is not None and len(value):
        assert slow is not None, "the quick path took what the precise one refuses"
        np.testing.assert_array_equal(quick[0]["x"], slow)


def test_the_common_case_takes_the_quick_path():
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    for values in (x.tolist(), [[float(str(item)) for item in row] for row in x]):
        feeds = plain._quick(Fake(), json.dumps({"inputs": values}).encode())
        np.testing.assert_array_equal(feeds["x"], x)
    item = {"name": "x", "shape": [4, 3], "datatype": "FP32", "data": x.reshape(-1).tolist()}
    body = json.dumps({"id": "a", "inputs": [item], "outputs": [{"name": "y"}]}).encode()
    feeds, asked = Decoder(Fake())._quick(body)
    np.testing.assert_array_equal(feeds["x"], x)
    assert asked.id == "a"


@pytest.mark.parametrize(
    ("body", "at_most", "count"), [(b"[[[", 5, 3), (b"[[[[[[[[", 2, 3), (b"", 1, 0), (b'{"a": 1}', 1, 0)]
)
def test_brackets_are_counted_no_further_than_needed(body, at_most, count):
    assert numbers.brackets(body, at_most) == count


def test_a_parser_whose_objects_are_alive_is_replaced():
    kept = numbers.parse(b'{"a": [1]}')
    assert numbers.parse(b'{"a": [2]}') is None
    assert numbers.parse(b'{"a": [3]}')["a"].as_list() == [3]
    assert kept["a"].as_list() == [1]
