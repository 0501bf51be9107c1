"""Tensors of every datatype and shape, written as a client writes them and read back: nothing is lost on any way."""

import io
import json

import ml_dtypes
import numpy as np
import pytest
from fuzz_oracles import DTYPES, Kind, Tensor, same
from fuzz_targets import MAX_ROWS, Model
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from app.engine.codec import arrays, binary, numbers, plain
from app.engine.codec.oip import Decoder
from app.errors import InvalidRequestError

DATATYPES = sorted(DTYPES)
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
thorough = settings(max_examples=400, deadline=None, derandomize=True, database=None)


def values(datatype, shape, *, finite=True):
    if datatype == "BYTES":
        size = int(np.prod(shape))
        text = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
        return st.lists(text, min_size=size, max_size=size).map(lambda items: _objects(items, shape))
    if datatype == "BF16":
        bits = arrays_of.arrays(np.uint16, shape)
        return bits.map(lambda found: np.where(found & 0x7F80 == 0x7F80, found & 0x80FF, found)) if finite else bits
    options = {} if DTYPES[datatype].kind != "f" else {"allow_nan": not finite, "allow_infinity": not finite}
    return arrays_of.arrays(DTYPES[datatype], shape, elements=arrays_of.from_dtype(DTYPES[datatype], **options))


def _objects(items, shape):
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array.reshape(shape)


@st.composite
def tensors(draw, *, finite=True, datatypes=DATATYPES):
    datatype, shape = draw(st.sampled_from(datatypes)), draw(shapes)
    dynamic = draw(st.lists(st.booleans(), min_size=len(shape), max_size=len(shape)))
    announced = tuple(None if free else size for size, free in zip(shape, dynamic, strict=True))
    return Tensor("x", datatype, announced), draw(values(datatype, shape, finite=finite))


def model_of(tensor):
    return Model(Kind((tensor,), (Tensor("y", "FP32", (None,)),), batched=False, labels=False))


def as_lists(tensor, array):
    return array.view(ml_dtypes.bfloat16).astype(np.float64).tolist() if tensor.datatype == "BF16" else array.tolist()


def announced(tensor, array, **more):
    return {"name": "x", "shape": list(array.shape), "datatype": tensor.datatype, **more}


@thorough
@given(tensors(finite=False))
def test_binary(drawn):
    tensor, array = drawn
    content = binary.to_bytes(array, tensor.datatype)
    item = announced(tensor, array, parameters={"binary_data_size": len(content)})
    head = json.dumps({"inputs": [item]}).encode()
    call, _ = Decoder(model_of(tensor)).decode(head + content, b"%d" % len(head), MAX_ROWS)
    assert same(call.feeds, {"x": array})
    assert binary.to_bytes(call.feeds["x"], tensor.datatype) == content


@thorough
@given(tensors(), st.booleans())
def test_json_of_the_protocol(drawn, nested):
    tensor, array = drawn
    data = as_lists(tensor, array if nested or not array.shape else array.reshape(-1))
    body = json.dumps({"inputs": [announced(tensor, array, data=data)]}).encode()
    if tensor.datatype in ("FP16", "BF16"):
        with pytest.raises(InvalidRequestError, match="must be sent as binary data"):
            Decoder(model_of(tensor)).decode(body, None, MAX_ROWS)
        return
    if nested and array.size == 0 and 0 in array.shape[1:]:
        return  # lists of empty lists, which say less than the shape
    call, _ = Decoder(model_of(tensor)).decode(body, None, MAX_ROWS)
    assert same(call.feeds, {"x": array})


@thorough
@given(tensors())
def test_json_of_the_plain_api(drawn):
    tensor, array = drawn
    if 0 in array.shape:
        return  # lists can't tell how long a dimension behind an empty one is
    body = json.dumps({"inputs": {"x": as_lists(tensor, array)}}).encode()
    assert same(plain.decode(model_of(tensor), body, MAX_ROWS)[0].feeds, {"x": array})


@thorough
@given(tensors(datatypes=[name for name in DATATYPES if name not in ("BF16", "BYTES")]), st.sampled_from("CF"))
def test_npy(drawn, order):
    tensor, array = drawn
    stream = io.BytesIO()
    np.save(stream, np.asarray(array, order=order))
    assert same(arrays.from_npy(model_of(tensor), stream.getvalue()), {"x": array})
    if array.shape:
        again = np.load(io.BytesIO(arrays.to_npy(array)))
        assert same({"x": again}, {"x": array})


@thorough
@given(tensors(finite=False))
def test_raw_bytes(drawn):
    tensor, array = drawn
    if tensor.shape.count(None) > 1 or tensor.datatype == "BYTES" or not array.size:
        return
    call, _ = Decoder(model_of(tensor)).decode(binary.to_bytes(array, tensor.datatype), b"0", MAX_ROWS)
    assert same(call.feeds, {"x": array})


number = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(["-0", "0.0", "1e39", "1e309", "3.4028235e38", "9223372036854775808"]),
    st.sampled_from(["01", "1.", "NaN", "true", '""']),
)
row = st.lists(number, min_size=1, max_size=3).map(lambda items: f"[{', '.join(items)}]")
document = st.one_of(
    st.lists(st.one_of(row, row, row, number, st.just("[]")), max_size=4).map(lambda rows: f"[{','.join(rows)}]"),
    st.text('[]{},:0123456789.eE+-" ', max_size=30),
)


@settings(thorough, max_examples=1500)
@given(document, st.sampled_from(["FP32", "FP64", "INT32", "INT64"]), st.sampled_from([1, 2, None]))
def test_the_quick_and_the_precise_way_agree_in_answers_and_in_errors(text, datatype, width):
    model = model_of(Tensor("x", datatype, (None, width)))
    body = b'{"inputs": ' + text.encode() + b"}"

    def told(read):
        try:
            return read(model, body, MAX_ROWS)[0].feeds["x"], None
        except InvalidRequestError as error:
            return None, str(error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numbers, "parse", lambda _: None)
        precise, precise_error = told(plain.decode)
    quick, quick_error = told(plain.decode)
    assert quick_error == precise_error
    assert (quick is None) == (precise is None)
    assert quick is None or same({"x": quick}, {"x": precise})
