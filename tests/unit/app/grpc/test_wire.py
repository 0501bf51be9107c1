"""Messages are split and joined as protobuf would, whatever their bytes."""

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from helpers.grpc_client import infer_request, pb

from app.grpc.wire import MAX_PREFIX_BYTES, joined, split


def request(*tensors, **fields):
    made = pb.ModelInferRequest(model_name="m", raw_input_contents=tensors, **fields)
    made.parameters["priority"].int64_param = 300
    for number in range(len(tensors)):
        made.inputs.add(name=f"x{number}", datatype="FP32", shape=[1, 300])
        made.outputs.add(name="y")
    return made


def parsed(data):
    try:
        return pb.ModelInferRequest.FromString(data)
    except DecodeError:
        return None


def rejoined(data):
    """A message put together again from its parts: None if protobuf alone can tell, or refuses the head."""
    parts = split(data)
    found = None if parts is None else parsed(parts[0])
    if found is not None:
        assert not found.raw_input_contents
        found.raw_input_contents.extend(map(bytes, parts[1]))
    return found


@pytest.mark.parametrize("sizes", [(0,), (1,), (127,), (128,), (16_384,), (3_000_000,), (0, 200, 0), (4, 70_000)])
def test_tensors_are_split_off_without_a_copy(sizes):
    made = request(*[bytes([size % 251]) * size for size in sizes], id="7", model_version="2")
    data = made.SerializeToString()
    assert rejoined(data) == rejoined(memoryview(bytearray(data))) == made
    assert all(tensor.obj is data for tensor in split(data)[1])


def test_what_has_no_raw_tensors_at_its_end_is_left_to_protobuf():
    raw = request(bytes(8)).SerializeToString()
    assert split(b"") is None
    assert split(infer_request("m", fp32_contents=[1.0] * 6).SerializeToString()) is None
    assert split(raw + pb.ModelInferRequest(id="late").SerializeToString()) is None
    assert split(request(bytes(8), id="7" * MAX_PREFIX_BYTES).SerializeToString()) is None
    assert split(request(*[b"x"] * 65).SerializeToString()) is None
    assert split(b"\x3a" + b"\xff" * 9 + b"\x01") is None


def test_broken_messages_are_never_read_otherwise_than_by_protobuf():
    rng = np.random.default_rng(5)
    right = [request(bytes(8)).SerializeToString(), request(b"abc", bytes(200), id="é").SerializeToString()]
    read = 0
    for number in range(20_000):
        data = bytearray(right[number % 2])
        for _ in range(int(rng.integers(1, 4))):
            data[int(rng.integers(len(data)))] = int(rng.choice([0, 1, 2, 7, 8, 0x3A, 0x2A, 0x80, 0xFF]))
        data = bytes(data[: int(rng.integers(1, len(data) + 1))] if rng.random() < 0.3 else data)
        found = rejoined(data)
        if found is not None:
            assert found == parsed(data)
            read += 1
        elif split(data) is not None:
            assert parsed(data) is None
    assert read > 1000


@pytest.mark.parametrize("sizes", [(), (0,), (127, 128), (16_383,), (16_384,), (3_000_000, 1)])
def test_responses_are_joined(sizes):
    answer = pb.ModelInferResponse(model_name="m", model_version="1", id="7")
    head = answer.SerializeToString()
    tensors = [bytes([size % 251]) * size for size in sizes]
    answer.raw_output_contents.extend(tensors)
    assert pb.ModelInferResponse.FromString(joined(head, tensors)) == answer
