"""Inference by the Open Inference Protocol, judged by the public client, unmodified."""

import json
import re
import zlib

import ml_dtypes
import numpy as np
import pytest
from helpers import build
from helpers.oip_client import InferenceServerException, triton, tritonclient
from onnx import TensorProto, helper

TYPES = {
    "BOOL": (TensorProto.BOOL, np.bool_),
    "UINT8": (TensorProto.UINT8, np.uint8),
    "UINT16": (TensorProto.UINT16, np.uint16),
    "UINT32": (TensorProto.UINT32, np.uint32),
    "UINT64": (TensorProto.UINT64, np.uint64),
    "INT8": (TensorProto.INT8, np.int8),
    "INT16": (TensorProto.INT16, np.int16),
    "INT32": (TensorProto.INT32, np.int32),
    "INT64": (TensorProto.INT64, np.int64),
    "FP16": (TensorProto.FLOAT16, np.float16),
    "FP32": (TensorProto.FLOAT, np.float32),
    "FP64": (TensorProto.DOUBLE, np.float64),
    "BYTES": (TensorProto.STRING, np.object_),
    "BF16": (TensorProto.BFLOAT16, np.float32),
}


def identity(kind, shape=("batch", 3)):
    tensor = [kind, list(shape)]
    return build.onnx_model([helper.make_node("Identity", ["x"], ["y"])], [("x", *tensor)], [("y", *tensor)])


def sample(datatype, rows=2):
    dtype = TYPES[datatype][1]
    if datatype == "BYTES":
        return np.array([[f"é{i}{j}".encode() for j in range(3)] for i in range(rows)], dtype=object)
    if datatype == "BOOL":
        return np.arange(rows * 3).reshape(rows, 3) % 2 == 0
    if datatype == "BF16":  # numbers that brain floats hold
        return np.arange(rows * 3, dtype=np.float32).reshape(rows, 3) / 2 - 1
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        array = np.arange(rows * 3).reshape(rows, 3).astype(dtype)
        array[0, 0], array[0, 1] = limits.min, limits.max
        return array
    return (np.arange(rows * 3).reshape(rows, 3) / 3 - 1).astype(dtype)


@pytest.fixture(scope="module")
def typed(tmp_path_factory):
    root = tmp_path_factory.mktemp("typed")
    for datatype, (kind, _) in TYPES.items():
        build.put(root, identity(kind), datatype.lower())
    with build.running(root, max_body_bytes=1 << 20) as client:
        yield client


def request_of(array, datatype, as_binary):
    tensor = tritonclient.InferInput("x", list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=as_binary)
    return tensor


WAYS = [
    (datatype, in_binary, out_binary)
    for datatype in TYPES
    for in_binary in (True, False)
    for out_binary in (True, False)
    if datatype not in ("FP16", "BF16") or (in_binary and out_binary)
]


@pytest.mark.parametrize(("datatype", "in_binary", "out_binary"), WAYS)
def test_every_datatype_both_ways(typed, datatype, in_binary, out_binary):
    array = sample(datatype)
    asked = [tritonclient.InferRequestedOutput("y", binary_data=out_binary)]
    result = triton(typed).infer(
        datatype.lower(), [request_of(array, datatype, in_binary)], outputs=asked, request_id="7"
    )
    answer = result.get_response()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("7", datatype.lower(), "1")
    assert answer["outputs"][0]["datatype"] == datatype
    if datatype == "BYTES" and not out_binary:  # JSON holds texts
        array = np.vectorize(bytes.decode, otypes=[object])(array)
    np.testing.assert_array_equal(result.as_numpy("y"), array)


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_as_json_are_refused(typed, datatype):
    item = {"name": "x", "shape": [1, 3], "datatype": datatype, "data": [1, 2, 3]}
    answer = typed.post(f"/v2/models/{datatype.lower()}/infer", json={"inputs": [item]})
    assert answer.status_code == 400
    assert answer.json()["error"] == f"input 'x' is {datatype}, which must be sent as binary data"
    with pytest.raises(InferenceServerException, match="is sent as binary data only; set its parameter binary_data"):
        triton(typed).infer(
            datatype.lower(),
            [request_of(sample(datatype), datatype, as_binary=True)],
            outputs=[tritonclient.InferRequestedOutput("y", binary_data=False)],
        )


