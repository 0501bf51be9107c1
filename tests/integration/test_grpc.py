"""Inference over gRPC on real sockets, judged by the public client, unmodified, and by the answers over HTTP."""

import re
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from helpers import build, processes
from helpers.grpc_client import SERVICE, TRANSPORTS, infer, infer_request, pb, refused, tritonclient
from onnx import TensorProto, helper

TYPES = {
    "BOOL": (TensorProto.BOOL, np.bool_, "bool_contents"),
    "UINT8": (TensorProto.UINT8, np.uint8, "uint_contents"),
    "UINT16": (TensorProto.UINT16, np.uint16, "uint_contents"),
    "UINT32": (TensorProto.UINT32, np.uint32, "uint_contents"),
    "UINT64": (TensorProto.UINT64, np.uint64, "uint64_contents"),
    "INT8": (TensorProto.INT8, np.int8, "int_contents"),
    "INT16": (TensorProto.INT16, np.int16, "int_contents"),
    "INT32": (TensorProto.INT32, np.int32, "int_contents"),
    "INT64": (TensorProto.INT64, np.int64, "int64_contents"),
    "FP16": (TensorProto.FLOAT16, np.float16, None),
    "FP32": (TensorProto.FLOAT, np.float32, "fp32_contents"),
    "FP64": (TensorProto.DOUBLE, np.float64, "fp64_contents"),
    "BYTES": (TensorProto.STRING, np.object_, "bytes_contents"),
    "BF16": (TensorProto.BFLOAT16, np.float32, None),
}
MAX_BODY_BYTES = 4 << 20


def identity(kind):
    tensor = [kind, ["batch", 3]]
    return build.onnx_model([helper.make_node("Identity", ["x"], ["y"])], [("x", *tensor)], [("y", *tensor)])


def sample(datatype):
    dtype = TYPES[datatype][1]
    if datatype == "BYTES":
        return np.array([["é".encode(), b"", b"b"], [b"long " * 50, b"\n", b"0"]], dtype=object)
    if datatype == "BOOL":
        return np.array([[True, False, True], [False, False, True]])
    if datatype in ("BF16", "FP16"):  # numbers that these types hold
        return (np.arange(6).reshape(2, 3) / 2 - 1).astype(dtype)
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        return np.array([[limits.min, limits.max, 1], [2, 3, 4]], dtype)
    return np.array([[0.5, -1, np.nan], [np.inf, -np.inf, 1e-30]], dtype)


@pytest.fixture(scope="module", params=TRANSPORTS)
def server(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for datatype, (kind, _, _) in TYPES.items():
        build.put(root, identity(kind), datatype.lower())
    processes.put(root, processes.linear(7.0), "m", 1)
    half = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT16)
    tensors = [("x", TensorProto.FLOAT, ["n", 3])], [("y", TensorProto.FLOAT16, ["n", 3])]
    build.put(root, build.onnx_model([half], *tensors), "half")
    arguments = (
        "--grpc-port",
        0,
        "--grpc-transport",
        request.param,
        "--max-body-bytes",
        MAX_BODY_BYTES,
        "--access-log",
    )
    with processes.running(root, *arguments) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with tritonclient.InferenceServerClient(server.grpc) as client:
        yield client


def tensor(array, datatype, name="x"):
    made = tritonclient.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


@pytest.mark.parametrize("datatype", TYPES)
def test_every_datatype_comes_back_raw(client, datatype):
    given = sample(datatype)
    answer = client.infer(datatype.lower(), [tensor(given, datatype)], request_id="é7")
    np.testing.assert_array_equal(answer.as_numpy("y"), given)
    response = answer.get_response()
    assert (response.model_name, response.model_version, response.id) == (datatype.lower(), "1", "é7")
    assert not response.outputs[0].HasField("contents")


