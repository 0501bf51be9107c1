"""From messages to inference requests: the checks of the protocol, zero-copy, and deadlines."""

import pickle

import numpy as np
import pytest
from fuzz_oracles import Kind, Tensor
from fuzz_targets import Model
from helpers.grpc_client import infer_request, pb

from app.engine.codec.oip import MAX_HEADERS
from app.errors import InvalidRequestError
from app.grpc.decoding import GrpcJob, Reader, is_heavy

NUMBERS, TEXTS = Tensor("x", "FP32", (None, 2)), Tensor("t", "BYTES", (None,))
OUTPUTS = Tensor("y", "FP32", (None,)), Tensor("h", "FP16", (None,))
TWO = Model(Kind((NUMBERS, TEXTS), OUTPUTS, batched=False, labels=False))
ONE = Model(Kind((NUMBERS,), OUTPUTS, batched=False, labels=False))


def ours(message, reader=None):
    return (reader or Reader()).open(message.SerializeToString())


def two(order=("x", "t")):
    request = pb.ModelInferRequest(model_name="m")
    given = {"x": ("FP32", [1, 2], np.array([[1, 2]], np.float32).tobytes()), "t": ("BYTES", [1], b"\x01\0\0\0a")}
    for name in order:
        datatype, shape, raw = given[name]
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(raw)
    return request


@pytest.mark.parametrize("order", [("x", "t"), ("t", "x")])
def test_raw_contents_belong_to_inputs_by_their_order(order):
    request, form = ours(two(order)).read(TWO, 0)
    np.testing.assert_array_equal(request.feeds["x"], [[1, 2]])
    assert request.feeds["t"].tolist() == ["a"]
    assert form.raw


def test_numbers_are_not_copied():
    request, _ = ours(infer_request("m", shape=(1, 2), raw=bytes(8))).read(ONE, 0)
    assert request.feeds["x"].base is not None
    assert not request.feeds["x"].flags.owndata


@pytest.mark.parametrize(
    ("parameter", "deadline_us", "found"), [(0, 0, 0), (5, 0, 5), (0, 7, 7), (5, 7, 5), (9, 7, 7)]
)  # fmt: skip
def test_the_nearer_of_timeout_and_deadline_counts(parameter, deadline_us, found):
    message = infer_request("m", shape=(1, 2), raw=bytes(8))
    message.parameters["timeout"].int64_param = parameter
    message.parameters["priority"].uint64_param = 2
    request, _ = ours(message).read(ONE, deadline_us)
    assert (request.timeout_us, request.priority) == (found, 2)


def test_what_is_asked_for():
    message = infer_request("m", shape=(1, 2), fp32_contents=[1, 2])
    message.id = "7"
    message.outputs.add(name="h")
    message.outputs.add(name="y")
    request, form = ours(message).read(ONE, 0)
    assert request.output_names == ("h", "y")
    assert (form.options.id, form.raw) == ("7", False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda request: request.outputs.add(name="z"), "'outputs' has the string 'z'; model 'fake' has: y, h"),
        (
            lambda request: request.inputs.add(name="x", datatype="FP32", shape=[1, 2]),
            "has 1 tensors, but the request has 2",
        ),
        (lambda request: request.raw_input_contents.append(b""), "has 2 tensors, but the request has 1 inputs"),
        (lambda request: request.inputs[0].shape.append(1), r"has shape \[1, 2, 1\]"),
        (lambda request: request.ClearField("inputs"), "has 1 tensors, but the request has 0 inputs"),
        (
            lambda request: request.inputs[0].contents.fp32_contents.append(1),
            "'x' has contents, but the request has raw_",
        ),
        (lambda request: setattr(request, "id", "i" * 1025), "'id' has 1025 characters; the maximum is 1024"),
    ],
)
def test_what_is_wrong_is_told(change, message):
    request = infer_request("m", shape=(1, 2), raw=bytes(8))
    change(request)
    with pytest.raises(InvalidRequestError, match=message):
        ours(request).read(ONE, 0)


def test_texts_alone_are_heavy():
    assert is_heavy(2 << 20, TWO)
    assert not is_heavy(2 << 20, ONE)
    assert not is_heavy(1 << 20, TWO)


def test_another_process_reads_the_same():
    body = two().SerializeToString()
    job = pickle.loads(pickle.dumps(GrpcJob(TWO, 1 << 20, 100, deadline_us=9)))
    request, form = job.read(bytearray(body))
    here, same_form = ours(two()).read(TWO, 9)
    assert form == same_form
    assert request._replace(feeds={}) == here._replace(feeds={})
    assert request.feeds["t"].tolist() == here.feeds["t"].tolist() == ["a"]


def test_what_is_remembered_of_a_request_is_not_mixed_up():
    reader = Reader()
    first = infer_request("m", shape=(1, 2), raw=np.array([[1, 2]], np.float32).tobytes())
    other = infer_request("m", shape=(1, 2), raw=np.array([[3, 4]], np.float32).tobytes())
    other.id = "7"
    other.outputs.add(name="h")
    wrong = infer_request("m", shape=(1, 2), raw=bytes(4))
    for _ in range(3):
        request, form = ours(first, reader).read(ONE, 0)
        assert request.feeds["x"].tolist() == [[1, 2]]
        assert (form.options.id, request.output_names) == (None, ("y", "h"))
        request, form = ours(other, reader).read(ONE, 0)
        assert request.feeds["x"].tolist() == [[3, 4]]
        assert (form.options.id, request.output_names) == ("7", ("h",))
        with pytest.raises(InvalidRequestError, match="has 4 bytes"):
            ours(wrong, reader).read(ONE, 0)
    request, _ = ours(two(), reader).read(TWO, 0)
    assert set(request.feeds) == {"x", "t"}


def test_a_replaced_model_validates_a_known_request_again():
    reader = Reader()
    message = infer_request("m", shape=(1, 2), raw=bytes(8))
    assert ours(message, reader).read(ONE, 0)[0].feeds["x"].shape == (1, 2)
    wider = Model(Kind((Tensor("x", "FP32", (None, 3)),), OUTPUTS, batched=False, labels=False))
    for _ in range(2):
        with pytest.raises(InvalidRequestError, match=r"has shape \[1, 2\]"):
            ours(message, reader).read(wider, 0)
    assert ours(message, reader).read(ONE, 0)[0].feeds["x"].shape == (1, 2)


def test_broken_bytes_are_told_by_the_length_of_the_message():
    broken = b"\x0a\x01\xff" + infer_request("", shape=(1, 2), raw=bytes(8)).SerializeToString()
    with pytest.raises(InvalidRequestError, match=f"the {len(broken)} bytes of the request are not a valid protobuf"):
        Reader().open(broken)


def test_no_more_is_remembered_than_fits():
    reader = Reader()
    for number in range(3 * MAX_HEADERS):
        message = infer_request("m", shape=(1, 2), raw=bytes(8))
        message.id = str(number)
        assert ours(message, reader).read(ONE, 0)[1].options.id == str(number)
        assert len(reader._envelopes) <= MAX_HEADERS
