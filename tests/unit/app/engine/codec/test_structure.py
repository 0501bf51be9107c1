"""The structure of JSON is counted as a parser finds it, and bounds what a parser is given."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.codec import structure
from app.engine.codec.structure import Structure, check_structure, measure
from app.errors import InvalidRequestError
from app.runtime.tensors import TensorSpec

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(alphabet='ab"\\[]{},é\n', max_size=6),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet='k"\\[{,', max_size=3), inner, max_size=3)
    ),
    max_leaves=20,
)


def counted(value) -> Structure:
    """The oracle: a walk over what the parser made."""
    lists = objects = strings = commas = 0
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            lists += 1
            commas += max(0, len(item) - 1)
            stack += item
        elif isinstance(item, dict):
            objects += 1
            commas += max(0, len(item) - 1)
            strings += len(item)
            stack += item.values()
        elif isinstance(item, str):
            strings += 1
    return Structure(lists, objects, strings, commas)


@settings(max_examples=300, deadline=None)
@given(JSON, st.integers(1, 9))
def test_it_is_what_a_parser_finds(value, chunk):
    before, structure.CHUNK_BYTES = structure.CHUNK_BYTES, chunk
    try:
        for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
            assert measure(text.encode()) == counted(value), text
    finally:
        structure.CHUNK_BYTES = before


def spec(*shape, datatype="FP32"):
    return TensorSpec(
        "x", datatype, np.dtype(object if datatype == "BYTES" else np.float32), shape, (None,) * len(shape)
    )


@pytest.mark.parametrize(
    ("shape", "value"),
    [
        ((None, 4), [[1, 2, 3, 4]] * 50_000),
        ((None, 1), [[1]] * 50_000),
        ((None,), list(range(50_000))),
        ((None, 3, 4, 5), [[[[0] * 5] * 4] * 3] * 700),
        ((None, None), [[1, 2]] * 30_000),
        ((None, None, 8), [[[1] * 8] * 9] * 300),
        ((), 3),
    ],
)
def test_every_request_of_the_model_passes(shape, value):
    check_structure(json.dumps({"inputs": value}).encode(), [spec(*shape)], 1, 100_000)
    shown = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": value, "parameters": {"a": 1}}
    check_structure(
        json.dumps({"id": "1", "inputs": [shown], "outputs": [{"name": "y"}]}).encode(), [spec(*shape)], 1, 100_000
    )


@pytest.mark.parametrize("text", ['a "quoted" [text]', "\\", '\\"{', "é" * 40])
def test_texts_may_hold_what_they_like(text):
    body = json.dumps({"inputs": [[text, "[[[["]] * 20_000}).encode()
    check_structure(body, [spec(None, 2, datatype="BYTES")], 1, 100_000)


@pytest.mark.parametrize(
    ("body", "shape", "message"),
    [
        (b'{"inputs":[' + b"[]," * 300_000 + b"[]]}", (None, 4), "300002 lists; the maximum for this model is"),
        (b'{"inputs":[' + b"[]," * 3_000_000 + b"[]]}", (None, None), "3000002 lists"),
        (b"[" * 100_000, (None, 4), "100000 lists"),
        (b'{"inputs":[' + b"{}," * 100_000 + b"{}]}", (None, 4), "100002 objects"),
        (b"{" + b",".join(b'"%d":1' % i for i in range(50_000)) + b"}", (None, 4), "50000 strings"),
        (b'{"inputs":[' + b'"",' * 50_000 + b'""]}', (None, 4), "50002 strings"),
    ],
    ids=["empty lists", "too many rows", "deep", "objects", "keys", "strings"],
)  # fmt: skip
def test_what_no_request_needs_is_refused(body, shape, message):
    with pytest.raises(InvalidRequestError, match=re.escape(message)):
        check_structure(body, [spec(*shape)], 1, 1_000_000)
