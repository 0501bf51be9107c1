"""Answers as messages: raw or typed, in the order that was asked for, ranked, and with the request's id."""

from types import SimpleNamespace

import numpy as np
import pytest
from fuzz_oracles import Kind, Tensor
from fuzz_targets import Model
from helpers.grpc_client import pb

from app.engine.codec.oip_header import ResponseOptions
from app.engine.results import BatchResult, InferenceResult
from app.grpc.encoding import GrpcForm

OUTPUTS = (Tensor("y", "FP32", (None, 2)), Tensor("h", "FP16", (None,)), Tensor("t", "BYTES", (None,)))
MODEL = Model(Kind((Tensor("x", "FP32", (None, 2)),), OUTPUTS, batched=False, labels=False))
ARRAYS = {
    "y": np.array([[1, 2], [3, 4]], np.float32),
    "h": np.array([0.5, 1], np.float16),
    "t": np.array(["a", "é"], object),
}


def encode(names, *, raw, classes=None, identity=None, rows=None):
    options = ResponseOptions(names, (True,) * len(names), classes or (0,) * len(names), identity)
    arrays = [ARRAYS[name] for name in names]
    axes = None if rows is None else (0,) * len(names)
    batch = BatchResult(MODEL, names, arrays, axes)
    headers, content = GrpcForm(options, raw).encode(MODEL, InferenceResult(batch, *(rows or (0, 2))))
    assert headers == []
    return pb.ModelInferResponse.FromString(content)


def test_raw():
    answer = encode(("t", "y"), raw=True, identity="7")
    assert (answer.model_name, answer.model_version, answer.id) == ("fake", "1", "7")
    assert [(each.name, each.datatype, list(each.shape)) for each in answer.outputs] == [
        ("t", "BYTES", [2]),
        ("y", "FP32", [2, 2]),
    ]
    assert answer.raw_output_contents[0] == b"\x01\0\0\0a\x02\0\0\0" + "é".encode()
    np.testing.assert_array_equal(np.frombuffer(answer.raw_output_contents[1], np.float32), [1, 2, 3, 4])
    assert not any(each.HasField("contents") for each in answer.outputs)


def test_one_format_encodes_results_of_several_shapes_and_models():
    form = GrpcForm(ResponseOptions(("y",), (True,), (0,)), raw=True)
    other = Model(Kind((Tensor("x", "FP32", (None, 2)),), OUTPUTS, batched=False, labels=False))
    other.version = "2"
    for model, rows in [(MODEL, 1), (MODEL, 2), (other, 2), (MODEL, 2)]:
        batch = BatchResult(model, ("y",), [ARRAYS["y"]], (0,))
        answer = pb.ModelInferResponse.FromString(form.encode(model, InferenceResult(batch, 0, rows))[1])
        assert (answer.model_version, list(answer.outputs[0].shape)) == (model.version, [rows, 2])
        assert answer.raw_output_contents[0] == ARRAYS["y"][:rows].tobytes()


def test_typed():
    answer = encode(("y", "t"), raw=False)
    assert list(answer.outputs[0].contents.fp32_contents) == [1, 2, 3, 4]
    assert list(answer.outputs[1].contents.bytes_contents) == [b"a", "é".encode()]
    assert not answer.raw_output_contents
    assert answer.id == ""


@pytest.mark.parametrize("names", [("h",), ("y", "h")])
def test_halves_make_the_whole_answer_raw(names):
    answer = encode(names, raw=False)
    np.testing.assert_array_equal(np.frombuffer(answer.raw_output_contents[-1], np.float16), [0.5, 1])
    assert len(answer.raw_output_contents) == len(names)
    assert not any(each.HasField("contents") for each in answer.outputs)


def test_a_request_gets_its_own_rows():
    answer = encode(("y",), raw=True, rows=(1, 2))
    assert list(answer.outputs[0].shape) == [1, 2]
    np.testing.assert_array_equal(np.frombuffer(answer.raw_output_contents[0], np.float32), [3, 4])


def test_ranked(monkeypatch):
    monkeypatch.setattr(MODEL, "labelled", SimpleNamespace(name="y", labels=("no", "yes")))
    answer = encode(("y",), raw=False, classes=(1,))
    assert answer.outputs[0].datatype == "BYTES"
    assert list(answer.outputs[0].contents.bytes_contents) == [b"2.000000:1:yes", b"4.000000:1:yes"]