def test_brain_floats_are_written_as_numbers_by_the_plain_api(typed):
    values = np.array([[1.0, 1.00390625, -3.0]], np.float32)  # the middle one lies half-way: to even
    answer = typed.post("/models/bf16/predict", json={"inputs": values.tolist()}).json()
    assert answer["outputs"]["y"] == values.astype(ml_dtypes.bfloat16).astype(float).tolist()


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("rows", [1, 200])
def test_compression_both_ways(typed, algorithm, rows):
    array = sample("FP32", rows)
    result = triton(typed).infer(
        "fp32",
        [request_of(array, "FP32", as_binary=True)],
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    np.testing.assert_array_equal(result.as_numpy("y"), array)


def test_a_long_answer_is_compressed_and_a_bare_deflate_is_understood(typed):
    item = {"name": "x", "shape": [400, 3], "datatype": "FP32", "data": [0.0] * 1200}
    body = json.dumps({"inputs": [item]}).encode()
    bare = zlib.compressobj(wbits=-15)
    headers = {"content-encoding": "deflate", "accept-encoding": "br, gzip;q=0.5, deflate;q=0"}
    answer = typed.post("/v2/models/fp32/infer", content=bare.compress(body) + bare.flush(), headers=headers)
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.json()["outputs"][0]["data"] == [0.0] * 1200


@pytest.mark.parametrize(
    ("content", "encoding", "status", "message"),
    [
        (b"no gzip", "gzip", 400, "the body is not valid gzip"),
        (zlib.compress(b"{}" * 100)[:-5], "deflate", 400, "the body is not valid deflate: it ends too early"),
        (
            zlib.compress(b" " * 50_000_000),
            "deflate",
            413,
            r"the decompressed body is larger than max_body_bytes \(1048576\)",
        ),
        (b"x", "br", 415, "content-encoding 'br' is not supported; known: gzip, deflate, identity"),
    ],
)
def test_broken_and_bomb_bodies(typed, content, encoding, status, message):
    answer = typed.post("/v2/models/fp32/infer", content=content, headers={"content-encoding": encoding})
    assert answer.status_code == status
    assert re.search(message, answer.json()["error"])


def two_by_two():
    shape = ["batch", 2]
    return build.onnx_model(
        [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])],
        [("a", TensorProto.FLOAT, shape), ("b", TensorProto.FLOAT, shape)],
        [("sum", TensorProto.FLOAT, shape), ("difference", TensorProto.FLOAT, shape)],
    )


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    root = tmp_path_factory.mktemp("pair")
    build.put(root, two_by_two(), "pair")
    with build.running(root) as client:
        yield client


def test_mixed_json_and_binary_and_chosen_outputs_in_order(pair):
    a, b = np.array([[1, 2]], np.float32), np.array([[10, 20]], np.float32)
    inputs = [tritonclient.InferInput(name, [1, 2], "FP32") for name in "ab"]
    inputs[0].set_data_from_numpy(a, binary_data=False)
    inputs[1].set_data_from_numpy(b, binary_data=True)
    asked = [
        tritonclient.InferRequestedOutput("difference", binary_data=True),
        tritonclient.InferRequestedOutput("sum", binary_data=False),
    ]
    result = triton(pair).infer("pair", inputs, outputs=asked)
    assert [item["name"] for item in result.get_response()["outputs"]] == ["difference", "sum"]
    np.testing.assert_array_equal(result.as_numpy("difference"), a - b)
    np.testing.assert_array_equal(result.as_numpy("sum"), a + b)
    only = triton(pair).infer("pair", inputs, outputs=asked[1:])
    assert only.as_numpy("difference") is None


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_binary_data_output_and_the_outputs_own_word(pair, whole, nested):
    data = [[1, 2], [3, 4]] if nested else [1, 2, 3, 4]
    inputs = [{"name": name, "shape": [2, 2], "datatype": "FP32", "data": data} for name in "ab"]
    outputs = [{"name": "sum"}, {"name": "difference", "parameters": {"binary_data": not whole}}]
    body = {"inputs": inputs, "outputs": outputs, "parameters": {"binary_data_output": whole}}
    answer = pair.post("/v2/models/pair/versions/1/infer", json=body)
    length = int(answer.headers["inference-header-content-length"])
    head = json.loads(answer.content[:length])
    assert answer.headers["content-type"] == "application/octet-stream"
    by_name = {item["name"]: item for item in head["outputs"]}
    binary_one, json_one = ("sum", "difference") if whole else ("difference", "sum")
    expected = {"sum": [2, 4, 6, 8], "difference": [0, 0, 0, 0]}
    assert by_name[json_one]["data"] == expected[json_one]
    assert by_name[binary_one]["parameters"] == {"binary_data_size": 16}
    np.testing.assert_array_equal(np.frombuffer(answer.content[length:], np.float32), expected[binary_one])
    assert "id" not in head


