import io
import json
import re

import numpy as np
import pytest
from helpers import build
from onnx import TensorProto, helper

ROW = [0.5, -1.0, 2.0, 0.25, 0.0, 1.5]


def rows(count, seed=1):
    return np.random.default_rng(seed).standard_normal((count, 6)).astype(np.float32)


@pytest.mark.parametrize("path", ["/predict", "/models/tiny/predict", "/models/tiny/versions/1/predict"])
@pytest.mark.parametrize("count", [1, 2, 33])
def test_answers_what_numpy_computes(client, tiny, path, count):
    x = rows(count)
    answer = client.post(path, json={"inputs": x.tolist()})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert (body["model"], body["version"]) == ("tiny", "1")
    np.testing.assert_allclose(body["outputs"]["logits"], tiny.logits(x), rtol=1e-4, atol=1e-5)
    probabilities = tiny.probabilities(x)
    assert [item["label"] for item in body["predictions"]] == [
        ["ant", "bee", "cat"][i] for i in probabilities.argmax(axis=1)
    ]
    np.testing.assert_allclose(
        [item["probability"] for item in body["predictions"]], probabilities.max(axis=1), rtol=1e-4
    )


def test_named_input_and_more_rows_than_a_batch_holds(client, tiny):
    x = rows(700)
    body = client.post("/predict", json={"inputs": {"x": x.tolist()}}).json()
    np.testing.assert_allclose(body["outputs"]["logits"], tiny.logits(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["body", "query"])
def test_top_k_ranks_the_labels(client, tiny, how):
    x = rows(4)
    if how == "body":
        answer = client.post("/predict", json={"inputs": x.tolist(), "top_k": 2})
    else:
        answer = client.post("/predict?top_k=2", json={"inputs": x.tolist()})
    for item, probabilities in zip(answer.json()["predictions"], tiny.probabilities(x), strict=True):
        order = np.argsort(-probabilities)[:2]
        assert [entry["label"] for entry in item["top_k"]] == [["ant", "bee", "cat"][i] for i in order]
        np.testing.assert_allclose([entry["probability"] for entry in item["top_k"]], probabilities[order], rtol=1e-4)
        assert item["label"] == item["top_k"][0]["label"]


def test_integers_and_every_notation_of_numbers_are_numbers(client, tiny):
    body = b'{"inputs": [[1, -0, 2e0, 1E-3, 0.5, -1.25e+1]]}'
    answer = client.post("/predict", content=body).json()
    expected = tiny.logits(np.array([[1, 0, 2, 1e-3, 0.5, -12.5]]))
    np.testing.assert_allclose(answer["outputs"]["logits"], expected, rtol=1e-4, atol=1e-5)


def test_curl_without_a_content_type_is_understood(client):
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert client.post("/predict", content=json.dumps({"inputs": [ROW]}), headers=headers).status_code == 200


BAD = {
    "no body": (b"", 400, r"body is empty; expected \{\"inputs\": \[\[6 numbers\], …\]\}"),
    "no JSON": (b"hello", 400, r"not valid JSON.*expected"),
    "cut short": (b'{"inputs": [[1,2,3', 400, r"not valid JSON"),
    "a list": (b"[[1,2,3,4,5,6]]", 400, r"body is a list; expected \{\"inputs\""),
    "wrong key": (b'{"instances": [[1,2,3,4,5,6]]}', 400, r"unknown key 'instances'; known: inputs"),
    "no key": (b"{}", 400, r"key 'inputs' is missing"),
    "wrong input name": (b'{"inputs": {"y": [[1,2,3,4,5,6]]}}', 400, r"no input 'y'; its inputs: x"),
    "inputs is null": (b'{"inputs": null}', 400, r"inputs is null; expected a list"),
    "inputs is a number": (b'{"inputs": 5}', 400, r"inputs is 5; expected a list"),
    "too narrow": (b'{"inputs": [[1,2,3]]}', 400, r"inputs\[0\] has 3 values; expected 6"),
    "too wide": (b'{"inputs": [[1,2,3,4,5,6],[1,2,3,4,5,6,7]]}', 400, r"inputs\[1\] has 7 values; expected 6"),
    "ragged": (b'{"inputs": [[1,2,3,4,5,6],[1,2,3,4,5]]}', 400, r"inputs\[1\] has 5 values; expected 6"),
    "ragged, right in sum": (b'{"inputs": [[1,2,3,4,5,6,7],[1,2,3,4,5]]}', 400, r"inputs\[0\] has 7 values"),
    "flat": (b'{"inputs": [1,2,3,4,5,6]}', 400, r"inputs\[0\] is 1; expected a list"),
    "too deep": (b'{"inputs": [[[1,2,3,4,5,6]]]}', 400, r"inputs\[0\] has 1 values; expected 6"),
    "nested, right in sum": (b'{"inputs": [[[1],2,3,4,5,6]]}', 400, r"inputs\[0\]\[0\] is a list"),
    "nested, right in length": (b'{"inputs": [[[],[1,2],3,4,5,6]]}', 400, r"inputs\[0\]\[0\] is a list"),
    "nested and empty": (b'{"inputs": [[1,2,3,4,5,6],[]]}', 400, r"inputs\[1\] has 0 values"),
    "text": (b'{"inputs": [[1,2,3,4,5,"6"]]}', 400, r"inputs\[0\]\[5\] is the string '6'; expected a number"),
    "null": (b'{"inputs": [[1,2,null,4,5,6]]}', 400, r"inputs\[0\]\[2\] is null; expected a number"),
    "true": (b'{"inputs": [[1,2,3,4,true,6]]}', 400, r"inputs\[0\]\[4\] is true; expected a number"),
    "an object": (b'{"inputs": [[1,2,3,4,{},6]]}', 400, r"inputs\[0\]\[4\] is an object"),
    "NaN": (b'{"inputs": [[1,2,3,4,5,NaN]]}', 400, r"NaN and Infinity are not JSON; numbers must be finite"),
    "infinity": (b'{"inputs": [[1,2,3,4,5,-Infinity]]}', 400, r"numbers must be finite"),
    "1e39": (b'{"inputs": [[1,2,3,4,5,1e39]]}', 400, r"inputs\[0\]\[5\] is 1e\+39, beyond what FP32"),
    "1e39 twice": (b'{"inputs": [[1,2,3,4,-1e39,1e39]]}', 400, r"inputs\[0\]\[4\] is -1e\+39, beyond what FP32"),
    "1e400": (b'{"inputs": [[1,2,3,4,5,1e400]]}', 400, r"JSON|beyond|finite"),
    "a huge integer": (b'{"inputs": [[1,2,3,4,5,1' + b"0" * 60 + b"]]}", 400, r"beyond what FP32"),
    "unknown key beside": (b'{"inputs": [[1,2,3,4,5,6]], "paramters": {}}', 400, r"unknown key 'paramters'"),
    "unknown output": (b'{"inputs": [[1,2,3,4,5,6]], "outputs": ["z"]}', 400, r"string 'z'; model 'tiny' has: logits"),
    "top_k of zero": (b'{"inputs": [[1,2,3,4,5,6]], "top_k": 0}', 400, r"'top_k' is 0; expected an integer from 1"),
    "top_k as text": (b'{"inputs": [[1,2,3,4,5,6]], "top_k": "2"}', 400, r"'top_k' is the string '2'"),
    "very deep": (b'{"inputs": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400, r"JSON|list|values"),
    "not UTF-8": (b'{"inputs": "\xff"}', 400, r"not valid JSON"),
}


@pytest.mark.parametrize(("body", "status", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named(client, body, status, message):
    answer = client.post("/predict", content=body)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert re.search(message, answer.json()["error"]), answer.json()["error"]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("POST", "/models/mnist/predict", 404, "model 'mnist' is not loaded; loaded: tiny"),
        ("POST", "/models/tiny/versions/9/predict", 404, "model 'tiny' has no version '9'; available: 1"),
        ("POST", "/models/..%2F..%2Fetc/predict", 404, None),
        ("GET", "/models/mnist", 404, "model 'mnist' is not loaded; loaded: tiny"),
        ("GET", "/models/mnist/stats", 404, "model 'mnist' is not loaded; loaded: tiny"),
        ("GET", "/nowhere", 404, "unknown path '/nowhere'; /docs lists the paths"),
        ("GET", "/predict", 405, "method GET is not allowed for '/predict'; allowed: POST"),
        ("DELETE", "/stats", 405, "method DELETE is not allowed for '/stats'; allowed: GET"),
    ],
)
def test_unknown_names_paths_and_methods(client, method, path, status, message):
    answer = client.request(method, path, content=b'{"inputs": [[1,2,3,4,5,6]]}' if method == "POST" else None)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    if message:
        assert answer.json()["error"] == message


def test_another_content_type_is_refused(client):
    answer = client.post("/predict", content=b"x", headers={"content-type": "image/png"})
    assert answer.status_code == 415
    assert "content-type 'image/png' is not supported" in answer.json()["error"]


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_over_the_limit_is_refused(serve, tiny, announced):
    client = serve(tiny.graph(), max_body_bytes=1024)
    body = json.dumps({"inputs": [ROW] * 100}).encode()
    answer = client.post("/predict", content=body if announced else iter([body[:600], body[600:]]))
    assert answer.status_code == 413
    assert answer.json() == {"error": "the body is larger than max_body_bytes (1024)"}
    assert client.post("/predict", json={"inputs": [ROW]}).status_code == 200


def test_request_ids_are_echoed_or_made(client):
    assert (
        client.post("/predict", json={"inputs": [ROW]}, headers={"x-request-id": "abc"}).headers["x-request-id"]
        == "abc"
    )
    made = {client.post("/predict", json={"inputs": [ROW]}).headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3
    assert client.get("/nowhere", headers={"x-request-id": "abc"}).headers["x-request-id"] == "abc"
    bad = client.post("/predict", json={"inputs": [ROW]}, headers={"x-request-id": "a b"})
    assert bad.headers["x-request-id"] != "a b"


def test_a_model_without_card_or_labels_has_no_predictions(serve, tiny):
    client = serve(tiny.graph())
    body = client.post("/predict", json={"inputs": [ROW]}).json()
    assert set(body) == {"model", "version", "outputs"}
    answer = client.post("/predict?top_k=2", json={"inputs": [ROW]})
    assert (answer.status_code, "the card of model" in answer.json()["error"]) == (400, True)


def test_a_nan_that_the_model_makes_is_never_written_as_null(serve):
    nodes = [helper.make_node("Log", ["x"], ["y"])]
    tensor = [TensorProto.FLOAT, ["batch", 2]]
    client = serve(build.onnx_model(nodes, [("x", *tensor)], [("y", *tensor)]))
    answer = client.post("/predict", json={"inputs": [[1.0, -1.0]]})
    assert answer.status_code == 500
    assert "output 'y' holds NaN or infinity" in answer.json()["error"]
    assert client.post("/predict", json={"inputs": [[1.0, 1.0]]}).json()["outputs"] == {"y": [[0.0, 0.0]]}


def test_a_scalar_is_written_as_any_other_number(serve):
    scalar = [TensorProto.FLOAT, []]
    client = serve(build.onnx_model([helper.make_node("Log", ["x"], ["y"])], [("x", *scalar)], [("y", *scalar)]))
    assert client.post("/predict", json={"inputs": 2}).json()["outputs"] == {"y": 0.6931472}
    for value in (0, -1):
        answer = client.post("/predict", json={"inputs": value})
        assert (answer.status_code, "holds NaN or infinity" in answer.json()["error"]) == (500, True)
    answer = client.post("/predict", json={"inputs": 2}, headers={"accept": "application/x-npy"})
    assert np.load(io.BytesIO(answer.content)).shape == ()


def test_a_model_with_a_fixed_batch_of_one_is_served_unbatched(serve, tiny):
    client = serve(tiny.graph(batch=1))
    body = client.post("/predict", json={"inputs": [ROW]}).json()
    np.testing.assert_allclose(body["outputs"]["logits"], tiny.logits(np.array([ROW])), rtol=1e-4, atol=1e-5)
    answer = client.post("/predict", json={"inputs": [ROW, ROW]})
    assert (answer.status_code, answer.json()["error"]) == (400, "inputs has 2 values; expected 1")


def test_a_model_that_mixes_its_rows_is_not_batched(serve):
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=1, noop_with_empty_axes=0),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]
    tensor = [TensorProto.FLOAT, ["batch", 2]]
    client = serve(build.onnx_model(nodes, [("x", *tensor)], [("y", *tensor)]))
    assert client.get("/stats").json()["models"][0]["runtime"]["batched"] is False
    assert client.post("/predict", json={"inputs": [[1, 2], [3, 6]]}).json()["outputs"]["y"] == [[-2, -1], [0, 3]]


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("*/*", "application/json"),
        ("application/octet-stream", "application/octet-stream"),
        ("Application/Octet-Stream; Q=0.5, text/html", "application/octet-stream"),
        ("application/json, application/octet-stream;q=0.1", "application/json"),
        ("application/json;q=0.1, application/octet-stream;q=0.5", "application/octet-stream"),
        ("application/octet-stream;q=0, */*", "application/json"),
        ("application/octet-stream, application/x-npy;q=0.9", "application/octet-stream"),
        ("application/json, application/octet-stream, application/x-npy", "application/x-npy"),
        ("application/npy;v=1;q=0.5", "application/x-npy"),
        ("application/npy;q=much", "application/json"),
    ],
)
def test_the_answer_has_the_form_that_is_liked_best(client, accept, form):
    answer = client.post("/predict", json={"inputs": [ROW]}, headers={"accept": accept})
    assert (answer.status_code, answer.headers["content-type"]) == (200, form)