@pytest.mark.parametrize("datatype", [name for name, (_, _, field) in TYPES.items() if field])
def test_every_datatype_with_a_field_comes_back_typed(server, datatype):
    given, field = sample(datatype), TYPES[datatype][2]
    values = {field: given.reshape(-1).tolist()}
    answer = infer(server.grpc, infer_request(datatype.lower(), datatype, (2, 3), **values))
    (output,) = answer.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("y", datatype, [2, 3])
    found = np.array(list(getattr(output.contents, field)), given.dtype).reshape(2, 3)
    np.testing.assert_array_equal(found, given)
    assert len(output.contents.ListFields()) == 1
    assert not answer.raw_output_contents


def test_an_output_without_typed_contents_makes_the_answer_raw(server):
    answer = infer(server.grpc, infer_request("half", "FP32", (1, 3), fp32_contents=[0.5, 1, -2]))
    assert answer.outputs[0].datatype == "FP16"
    np.testing.assert_array_equal(np.frombuffer(answer.raw_output_contents[0], np.float16), [0.5, 1, -2])


def test_a_typed_request_may_ask_for_a_raw_answer(server):
    request = infer_request("m", fp32_contents=processes.ROW)
    request.parameters["binary_data_output"].bool_param = True
    np.testing.assert_array_equal(np.frombuffer(infer(server.grpc, request).raw_output_contents[0], np.float32), [7, 7])


def test_outputs_are_chosen_and_ranked(server, client):
    ranked = tritonclient.InferRequestedOutput("y", class_count=2)
    answer = client.infer("fp32", [tensor(np.array([[1, 3, 2]], np.float32), "FP32")], outputs=[ranked])
    assert answer.as_numpy("y").tolist() == [[b"3.000000:1", b"2.000000:2"]]
    request = infer_request("fp32", shape=(1, 3), fp32_contents=[1, 3, 2])
    request.outputs.add(name="y").parameters["classification"].int64_param = 1
    (output,) = infer(server.grpc, request).outputs
    assert (output.datatype, list(output.contents.bytes_contents)) == ("BYTES", [b"3.000000:1"])


INVALID = {
    "shape": (infer_request("m", shape=(1, 5), raw=bytes(20)), "input 'x' has shape [1, 5]; expected (n, 6)"),
    "negative": (infer_request("m", shape=(-1, 6), raw=bytes(24)), "'shape' is [-1, 6]; -1 is only valid in"),
    "huge": (infer_request("m", shape=(1 << 62, 6), raw=bytes(24)), "the maximum is 281474976710656 elements"),
    "bytes": (infer_request("m", raw=bytes(23)), "input 'x' has 23 bytes; FP32 of shape [1, 6] needs 24"),
    "datatype": (infer_request("m", "FP64", raw=bytes(48)), "input 'x' has datatype 'FP64'; expected FP32"),
    "name": (infer_request("m", name="z", raw=bytes(24)), "has no input 'z'; its inputs: x"),
    "no inputs": (pb.ModelInferRequest(model_name="m"), "the request has no inputs; model 'm' has: x"),
    "count": (infer_request("m", fp32_contents=[1, 2]), "2 values in fp32_contents; shape [1, 6] needs 6"),
    "field": (infer_request("m", int_contents=[1] * 6), "6 values in int_contents; expected FP32 in fp32_contents"),
    "both": (
        infer_request("m", raw=bytes(24), fp32_contents=[1]),
        "has contents, but the request has raw_input_contents",
    ),
    "typed half": (
        infer_request("fp16", "FP16", (1, 3), fp32_contents=[1] * 3),
        "input 'x' is FP16, which must be sent in raw_input_contents",
    ),
    "range": (
        infer_request("int8", "INT8", (1, 3), int_contents=[0, 300, 0]),
        "inputs.x.contents.int_contents[1] is 300; expected an integer from -128 to 127",
    ),
    "not UTF-8": (infer_request("bytes", "BYTES", (1, 3), bytes_contents=[b"a", b"\xff", b"b"]), "not valid UTF-8"),
    "not a message": (b"\xff\xff\xff", "the 3 bytes of the request are not a valid protobuf message"),
}


