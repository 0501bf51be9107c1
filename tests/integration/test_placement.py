"""A model placed by its ``panther.toml``: instances behind one queue, as a server shows and uses them."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import build
from onnx import TensorProto, helper, numpy_helper

from app.runtime import instance as instance_module

FLOAT = TensorProto.FLOAT
WIDTH = 64


def products():
    """Some layers, so that a run takes a moment."""
    weights = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32) / 8
    nodes = [helper.make_node("MatMul", [f"x{i}" if i else "x", "W"], [f"h{i}"]) for i in range(4)]
    nodes += [helper.make_node("Tanh", [f"h{i}"], [f"x{i + 1}" if i < 3 else "y"]) for i in range(4)]
    nodes = [node for pair in zip(nodes[:4], nodes[4:], strict=True) for node in pair]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", WIDTH])],
        [numpy_helper.from_array(weights, "W")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), weights


def expected(x, weights):
    for _ in range(4):
        x = np.tanh(x @ weights)
    return x


@pytest.fixture
def placed(tmp_path):
    """Serves the model with a text in its panther.toml."""
    model, weights = products()
    build.put(tmp_path, model, "m")

    def serve(text, **settings):
        (tmp_path / "m" / "panther.toml").write_text(text)
        return build.running(tmp_path, num_threads=4, **settings)

    return serve, weights


def test_two_instances_on_the_cpu_run_at_the_same_time_and_answer_right(placed, monkeypatch):
    serve, weights = placed
    at_once, most, lock = set(), [], threading.Lock()
    both = threading.Event()
    run = instance_module.ModelInstance.run

    def watched(self, *arguments, **options):
        with lock:
            at_once.add(self)
            most.append(len(at_once))
            if len(at_once) == 2:
                both.set()
        if threading.current_thread().name.startswith("model-m-cpu"):
            both.wait(60)  # the first run waits for another one beside it
        try:
            return run(self, *arguments, **options)
        finally:
            with lock:
                at_once.discard(self)

    monkeypatch.setattr(instance_module.ModelInstance, "run", watched)
    inputs = [np.random.default_rng(n).standard_normal((n % 7 + 1, WIDTH)).astype(np.float32) for n in range(60)]
    with serve("max_batch_rows = 8\n[placement]\ninstances = 2") as client:

        def ask(x):
            return client.post("/models/m/predict", json={"inputs": x.tolist()}).json()["outputs"]["y"]

        with ThreadPoolExecutor(8) as pool:
            for x, y in zip(inputs, pool.map(ask, inputs), strict=True):
                np.testing.assert_allclose(y, expected(x, weights), rtol=1e-4, atol=1e-5)
        runtime = client.get("/models/m/stats").json()["models"][0]["runtime"]
        config = client.get("/v2/models/m/config").json()
        metrics = client.get("/metrics").text
    assert max(most) == 2
    assert [item["device"] for item in runtime["instances"]] == ["cpu", "cpu"]
    assert all(item["runs"] > 0 for item in runtime["instances"])
    assert runtime["num_threads"] == 2  # four, divided
    assert config["instance_group"] == [{"name": "m", "kind": "KIND_CPU", "count": 2}]
    assert 'panther_model_instances{device="cpu",model="m",version="1"} 2.0' in metrics


def test_a_device_that_is_not_there_is_an_error_and_nothing_is_served(placed):
    serve, _ = placed
    with serve("[placement]\ndevices = [0, 1]", device="cpu") as client:
        error = client.get("/health/ready").json()["error"]
    assert "m: model 'm': placement.devices: 0 requires CUDA, which is not available: it was" in error


def test_a_load_in_triton_s_form_places_the_model_until_the_next_load(placed):
    serve, weights = placed
    with serve("", model_control="explicit") as client:

        def load(config=None):
            body = {} if config is None else {"parameters": {"config": json.dumps(config)}}
            return client.post("/v2/repository/models/m/load", json=body)

        def devices():
            runtime = client.get("/models/m/stats").json()["models"][0]["runtime"]
            return [item["device"] for item in runtime["instances"]]

        answer = load({"instance_group": [{"kind": "KIND_CPU", "count": 3, "passive": False}], "max_batch_size": 8})
        assert answer.status_code == 200
        assert answer.json()["warning"].endswith("panther.toml: max_batch_size, instance_group.passive")
        assert devices() == ["cpu"] * 3
        x = np.ones((2, WIDTH), np.float32)
        answer = client.post("/models/m/predict", json={"inputs": x.tolist()}).json()
        np.testing.assert_allclose(answer["outputs"]["y"], expected(x, weights), rtol=1e-4, atol=1e-5)
        assert (
            load({"instance_group": [{"kind": "KIND_GPU", "gpus": [0]}]})
            .json()["error"]
            .startswith("model 'm': placement.devices: 0 requires CUDA, which is not available: ")
        )
        assert devices() == ["cpu"] * 3  # what was served stays
        assert load().status_code == 200
        assert devices() == ["cpu"]


def test_placement_and_providers_exclude_each_other(placed):
    serve, _ = placed
    with serve('[placement]\ndevices = "cpu"\n[session]\nproviders = ["cpu"]') as client:
        assert "placement.devices and session.providers exclude each other" in client.get("/health/ready").text


def test_without_placement_there_is_one_instance_of_the_server_s_device(placed):
    serve, _ = placed
    with serve("") as client:
        runtime = client.get("/models/m/stats").json()["models"][0]["runtime"]
        assert client.post("/models/m/predict", json={"inputs": [[0.0] * WIDTH]}).status_code == 200
        runs = client.get("/models/m/stats").json()["models"][0]["runtime"]["instances"][0]["runs"]
    assert runtime["instances"] == [{"device": "cpu", "runs": 0, "cuda": None}]
    assert (runs, runtime["num_threads"]) == (1, 4)
    assert json.dumps(runtime["cuda"]) == "null"