@pytest.mark.parametrize("path", ["/models/t%69ny/predict", "/models/tiny/versions/%31/predict", "/predic%74"])
def test_a_path_that_is_percent_encoded_is_the_same_path(client, path):
    answer = client.post(path, json={"inputs": [ROW]})
    assert (answer.status_code, answer.json()["model"]) == (200, "tiny")


def test_more_rows_than_a_batch_holds_of_which_each_piece_has_another_shape(serve):
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=1),
        helper.make_node("Cast", ["largest"], ["width"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["width", "minus"], ["widths"]),
        helper.make_node("Concat", ["one", "widths"], ["repeats"], axis=0),
        helper.make_node("Tile", ["x", "repeats"], ["y"]),
    ]
    constants = [helper.make_tensor(name, TensorProto.INT64, [1], [n]) for name, n in (("one", 1), ("minus", -1))]
    x, y = ("x", TensorProto.FLOAT, ["batch", 1]), ("y", TensorProto.FLOAT, ["batch", "width"])
    client = serve(build.onnx_model(nodes, [x], [y], constants), max_batch_rows=4)
    answer = client.post("/predict", json={"inputs": [[2]] * 4 + [[3]]})
    assert (answer.status_code, answer.json()["outputs"]["y"]) == (200, [[2.0] * 3] * 4 + [[3.0] * 3])


