"""Models of other tools, asked by many clients at once: a batch never changes an answer."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
import pytest
from helpers.build import onnx_model
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
CLIENTS = 32


def constant(name, value, dtype=np.float32):
    return numpy_helper.from_array(np.array(value, dtype), name)


def dropped():
    """Rows whose first number is large are left out, the others are doubled."""
    nodes = [
        helper.make_node("Slice", ["x", "zero", "one", "one"], ["first"]),
        helper.make_node("Abs", ["first"], ["size"]),
        helper.make_node("Less", ["size", "limit"], ["small"]),
        helper.make_node("Squeeze", ["small", "one"], ["keep"]),
        helper.make_node("Compress", ["x", "keep"], ["kept"], axis=0),
        helper.make_node("Add", ["kept", "kept"], ["y"]),
    ]
    constants = [constant("zero", [0], np.int64), constant("one", [1], np.int64), constant("limit", 50)]
    return onnx_model(nodes, [("x", FLOAT, ["n", 3])], [("y", FLOAT, ["m", 3])], constants)


def repeated():
    """Each row twice."""
    nodes = [helper.make_node("Tile", ["x", "twice"], ["y"])]
    return onnx_model(nodes, [("x", FLOAT, ["n", 3])], [("y", FLOAT, ["m", 3])], [constant("twice", [2, 1], np.int64)])


def scaled_by_the_batch():
    """Quantized by the range of the whole tensor, as onnxruntime's quantize_dynamic does it."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    return onnx_model(nodes, [("x", FLOAT, ["n", 3])], [("y", FLOAT, ["n", 3])], [])


def as_wide_as_the_data():
    """Ones up to the largest number of all rows: what one client sends widens the output of the others."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["end"], to=INT64),
        helper.make_node("Range", ["zero", "end", "one"], ["places"]),
        helper.make_node("Cast", ["places"], ["numbers"], to=FLOAT),
        helper.make_node("ReduceMax", ["x", "axis"], ["own"], keepdims=1),
        helper.make_node("Less", ["numbers", "own"], ["below"]),
        helper.make_node("Cast", ["below"], ["y"], to=FLOAT),
    ]
    constants = [constant("zero", 0, np.int64), constant("one", 1, np.int64), constant("axis", [1], np.int64)]
    return onnx_model(nodes, [("x", FLOAT, ["n", 3])], [("y", FLOAT, ["n", "w"])], constants)


def rowwise():
    nodes = [helper.make_node("Softmax", ["x"], ["y"], axis=1)]
    return onnx_model(nodes, [("x", FLOAT, ["n", 3])], [("y", FLOAT, ["n", 3])], [])


MODELS = {
    "rows are dropped": (dropped, False, "Compress"),
    "rows are repeated": (repeated, False, "Tile"),
    "scaled by the batch": (scaled_by_the_batch, False, "DynamicQuantizeLinear"),
    "as wide as the data": (as_wide_as_the_data, False, None),
    "row by row": (rowwise, True, None),
}


def at_once(client, bodies):
    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(lambda body: client.post("/models/m/predict", json=body), bodies))


@pytest.mark.parametrize("kind", MODELS)
def test_many_clients_get_what_each_alone_would(serve, kind):
    make, batched, node = MODELS[kind]
    model = make()
    client = serve(model, inline_run_us=0)
    (report,) = client.get("/models/m/stats").json()["models"]
    runtime = report["runtime"]
    assert runtime["batched"] is batched
    assert runtime["batching"]["decided_by"] == "proof"
    assert node is None or runtime["batching"]["op_type"] == node
    alone = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 9, (1, 3)).astype(np.float32) for _ in range(320)]
    rows[::5] = [row * 100 if kind == "rows are dropped" else row * 3 for row in rows[::5]]
    for row, answer in zip(rows, at_once(client, [{"inputs": row.tolist()} for row in rows]), strict=True):
        assert answer.status_code == 200, answer.text
        (expected,) = alone.run(None, {"x": row})
        found = np.array(answer.json()["outputs"]["y"], np.float32).reshape(expected.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (client.get("/models/m/stats").json()["models"][0]["live"]["executions"] < 320) or not batched


def test_rows_on_the_second_axis_and_a_shared_input_are_batched(serve):
    """The state of a recurrent network has its rows second; a gain that all share must be the same in a batch."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["p"]),
        helper.make_node("Mul", ["p", "gain"], ["q"]),
        helper.make_node("ReduceSum", ["q", "time"], ["y"], keepdims=0),
    ]
    W = np.random.default_rng(1).standard_normal((4, 2)).astype(np.float32)
    model = onnx_model(
        nodes,
        [("x", FLOAT, ["t", "n", 4]), ("gain", FLOAT, [])],
        [("y", FLOAT, ["n", 2])],
        [constant("W", W), constant("time", [0], np.int64)],
    )
    client = serve(model, inline_run_us=0)
    (report,) = client.get("/models/m/stats").json()["models"]
    assert report["runtime"]["batching"]["input_axes"] == {"x": 1, "gain": None}
    assert report["runtime"]["batching"]["output_axes"] == {"y": 0}
    rng = np.random.default_rng(2)
    asked = [
        (rng.standard_normal((2 + index % 3, 1 + index % 2, 4)).astype(np.float32), float(1 + index % 4))
        for index in range(200)
    ]
    bodies = [{"inputs": {"x": x.tolist(), "gain": gain}} for x, gain in asked]
    for (x, gain), answer in zip(asked, at_once(client, bodies), strict=True):
        assert answer.status_code == 200, answer.text
        np.testing.assert_allclose(answer.json()["outputs"]["y"], (x @ W * gain).sum(0), rtol=1e-4, atol=1e-4)


def test_a_run_that_returns_other_rows_ends_batching_and_loses_no_answer(serve, tmp_path):
    """A person said that rows are independent, and was wrong: each request runs again by itself."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "panther.toml").write_text('batching = "on"\n')
    client = serve(dropped(), inline_run_us=0)
    (report,) = client.get("/models/m/stats").json()["models"]
    assert (report["runtime"]["batched"], report["runtime"]["batching"]["decided_by"]) == (True, "settings")
    rows = [[[1000.0, 0, 0] if index % 5 == 0 else [float(index % 40), 0, 0]] for index in range(320)]
    for row, answer in zip(rows, at_once(client, [{"inputs": row} for row in rows]), strict=True):
        expected = [] if row[0][0] == 1000 else [[2 * row[0][0], 0, 0]]
        assert answer.json()["outputs"]["y"] == expected
    (report,) = client.get("/models/m/stats").json()["models"]
    assert (report["runtime"]["batched"], report["runtime"]["batching"]["decided_by"]) == (False, "run")
    assert "rows gave output 'y' of shape" in report["runtime"]["batching"]["reason"]
    metrics = client.get("/metrics").text
    assert 'panther_mismatched_runs_total{model="m",version="1"} 1.0' in metrics or "mismatched_runs_total" in metrics


def test_the_log_says_what_is_not_batched_and_which_node_decides(serve, caplog):
    caplog.set_level("INFO")
    serve(scaled_by_the_batch())
    assert "model m version 1 is not batched: node" in caplog.text
    assert json.dumps("DynamicQuantizeLinear")[1:-1] in caplog.text
