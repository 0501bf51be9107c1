"""POST /models/{name}/benchmark, and the dense twin that it makes."""

import threading

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from helpers import build
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from app.benchmark import benchmark
from app.benchmark.dense_twin import dense_twin, folded, sites, twin_weights
from app.errors import BenchmarkError
from app.runtime import protobuf
from app.runtime.card import parse_card

ROW = [0.5, -1.0, 2.0, 0.25, 0.0, 1.5]


def layer(card, name, d_in, d_out, k, **changes):
    """A layer of one term, without bias."""
    return card()["layers"][0] | {
        "name": name,
        "in_features": d_in,
        "out_features": d_out,
        "low_rank": k,
        "bias": False,
        "parameters": {"dense": d_in * d_out, "learnable": k * (d_in + d_out), "fixed": k * (d_in + d_out)},
        **changes,
    }


def read(path):
    import json

    card = json.loads(next(p.value for p in onnx.load(path).metadata_props if p.key == "panther.card"))
    return parse_card(json.dumps(card))


def make(path, card):
    twin = onnx.load_from_string(dense_twin(folded(path), sites(card), np.random.default_rng(0)))
    onnx.checker.check_model(twin)
    return twin


def weights(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_the_twin_of_the_shipped_model_is_dense_and_nothing_else_changed():
    path = build.ROOT / "models" / "digits" / "1" / "model.onnx"
    card = read(path)
    twin = make(path, card)
    found = {name: array.shape for name, array in weights(twin).items() if array.ndim == 2}
    # what the file computes by a dense matrix already keeps it
    names = {one.name: "W" if one.plan == "dense" else "dense0" for one in card.layers}
    assert found == {f"{one.name}.{names[one.name]}": (one.in_features, one.out_features) for one in card.layers}
    assert "dense0" in names.values()
    made = [one for one in card.layers if one.plan != "dense"]
    assert twin_weights(sites(card)) == sum(one.in_features * one.out_features for one in made)
    kept = {name: array for name, array in weights(twin).items() if array.ndim == 1}
    original = weights(onnx.load_from_string(folded(path)))
    assert set(kept) == {name for name, array in original.items() if array.ndim == 1}
    for name, array in kept.items():
        np.testing.assert_array_equal(array, original[name])
    assert [node.op_type for node in twin.graph.node] == ["Gemm", "Relu", "Gemm", "Relu", "Gemm"]


def test_the_twin_computes_what_its_weights_say(tiny, tmp_path):
    path = build.put(tmp_path, tiny.graph(), "m", card=build.sketched_card())
    twin = make(path, parse_card(_text(build.sketched_card())))
    dense = weights(twin)["fc1.dense0"].astype(np.float64)
    x = np.random.default_rng(3).standard_normal((4, 6)).astype(np.float32)
    (found,) = ort.InferenceSession(twin.SerializeToString()).run(None, {"x": x})
    expected = np.maximum(x @ dense + tiny.b, 0) @ tiny.W + tiny.c
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.linalg.matrix_rank(dense) == 5


def _text(card):
    import json

    return json.dumps(card)


def product(shapes, shared=False):
    """x through pairs of matrices; shared: the first pair twice."""
    rng = np.random.default_rng(0)
    constants, nodes, source = [], [], "x"
    pairs = [*shapes, shapes[0]] if shared else shapes
    for index, (d_in, rank, d_out) in enumerate(pairs):
        which = 0 if shared else index
        if index == which:
            constants += [
                numpy_helper.from_array(rng.standard_normal(size).astype(np.float32), f"{name}{index}")
                for name, size in (("A", (d_in, rank)), ("B", (rank, d_out)))
            ]
        nodes += [
            helper.make_node("MatMul", [source, f"A{which}"], [f"p{index}"]),
            helper.make_node("MatMul", [f"p{index}", f"B{which}"], [f"q{index}"]),
            helper.make_node("Tanh", [f"q{index}"], [f"t{index}"]),
        ]
        source = f"t{index}"
    return build.onnx_model(
        nodes,
        [("x", TensorProto.FLOAT, ["n", 7, shapes[0][0]])],
        [(source, TensorProto.FLOAT, ["n", 7, pairs[-1][2]])],
        constants,
    )


def test_a_layer_that_is_used_twice_has_one_matrix_in_the_twin(tmp_path):
    one = layer(build.sketched_card, "a", 8, 8, 1)
    path = build.put(tmp_path, product([(8, 2, 8)], shared=True), "m")
    twin = make(path, parse_card(_text(build.sketched_card(layers=[one]))))
    assert {name: array.shape for name, array in weights(twin).items()} == {"a.dense0": (8, 8)}
    assert [node.op_type for node in twin.graph.node] == ["MatMul", "Tanh", "MatMul", "Tanh"]


def test_merged_layers_are_one_after_the_other_in_the_twin(tmp_path):
    first = layer(build.sketched_card, "a", 8, 20, 1)
    second = layer(build.sketched_card, "b", 20, 6, 1, plan="merged", merged_into="a")
    path = build.put(tmp_path, product([(8, 2, 6)]), "m")
    twin = make(path, parse_card(_text(build.sketched_card(layers=[first, second]))))
    assert {name: array.shape for name, array in weights(twin).items()} == {"a.dense0": (8, 20), "a.dense1": (20, 6)}
    x = np.random.default_rng(3).standard_normal((2, 7, 8)).astype(np.float32)
    (found,) = ort.InferenceSession(twin.SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(
        found, np.tanh(x @ weights(twin)["a.dense0"] @ weights(twin)["a.dense1"]), rtol=1e-4, atol=1e-5
    )


def test_layers_that_are_dense_already_stay_and_a_missing_one_is_named(tmp_path):
    path = build.put(tmp_path, product([(8, 2, 6), (6, 2, 5)]), "m")
    known = layer(build.sketched_card, "a", 8, 6, 1)
    dense = layer(build.sketched_card, "b", 6, 5, 1, plan="dense")
    twin = make(path, parse_card(_text(build.sketched_card(layers=[known, dense]))))
    assert set(weights(twin)) == {"a.dense0", "A1", "B1"}
    with pytest.raises(BenchmarkError, match="layer 'c' is not in the running graph"):
        make(path, parse_card(_text(build.sketched_card(layers=[layer(build.sketched_card, "c", 9, 6, 1)]))))


def test_it_measures_side_by_side(serve, tiny):
    client = serve(tiny.graph(), card=build.sketched_card(), model_control="explicit", max_batch_rows=16)
    answer = client.post("/models/m/benchmark", json={"rows": [1, 8, 64], "seconds": 0.2})
    assert answer.status_code == 200
    document = answer.json()
    assert (document["model"], document["version"], document["layers"]) == ("m", "1", ["fc1"])
    assert document["dense_twin_weights"] == 30
    assert document["provider"] == "CPUExecutionProvider"
    assert [batch["rows"] for batch in document["batches"]] == [1, 8]
    for batch in document["batches"]:
        assert batch["rounds"] >= 3
        assert batch["ratio"] == pytest.approx(batch["model_median_us"] / batch["dense_twin_median_us"], rel=0.01)
    live = client.get("/stats").json()["models"][0]["live"]
    assert live["requests"] == live["executions"] == 0, "measuring is no request"


def test_it_takes_turns(monkeypatch):
    order = []
    clock = iter(range(10**6))
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    ours, dense, rounds = benchmark.in_turn(lambda: order.append("ours"), lambda: order.append("dense"), 4)
    assert rounds >= 3
    assert order[:2] == ["ours", "dense"]
    assert order[2:6] == ["dense", "ours", "ours", "dense"]
    assert ours > 0
    assert dense > 0


@pytest.mark.parametrize(
    ("card", "body", "status", "message"),
    [
        (None, {}, 400, "model 'm' has no card, so its dense twin is unknown"),
        ("dense", {}, 400, "model 'm' has no layer that runs as two products"),
        ("card", {"rows": [0]}, 400, "greater than or equal to 1"),
        ("card", {"seconds": 31}, 400, "less than or equal to 30"),
        ("card", {"minutes": 1}, 400, "body.minutes"),
    ],
)
def test_what_cannot_be_measured_is_said(serve, tiny, card, body, status, message):
    if card == "dense":
        card = build.sketched_card(layers=[build.sketched_card()["layers"][0] | {"plan": "dense"}])
    elif card == "card":
        card = build.sketched_card()
    client = serve(tiny.graph(), card=card, model_control="explicit")
    answer = client.post("/models/m/benchmark", json=body)
    assert answer.status_code == status
    assert message in answer.json()["error"]


def test_it_is_off_unless_control_is_allowed(client):
    answer = client.post("/models/tiny/benchmark")
    assert answer.status_code == 403
    assert "PANTHER_MODEL_CONTROL=explicit" in answer.json()["error"]


def test_a_twin_that_is_too_large_is_refused_before_it_is_made(serve, tiny, monkeypatch):
    client = serve(tiny.graph(), card=build.sketched_card(), model_control="explicit")
    monkeypatch.setattr(benchmark, "MAX_TWIN_BYTES", 119)
    monkeypatch.setattr(benchmark, "folded", None)
    answer = client.post("/models/m/benchmark")
    assert answer.status_code == 400
    assert answer.json()["error"] == "the dense twin of model 'm' has 120 bytes of weights; the maximum is 119"
    monkeypatch.setattr(benchmark, "MAX_TWIN_BYTES", 10**9)
    monkeypatch.setattr(benchmark, "available_bytes", lambda: 100)
    assert "more than the 100 bytes of free memory" in client.post("/models/m/benchmark").json()["error"]


def test_requests_are_answered_meanwhile_and_a_second_benchmark_waits_its_turn(serve, tiny):
    client = serve(tiny.graph(), card=build.sketched_card(), model_control="explicit")
    answers = []

    def first():
        while 200 not in answers:  # until it has its turn: the others want theirs too
            answers.append(client.post("/models/m/benchmark", json={"rows": [1, 2], "seconds": 0.8}).status_code)

    thread = threading.Thread(target=first)
    thread.start()
    refused = 200
    while thread.is_alive() and refused == 200:
        refused = client.post("/models/m/benchmark", json={"rows": [1], "seconds": 0.001}).status_code
    assert refused == 503
    assert client.post("/predict", json={"inputs": [ROW]}).status_code == 200
    thread.join()
    assert set(answers) <= {200, 503}


def test_messages_come_through_unchanged():
    data = (build.ROOT / "models" / "digits" / "1" / "model.onnx").read_bytes()
    assert protobuf.serialise(protobuf.parse(data)) == data
    (graph,) = protobuf.submessages(protobuf.parse(data), 7)
    assert len(protobuf.submessages(graph, 1)) == len(onnx.load_from_string(data).graph.node)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, 2**63 - 1), max_size=8), st.text(max_size=20))
def test_numbers_and_texts_are_read_as_protobuf_writes_them(dims, name):
    tensor = TensorProto(dims=dims, name=name, raw_data=b"\x00\xff")
    fields = protobuf.parse(tensor.SerializeToString())
    assert protobuf.integers(fields, 1) == dims
    assert (protobuf.texts(fields, 8) or [""]) == [name]
    assert TensorProto.FromString(protobuf.serialise(fields)) == tensor


@pytest.mark.parametrize("data", [b"\x0a\x05abc", b"\x08", b"\x0b\x01", b"\x08" + b"\xff" * 11])
def test_what_is_no_message_is_refused(data):
    with pytest.raises(ValueError, match=r"the message ends within|wire type"):
        protobuf.parse(data)