def test_a_model_without_inputs_is_asked_with_none(serve):
    constant = helper.make_tensor("c", TensorProto.FLOAT, [2], [1, 2])
    client = serve(
        build.onnx_model([helper.make_node("Constant", [], ["y"], value=constant)], [], [("y", TensorProto.FLOAT, [2])])
    )
    assert client.post("/predict", json={"inputs": {}}).json()["outputs"] == {"y": [1, 2]}
    refused = client.post("/predict", json={"inputs": []})
    assert "model 'm' has no inputs: expected" in refused.json()["error"]


@pytest.mark.parametrize("mixes", [True, False])
@pytest.mark.parametrize(("kind", "scale"), [("BFLOAT16", 1.0), ("BFLOAT16", 1e-3), ("FLOAT", 1e-3), ("FLOAT16", 1e-3)])
def test_a_mix_of_rows_shows_in_every_type_and_however_small(serve, kind, scale, mixes):
    kind = getattr(TensorProto, kind)
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["f", "axis"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["f", "mean"], ["d"]),
        helper.make_node("Mul", ["d", "scale"], ["s"]),
        helper.make_node("Cast", ["s"], ["y"], to=kind),
    ]
    constants = [
        helper.make_tensor("axis", TensorProto.INT64, [1], [0 if mixes else 1]),
        helper.make_tensor("scale", TensorProto.FLOAT, [], [scale]),
    ]
    tensor = [kind, ["batch", 5]]
    client = serve(build.onnx_model(nodes, [("x", *tensor)], [("y", *tensor)], constants))
    assert client.get("/stats").json()["models"][0]["runtime"]["batched"] is not mixes


