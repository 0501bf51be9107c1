"""Messages of the client, judged by those of the public client."""

from pathlib import Path

import numpy as np
import pytest
from helpers.grpc_client import pb

from panther_client.calls import InferOptions, Reply
from panther_client.errors import InvalidRequestError, ServerError
from panther_client.grpc_calls import GrpcCalls

ROOT = Path(__file__).parents[3]
METADATA = {
    "inputs": [
        {"name": "x", "datatype": "FP32", "shape": [-1, 2]},
        {"name": "t", "datatype": "BYTES", "shape": [-1]},
    ],
    "outputs": [],
}
COLUMNS = {
    "inputs": [
        {"name": "a", "datatype": "FP32", "shape": [-1, 1]},
        {"name": "b", "datatype": "INT64", "shape": [-1]},
    ]
}
X, T = np.array([[1.5, 2], [3, 4]]), np.array(["é", b"b"], dtype=object)


def read(call, answer):
    return call.read(Reply(200, body=answer.SerializeToString()))


def test_both_sides_have_the_same_descriptors():
    ours, theirs = (ROOT / folder / "inference.binpb" for folder in ("panther_client", "app/grpc"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_request_is_what_the_public_client_sends():
    options = InferOptions(["y"], "id", 1, 500)
    call = GrpcCalls().infer(METADATA, "m", "2", {"x": X, "t": T}, options)
    assert call.path == "/inference.GRPCInferenceService/ModelInfer"
    expected = pb.ModelInferRequest(model_name="m", model_version="2", id="id")
    expected.parameters["priority"].int64_param, expected.parameters["timeout"].int64_param = 1, 500
    expected.outputs.add(name="y")
    expected.inputs.add(name="x", datatype="FP32", shape=[2, 2])
    expected.inputs.add(name="t", datatype="BYTES", shape=[2])
    expected.raw_input_contents.extend([X.astype("<f4").tobytes(), b"\2\0\0\0\xc3\xa9\1\0\0\0b"])
    assert pb.ModelInferRequest.FromString(call.content) == expected


@pytest.mark.parametrize("raw", [True, False])
def test_answers_raw_and_typed(raw):
    answer = pb.ModelInferResponse(model_name="m", model_version="2", id="id")
    answer.parameters["p"].bool_param = True
    for name, datatype, array, field in (
        ("y", "FP32", np.array([[1.5, 2]], np.float32), "fp32_contents"),
        ("n", "INT8", np.array([-1, 2], np.int8), "int_contents"),
        ("b", "BOOL", np.array([True, False]), "bool_contents"),
    ):
        output = answer.outputs.add(name=name, datatype=datatype, shape=array.shape)
        if raw:
            answer.raw_output_contents.append(array.tobytes())
        else:
            getattr(output.contents, field).extend(array.reshape(-1).tolist())
    found = read(GrpcCalls().infer(METADATA, "m", None, {"x": X}, InferOptions()), answer)
    assert (found.model_name, found.model_version, found.id, found.parameters) == ("m", "2", "id", {"p": True})
    assert {name: array.tolist() for name, array in found.items()} == {
        "y": [[1.5, 2]],
        "n": [-1, 2],
        "b": [True, False],
    }
    assert [array.dtype for array in found.values()] == [np.float32, np.int8, np.bool_]


def test_answers_that_are_none():
    call = GrpcCalls().infer(METADATA, "m", None, {"x": X}, InferOptions())
    with pytest.raises(ServerError, match="the response of 3 bytes is not a valid ModelInferResponse"):
        call.read(Reply(200, body=b"\xff\xff\xff"))
    answer = pb.ModelInferResponse(raw_output_contents=[b"1234"])
    with pytest.raises(ServerError, match="has 0 outputs, but the bytes of 1"):
        read(call, answer)
    answer.outputs.add(name="y", datatype="FP32", shape=[2])
    with pytest.raises(ServerError, match=r"an invalid tensor \(FP32, \[2\]\)"):
        read(call, answer)
    with pytest.raises(ServerError, match=r"an invalid tensor \(FP99, \[\]\)"):
        read(call, pb.ModelInferResponse(outputs=[pb.ModelInferResponse.InferOutputTensor(datatype="FP99")]))


@pytest.mark.parametrize(
    "table",
    [{"a": [1, 2], "b": [3, 4]}, [{"a": 1, "b": 3}, {"a": 2, "b": 4}], {"a": np.array([[1], [2]]), "b": [3, 4]}],
    ids=["columns", "records", "arrays"],
)
def test_a_table_becomes_a_tensor_for_each_input(table):
    request = pb.ModelInferRequest.FromString(GrpcCalls().predict(COLUMNS, "m", None, table, None).content)
    assert {item.name: list(item.shape) for item in request.inputs} == {"a": [2, 1], "b": [2]}
    assert sorted(request.raw_input_contents) == sorted([np.array([1, 2], "<f4").tobytes(), np.array([3, 4]).tobytes()])


@pytest.mark.parametrize(
    ("table", "top_k", "said"),
    [
        ({"a": [1]}, None, "over gRPC a table must have a column per input: a, b; it has a"),
        ([{"a": 1, "b": 2}, {"a": 1}], None, "each row of the table must have the columns of the first row"),
        ("a,b\n1,2\n", None, "CSV requires HTTP"),
        ({"a": [1], "b": [2]}, 2, "top_k requires HTTP"),
        ({"a": ["x"], "b": [2]}, None, "input 'a' requires FP32"),
    ],
)
def test_what_the_protocol_cannot_say_is_refused(table, top_k, said):
    with pytest.raises(InvalidRequestError, match=said):
        GrpcCalls().predict(COLUMNS, "m", None, table, top_k)