def infer_error(client, status=400, path="/v2/models/pair/infer", **changes):
    item = {"name": "a", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
    first = {**item, **{key: value for key, value in changes.items() if key in item or key == "parameters"}}
    inputs = changes.get("inputs", [first, {**item, "name": "b"}])
    body = {
        "inputs": inputs,
        **{key: changes[key] for key in changes if key in ("id", "outputs", "model_name", "model_version")},
    }
    if "request_parameters" in changes:
        body["parameters"] = changes["request_parameters"]
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    return answer.json()["error"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": []}, "'inputs' is a list; expected"),
        ({"inputs": None}, "'inputs' is null; expected"),
        ({"inputs": [5]}, "inputs[0] is 5; expected an object"),
        ({"name": "z"}, "inputs[0]: model 'pair' has no input 'z'; its inputs: a, b"),
        ({"name": "b"}, "input 'a' is missing; model 'pair' has: a, b"),
        ({"datatype": "FP64"}, "input 'a' has datatype 'FP64'; expected FP32"),
        ({"shape": [2]}, "input 'a' has shape [2]; expected (batch, 2)"),
        ({"shape": [1, 3]}, "input 'a' has shape [1, 3]; expected (batch, 2)"),
        ({"shape": [-1, 2]}, "input 'a': 'shape' is [-1, 2]; -1 is only valid in a model's metadata; a request gives"),
        ({"shape": [1.5, 2]}, "input 'a': 'shape' is a list; expected a list of whole numbers"),
        ({"shape": [1.0, 2]}, "input 'a': 'shape' is a list; expected a list of whole numbers"),
        ({"shape": [2, 2]}, "inputs.a.data has 2 values; shape [2, 2] takes 4"),
        (
            {"shape": [2, 2], "data": [[1, 2, 3], [4]]},
            "inputs.a.data[0] has 3 values; shape [2, 2] requires 2 values",
        ),
        ({"data": [1, "2"]}, "inputs.a.data[1] is the string '2'; expected a number"),
        ({"data": [1, None]}, "inputs.a.data[1] is null; expected a number"),
        ({"data": [1, True]}, "inputs.a.data[1] is true; expected a number"),
        ({"data": [1, 1e39]}, "inputs.a.data[1] is 1e+39, beyond what FP32 can hold"),
        ({"data": [[1], 2]}, "inputs.a.data has 2 values; shape [1, 2] requires 1 values"),
        ({"data": "12"}, "inputs.a.data is the string '12'; expected a list"),
        ({"parameters": {"binary_data_size": 8}}, "input 'a' has both 'data' and binary_data_size; give one"),
        ({"parameters": {"shared_memory_region": "r"}}, "shared memory is not supported"),
        ({"outputs": [{"name": "product"}]}, "'outputs' has the string 'product'; model 'pair' has: sum, difference"),
        ({"outputs": [{"name": "sum"}, {"name": "sum"}]}, "'outputs' names an output more than once: sum, sum"),
        ({"id": 5}, "'id' is 5; expected a string"),
        ({"model_name": "other"}, "'model_name' is 'other'; the URL of the request names 'pair'"),
        ({"model_name": 3}, "'model_name' is 3; expected a string, or no value"),
        ({"model_version": "2"}, "'model_version' is '2'; the URL of the request names '1'"),
        ({"request_parameters": {"priority": -1}}, "parameter priority is -1; expected a whole number, 0 or more"),
        ({"request_parameters": {"timeout": "5"}}, "parameter timeout is the string '5'; expected a whole number"),
        ({"request_parameters": []}, "'parameters' of the request is a list; expected an object"),
        ({"inputs": [{"name": "a", "shape": [1, 2], "datatype": "FP32"}]}, "neither 'data' nor the parameter"),
    ],
)
def test_what_is_wrong_is_named(pair, changes, message):
    assert message in infer_error(pair, **changes)