@pytest.mark.parametrize("mixes", [True, False])
@pytest.mark.parametrize("shape", [["batch"], ["batch", 1], ["batch", "width"]])
@pytest.mark.parametrize("kind", ["INT64", "UINT8", "BOOL", "STRING"])
def test_a_mix_of_rows_shows_where_inputs_are_few_and_no_fractions(serve, kind, shape, mixes):
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["f", "axis"], ["largest"], keepdims=1),
        helper.make_node("Sub", ["f", "largest" if mixes else "f"], ["y"]),
    ]
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [0])
    inputs, outputs = [("x", getattr(TensorProto, kind), shape)], [("y", TensorProto.FLOAT, shape)]
    client = serve(build.onnx_model(nodes, inputs, outputs, [axis]))
    batching = client.get("/stats").json()["models"][0]["runtime"]["batching"]
    # What mixes rows may still be independent along its other axis: requests are joined along that one then.
    joined_along = batching["input_axes"].get("x")
    expected = 0 if not mixes else 1 if shape[-1] == "width" else None
    assert joined_along == expected


def test_a_text_for_each_row_as_classifiers_answer(serve):
    constants = [
        helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
        helper.make_tensor("good", TensorProto.STRING, [], [b"ham"]),
        helper.make_tensor("bad", TensorProto.STRING, [], [b"spam"]),
    ]
    nodes = [
        helper.make_node("Greater", ["x", "zero"], ["yes"]),
        helper.make_node("Where", ["yes", "good", "bad"], ["y"]),
    ]
    sides = [("x", TensorProto.FLOAT, ["batch"])], [("y", TensorProto.STRING, ["batch"])]
    client = serve(build.onnx_model(nodes, *sides, constants))
    assert client.get("/stats").json()["models"][0]["runtime"]["batched"] is True
    answer = client.post("/predict", json={"inputs": [1, -1, 0.5]})
    assert answer.json()["outputs"] == {"y": ["ham", "spam", "ham"]}