@pytest.mark.parametrize("case", INVALID)
def test_what_is_wrong_is_told(server, case):
    message, words = INVALID[case]
    status, details = refused(server.grpc, "ModelInfer", message)
    assert status == "INVALID_ARGUMENT"
    assert words in details


def test_unknown_models_and_messages_over_the_limit_have_their_own_status(server):
    status, details = refused(server.grpc, "ModelInfer", infer_request("nobody", raw=bytes(24)))
    assert status == "NOT_FOUND"
    assert details.startswith("model 'nobody' is not loaded; loaded: bf16, ")
    status, details = refused(server.grpc, "ModelInfer", infer_request("m", raw=bytes(MAX_BODY_BYTES)))
    assert status == "RESOURCE_EXHAUSTED"
    assert str(MAX_BODY_BYTES) in details


def test_one_raw_tensor_for_each_input_and_known_parameters(server):
    request = infer_request("m", raw=bytes(24))
    request.raw_input_contents.append(b"")
    assert refused(server.grpc, "ModelInfer", request) == (
        "INVALID_ARGUMENT", "raw_input_contents has 2 tensors, but the request has 1 inputs; give one per input",
    )  # fmt: skip
    request = infer_request("m", raw=bytes(24))
    request.inputs[0].parameters["shared_memory_region"].string_param = "a"
    assert refused(server.grpc, "ModelInfer", request) == ("INVALID_ARGUMENT", "shared memory is not supported")
    request = infer_request("m", raw=bytes(24))
    request.parameters["priority"].string_param = "high"
    said = "parameter priority is the string 'high'; expected a whole number, 0 or more"
    assert refused(server.grpc, "ModelInfer", request) == ("INVALID_ARGUMENT", said)
    request.parameters["priority"].uint64_param = 3
    request.parameters["unheard_of"].double_param = 0.5
    request.parameters["empty"]
    assert infer(server.grpc, request).model_name == "m"


def test_a_call_without_a_message_is_told(server):
    with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as found:
        channel.stream_unary(SERVICE + "ModelInfer")(iter(()), timeout=60)
    assert found.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert found.value.details() == "the call ended without a message; expected one ModelInferRequest"


def test_a_compressed_bomb_is_refused(server):
    request = infer_request("m", raw=bytes(16 * MAX_BODY_BYTES))
    status, _ = refused(server.grpc, "ModelInfer", request, compression=grpc.Compression.Gzip)
    assert status == "RESOURCE_EXHAUSTED"


def test_large_texts_are_read_by_another_process(server):
    texts = np.full((100_000, 3), b"word", dtype=object)
    with tritonclient.InferenceServerClient(server.grpc) as client:
        answer = client.infer("bytes", [tensor(texts, "BYTES")]).as_numpy("y")
    assert (answer == texts).all()
    assert any("decode_worker" in command for _, _, command in server._family())


def test_request_ids_go_both_ways(server):
    with grpc.insecure_channel(server.grpc) as channel:
        ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        message = infer_request("m", raw=bytes(24)).SerializeToString()
        _, call_made = ask.with_call(message, metadata=(("x-request-id", "mine-1"),), timeout=60)
        assert dict(call_made.trailing_metadata())["x-request-id"] == "mine-1"
        with pytest.raises(grpc.RpcError) as found:
            ask(b"\xff", timeout=60)
        assert re.fullmatch("[0-9a-f]{12}-[0-9a-f]{8}", dict(found.value.trailing_metadata())["x-request-id"])
    server.wait_for(lambda: re.search(r"GRPC /inference.GRPCInferenceService/ModelInfer 200 in .*mine-1", server.log))


def test_many_at_once_get_their_own_answers(server, client):
    rows = np.random.default_rng(0).standard_normal((256, 1, 3)).astype(np.float32)
    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda row: client.infer("fp32", [tensor(row, "FP32")]).as_numpy("y"), rows))
    np.testing.assert_array_equal(found, rows)