@pytest.mark.parametrize("names", [{}, {"model_name": "pair"}, {"model_name": "pair", "model_version": ""}])
def test_what_other_clients_send_besides_is_ignored(pair, names):
    """As the protocol's other servers do: KServe's client sends model_name, others metadata of their own."""
    item = {"shape": [1, 2], "datatype": "FP32", "data": [1, 2], "parameters": None}
    expected = pair.post("/v2/models/pair/infer", json={"inputs": [{"name": n, **item} for n in "ab"]}).json()
    more = {"layout": "row", "statistics": {"mean": 0.5}}
    body = {"inputs": [{"name": n, **item, **more} for n in "ab"], "trace": [1, {"a": 2}], **names}
    answer = pair.post("/v2/models/pair/infer", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"] == expected["outputs"]
    binary = {"shape": [1, 2], "datatype": "FP32", "data": None, "parameters": {"binary_data_size": 8}, **more}
    head = json.dumps({"inputs": [{"name": n, **binary} for n in "ab"], "trace": 1, **names}).encode()
    content = head + np.array([1, 2, 1, 2], np.float32).tobytes()
    headers = {"inference-header-content-length": str(len(head))}
    answer = pair.post("/v2/models/pair/infer", content=content, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"] == expected["outputs"]


def test_rows_must_agree(pair):
    assert "input 'b' has 1 rows and input 'a' has 2" in infer_error(pair, shape=[2, 2], data=[1, 2, 3, 4])
    assert infer_error(pair, shape=[0, 2], data=[], status=400)


@pytest.mark.parametrize(
    ("head_length", "tail", "message"),
    [
        ("abc", b"", "Inference-Header-Content-Length is 'abc'; expected a number of bytes"),
        ("100000", b"", "at most the body's"),
        (None, b"\0" * 15, "input 'b' has binary_data_size 8; the body has 7 bytes left"),
        (None, b"\0" * 17, "the body has 1 bytes after its last tensor"),
    ],
)
def test_binary_bodies_must_add_up(pair, head_length, tail, message):
    item = {"shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
    head = json.dumps({"inputs": [{"name": "a", **item}, {"name": "b", **item}]}).encode()
    headers = {"inference-header-content-length": head_length or str(len(head))}
    answer = pair.post("/v2/models/pair/infer", content=head + tail, headers=headers)
    assert answer.status_code == 400
    assert message in answer.json()["error"]


def test_binary_size_must_fit_the_shape(typed):
    for name, size, message in [("fp32", 8, "has 8 bytes; FP32 of shape [1, 3] needs 12"), ("bytes", 5, "at least 12")]:
        item = {"name": "x", "shape": [1, 3], "datatype": name.upper(), "parameters": {"binary_data_size": size}}
        head = json.dumps({"inputs": [item]}).encode()
        headers = {"inference-header-content-length": str(len(head))}
        answer = typed.post(f"/v2/models/{name}/infer", content=head + b"\1\0\0\0\0\0\0\0"[:size], headers=headers)
        assert answer.status_code == 400
        assert message in answer.json()["error"]


def test_raw_mode(typed, pair):
    rows = sample("FP32", 5)
    answer = typed.post(
        "/v2/models/fp32/infer", content=rows.tobytes(), headers={"inference-header-content-length": "0"}
    )
    length = int(answer.headers["inference-header-content-length"])
    head = json.loads(answer.content[:length])
    assert head["outputs"][0]["shape"] == [5, 3]
    np.testing.assert_array_equal(np.frombuffer(answer.content[length:], np.float32).reshape(5, 3), rows)
    for client, path, body, message in [
        (typed, "/v2/models/fp32/infer", b"\0" * 11, "needs a multiple of 12"),
        (typed, "/v2/models/fp32/infer", b"", "needs a multiple of 12"),
        (pair, "/v2/models/pair/infer", b"\0" * 8, "raw binary requires one input; model 'pair' has 2"),
    ]:
        refused = client.post(path, content=body, headers={"inference-header-content-length": "0"})
        assert (refused.status_code, message in refused.json()["error"]) == (400, True)


def test_classification_ranks_with_labels(client, tiny):
    x = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    asked = [tritonclient.InferRequestedOutput("logits", class_count=2)]
    tensor = tritonclient.InferInput("x", [2, 6], "FP32")
    tensor.set_data_from_numpy(x)
    result = triton(client).infer("tiny", [tensor], outputs=asked).as_numpy("logits")
    logits = tiny.logits(x)
    for row, texts in zip(logits, result, strict=True):
        for text, index in zip(texts, np.argsort(-row)[:2], strict=True):
            value, place, label = text.decode().split(":")
            assert (int(place), label) == (index, ["ant", "bee", "cat"][index])
            assert float(value) == pytest.approx(row[index], abs=1e-4)


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "ranked"),
    [
        ("INT64", [1, 3], [2**53, 2**53 + 1, -(2**63)], ["9007199254740993:1", "9007199254740992:0"]),
        ("UINT64", [1, 3], [2**64 - 2, 0, 2**64 - 1], ["18446744073709551615:2", "18446744073709551614:0"]),
        ("INT8", [1, 3], [-128, -1, 0], ["0:2", "-1:1"]),
        ("UINT8", [1, 3], [0, 255, 1], ["255:1", "1:2"]),
        ("FP64", [1, 3], [0.5, -1.5, 2.25], ["2.250000:2", "0.500000:0"]),
        ("FP32", [], [0.5], ["0.500000:0"]),
        ("INT32", [], [7], ["7:0"]),
    ],
)
def test_classification_tells_numbers_apart_and_as_they_are(serve, datatype, shape, data, ranked):
    client = serve(identity(TYPES[datatype][0], ("batch", 3) if shape else ()))
    item = {"name": "x", "shape": shape, "datatype": datatype, "data": data}
    asked = [{"name": "y", "parameters": {"classification": 2}}]
    answer = client.post("/v2/models/m/infer", json={"inputs": [item], "outputs": asked}).json()
    assert answer["outputs"][0]["data"] == ranked


def test_errors_reach_the_public_client_in_words(client):
    tensor = tritonclient.InferInput("x", [1, 5], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 5), np.float32))
    with pytest.raises(InferenceServerException, match=r"input 'x' has shape \[1, 5\]; expected \(batch, 6\)"):
        triton(client).infer("tiny", [tensor])
    with pytest.raises(InferenceServerException, match="model 'none' is not loaded; loaded: tiny"):
        triton(client).get_model_metadata("none")


def test_a_timeout_in_the_past_is_dropped_before_it_is_run(serve, tiny):
    client = serve(tiny.graph())
    item = {"name": "x", "shape": [1, 6], "datatype": "FP32", "data": [0] * 6}
    answer = client.post("/v2/models/m/infer", json={"inputs": [item], "parameters": {"timeout": 1}})
    assert answer.status_code == 504
    assert "longer than its timeout" in answer.json()["error"]
    fine = client.post(
        "/v2/models/m/infer", json={"inputs": [item], "parameters": {"timeout": 5_000_000, "priority": 1}}
    )
    assert fine.status_code == 200
    live = client.get("/stats").json()["models"][0]["live"]
    assert (live["executions"], live["failures_by_reason"]) == (1, {"DeadlineExceededError": 1})