def test_several_inputs_of_several_types(serve):
    nodes = [
        helper.make_node("Cast", ["n"], ["nf"], to=TensorProto.FLOAT),
        helper.make_node("Where", ["flag", "x", "nf"], ["y"]),
    ]
    shape = ["batch", 2]
    model = build.onnx_model(
        nodes,
        [("x", TensorProto.FLOAT, shape), ("n", TensorProto.INT8, shape), ("flag", TensorProto.BOOL, shape)],
        [("y", TensorProto.FLOAT, shape)],
    )
    client = serve(model)
    good = {"x": [[0.5, 1.5]], "n": [[-128, 127]], "flag": [[True, False]]}
    assert client.post("/predict", json={"inputs": good}).json()["outputs"]["y"] == [[0.5, 127]]

    def error(**changes):
        answer = client.post("/predict", json={"inputs": {**good, **changes}})
        assert answer.status_code == 400
        return answer.json()["error"]

    assert error(n=[[1, 128]]) == "inputs.n[0][1] is 128; expected an integer from -128 to 127"
    assert error(n=[[1, 1.5]]) == "inputs.n[0][1] is 1.5; expected an integer from -128 to 127"
    assert error(flag=[[1, 0]]) == "inputs.flag[0][0] is 1; expected true or false"
    assert "input 'n' has 2 rows and input 'x' has 1" in error(n=[[1, 2], [3, 4]])
    missing = client.post("/predict", json={"inputs": {"x": [[1, 2]]}})
    assert missing.json()["error"].startswith('input \'n\' is missing; expected {"inputs": {"x": [[2 numbers], …]')
    listed = client.post("/predict", json={"inputs": [[1, 2]]})
    assert "has several inputs" in listed.json()["error"]
