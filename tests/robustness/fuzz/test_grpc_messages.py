"""Odd messages over gRPC: whatever comes is answered as HTTP answers it, or refused with a message; nothing else."""

import grpc
import numpy as np
import pytest
from fuzz_oracles import DTYPES, Kind, Tensor, same
from fuzz_targets import Model
from helpers import processes
from helpers.grpc_client import SERVICE, infer_request, pb
from hypothesis import given, settings
from hypothesis import strategies as st
from test_round_trip import tensors

from app.engine.codec import binary
from app.errors import InvalidRequestError
from app.grpc.decoding import Reader
from app.grpc.typed_contents import FIELDS

thorough = settings(max_examples=400, deadline=None, derandomize=True, database=None)
INPUTS = Tensor("x", "FP32", (None, 2)), Tensor("t", "BYTES", (None,)), Tensor("i", "INT8", (None, 2))
MODEL = Model(Kind(INPUTS, (Tensor("y", "FP32", (None,)), Tensor("h", "BF16", (None,))), batched=False, labels=False))

names = st.sampled_from(["x", "t", "i", "z", "", "é" * 50])
datatypes = st.sampled_from([*DTYPES, "", "FLOAT", "fp32"])
sizes = st.one_of(st.integers(-2, 3), st.integers(-(2**63), 2**63 - 1))
CONTENTS = {
    "bool_contents": st.booleans(),
    "int_contents": st.integers(-(2**31), 2**31 - 1),
    "int64_contents": st.integers(-(2**63), 2**63 - 1),
    "uint_contents": st.integers(0, 2**32 - 1),
    "uint64_contents": st.integers(0, 2**64 - 1),
    "fp32_contents": st.floats(width=32),
    "fp64_contents": st.floats(),
    "bytes_contents": st.binary(max_size=5),
}
PARAMETERS = st.sampled_from(
    ["binary_data", "binary_data_output", "binary_data_size", "classification", "nan", "priority", "timeout", "odd"]
)
VALUES = {
    "bool_param": st.booleans(),
    "int64_param": st.integers(-(2**63), 2**63 - 1),
    "string_param": st.text(max_size=9),
    "double_param": st.floats(),
    "uint64_param": st.integers(0, 2**64 - 1),
}


@st.composite
def parameters(draw):
    kind = draw(st.sampled_from([*VALUES, None]))
    return pb.InferParameter(**({} if kind is None else {kind: draw(VALUES[kind])}))


def put_parameters(draw, message):
    for name in draw(st.lists(PARAMETERS, max_size=2)):
        message.parameters[name].CopyFrom(draw(parameters()))


@st.composite
def requests(draw):
    """Messages of which some are right: the first inputs are those that the model takes."""
    request = pb.ModelInferRequest(model_name="m", id=draw(st.text(max_size=3)))
    put_parameters(draw, request)
    given_inputs = [(item.name, item.datatype, [1, 2][: len(item.shape)]) for item in INPUTS]
    odd = st.tuples(names, datatypes, st.lists(sizes, max_size=4))
    right = st.lists(st.sampled_from(given_inputs), max_size=4)
    for name, datatype, shape in draw(st.one_of(st.just(given_inputs), right, st.lists(odd, max_size=4))):
        tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
        if draw(st.booleans()):
            put_parameters(draw, tensor)
        for field in draw(st.lists(st.sampled_from(list(CONTENTS)), max_size=2)):
            getattr(tensor.contents, field).extend(draw(st.lists(CONTENTS[field], max_size=4)))
    for _ in range(draw(st.integers(0, 4))):
        request.raw_input_contents.append(draw(st.sampled_from([b"", bytes(8), b"\x01\0\0\0a", bytes(2), b"\xff" * 9])))
    for name in draw(st.lists(st.sampled_from(["y", "h", "q", ""]), max_size=3)):
        put_parameters(draw, request.outputs.add(name=name))
    return request


def outcome(request):
    """The tensors that a message is read as, or the message of the error."""
    try:
        return Reader().open(request.SerializeToString()).read(MODEL, 0)[0].feeds
    except InvalidRequestError as error:
        return str(error)


@thorough
@given(requests())
def test_a_message_is_read_or_refused_with_a_message(request):
    found = outcome(request)
    if isinstance(found, str):
        assert 0 < len(found) < 2000
        return
    assert set(found) == {"x", "t", "i"}
    for item in INPUTS:
        assert found[item.name].dtype == DTYPES[item.datatype]
        assert found[item.name].ndim == len(item.shape)


@thorough
@given(st.data())
def test_nothing_is_lost_on_either_way(data):
    tensor, array = data.draw(tensors(finite=False))
    model = Model(Kind((tensor,), (Tensor("y", "FP32", (None,)),), batched=False, labels=False))
    raw = infer_request("m", tensor.datatype, array.shape, raw=binary.to_bytes(array, tensor.datatype))
    found, _ = Reader().open(raw.SerializeToString()).read(model, 0)
    assert same(found.feeds, {"x": array})
    field = FIELDS.get(tensor.datatype)
    if field is not None:
        flat = [item.encode() if isinstance(item, str) else item for item in array.reshape(-1).tolist()]
        typed = infer_request("m", tensor.datatype, array.shape, **{field: flat})
        found, _ = Reader().open(typed.SerializeToString()).read(model, 0)
        assert same(found.feeds, {"x": array})


def mutated(rng, message):
    data = bytearray(message)
    for _ in range(int(rng.integers(1, 6))):
        place = int(rng.integers(len(data)))
        kind = int(rng.integers(4))
        if kind == 0:
            data[place] = int(rng.integers(256))
        elif kind == 1:
            del data[place]
        elif kind == 2:
            data[place:place] = rng.bytes(int(rng.integers(1, 9)))
        else:
            del data[place:]
        data = data or bytearray(b"\0")
    return bytes(data)


@pytest.mark.timeout(300)
def test_a_server_answers_broken_messages_and_lives_on(tmp_path):
    rng = np.random.default_rng(7)
    processes.put(tmp_path, processes.linear(7.0), "m", 1)
    right = [
        infer_request("m", raw=bytes(24)).SerializeToString(),
        infer_request("m", fp32_contents=[0.5] * 6).SerializeToString(),
    ]
    allowed = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "DEADLINE_EXCEEDED"}
    with processes.running(tmp_path, "--grpc-port", 0) as server, grpc.insecure_channel(server.grpc) as channel:
        ask = channel.unary_unary(SERVICE + "ModelInfer")
        seen, silent = set(), []
        for number in range(1500):
            sent = mutated(rng, right[number % 2])
            try:
                ask(sent, timeout=60)
                seen.add("OK")
            except grpc.RpcError as error:
                seen.add(error.code().name)
                if not error.details():
                    silent.append(sent)
        assert silent == []
        assert seen <= allowed
        assert {"OK", "INVALID_ARGUMENT"} <= seen
        assert pb.ModelInferResponse.FromString(ask(right[0], timeout=60)).model_name == "m"
