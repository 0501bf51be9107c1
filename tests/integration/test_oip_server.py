"""What the Open Inference Protocol tells of a server and changes in it, judged by the public client, unmodified."""

import json

import numpy as np
import pytest
from helpers import build
from helpers.oip_client import InferenceServerException, triton, tritonclient

from app.errors import InvalidRequestError
from app.service.load_policy import load_request


def test_metadata_health_and_config(client):
    server = triton(client)
    assert server.is_server_live()
    assert server.is_server_ready()
    assert server.is_model_ready("tiny")
    assert server.is_model_ready("tiny", "1")
    assert not server.is_model_ready("tiny", "2")
    metadata = server.get_server_metadata()
    assert metadata["name"] == "panther"
    assert {"binary_tensor_data", "statistics", "model_repository"} <= set(metadata["extensions"])
    model = server.get_model_metadata("tiny")
    assert (model["name"], model["versions"], model["platform"]) == ("tiny", ["1"], "onnx_onnxv1")
    assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 6]}]
    assert model["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}]
    config = server.get_model_config("tiny", "1")
    assert config["max_batch_size"] == 256
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [6]}]
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/v2/models/none", "model 'none' is not loaded; loaded: tiny"),
        ("/v2/models/tiny/versions/7", "model 'tiny' has no version '7'; available: 1"),
        ("/v2/models/none/config", "model 'none' is not loaded; loaded: tiny"),
        ("/v2/models/none/ready", "model 'none' is not loaded; loaded: tiny"),
        ("/v2/models/none/stats", "model 'none' is not loaded; loaded: tiny"),
        ("/v2/nothing", "unknown path '/v2/nothing'; /docs lists the paths"),
    ],
)
def test_unknown_is_404(client, path, message):
    answer = client.get(path)
    assert (answer.status_code, answer.json()) == (404, {"error": message})


def test_statistics_add_up(serve, tiny):
    client = serve(tiny.graph())
    server = triton(client)
    for rows in (1, 2, 2):
        tensor = tritonclient.InferInput("x", [rows, 6], "FP32")
        tensor.set_data_from_numpy(np.zeros((rows, 6), np.float32))
        server.infer("m", [tensor])
    with pytest.raises(InferenceServerException):
        server.infer("m", [tensor], outputs=[tritonclient.InferRequestedOutput("none")])
    (stats,) = server.get_inference_statistics("m")["model_stats"]
    assert stats == server.get_inference_statistics()["model_stats"][0]
    assert (stats["name"], stats["version"], stats["inference_count"], stats["execution_count"]) == ("m", "1", 5, 3)
    parts = stats["inference_stats"]
    assert (parts["success"]["count"], parts["fail"]["count"]) == (3, 1)
    inside = sum(parts[name]["ns"] for name in ("queue", "compute_input", "compute_infer", "compute_output"))
    assert 0 < inside <= parts["success"]["ns"]
    assert [(item["batch_size"], item["compute_infer"]["count"]) for item in stats["batch_stats"]] == [(1, 1), (2, 2)]
    assert stats["last_inference"] > 1_600_000_000_000


@pytest.mark.parametrize("versions", ["10", [1.5], [True], [None], [[1]], {"1": 1}, [], None, ["one"], [1e400]])
def test_versions_to_load_are_whole_numbers(versions):
    config = json.dumps({"version_policy": {"specific": {"versions": versions}}})
    with pytest.raises(InvalidRequestError, match="parameter 'config' must be JSON such as"):
        load_request({"parameters": {"config": config}})


def test_versions_to_load_may_be_written_as_protocol_buffers_write_them():
    config = json.dumps({"version_policy": {"specific": {"versions": [1, "2", 3.0]}}})
    assert load_request({"parameters": {"config": config}}).policy == "1,2,3"


def test_model_control_is_off_unless_asked_for(client):
    with pytest.raises(InferenceServerException, match="set PANTHER_MODEL_CONTROL=explicit"):
        triton(client).load_model("tiny")
    assert client.post("/v2/repository/models/tiny/unload").status_code == 403


def test_model_control(tmp_path):
    old, new = build.Tiny(seed=1), build.Tiny(seed=2)
    build.put(tmp_path, old.graph(), "m", "1")
    x = np.ones((1, 6), np.float32)

    def ask(client):
        tensor = tritonclient.InferInput("x", [1, 6], "FP32")
        tensor.set_data_from_numpy(x)
        result = triton(client).infer("m", [tensor])
        return result.get_response()["model_version"], result.as_numpy("logits")

    with build.running(tmp_path, model_control="explicit") as client:
        server = triton(client)
        assert server.get_model_repository_index() == [{"name": "m", "version": "1", "state": "READY", "reason": ""}]
        build.put(tmp_path, new.graph(), "m", "2")
        build.put(tmp_path, new.graph(), "other", "1")
        states = {(item["name"], item["version"]): item["state"] for item in server.get_model_repository_index()}
        assert states == {("m", "1"): "READY", ("m", "2"): "UNAVAILABLE", ("other", "1"): "UNAVAILABLE"}
        server.load_model("m")
        version, logits = ask(client)
        assert version == "2"
        np.testing.assert_allclose(logits, new.logits(x), rtol=1e-4, atol=1e-5)
        assert client.get("/health/ready").json() == {"ready": True}

        (tmp_path / "m" / "3").mkdir()
        (tmp_path / "m" / "3" / "model.onnx").write_bytes(b"broken")
        with pytest.raises(InferenceServerException, match="model 'm' version 3"):
            server.load_model("m")
        assert ask(client)[0] == "2"
        (broken,) = [item for item in server.get_model_repository_index() if item["version"] == "3"]
        assert broken["state"] == "UNAVAILABLE"
        assert "version 3" in broken["reason"]

        server.unload_model("m")
        assert not server.is_model_ready("m")
        with pytest.raises(InferenceServerException, match="model 'm' is not ready: unloaded"):
            ask(client)
        with pytest.raises(InferenceServerException, match="is not in the repository"):
            server.load_model("nowhere")
        with pytest.raises(InferenceServerException, match="is not in the repository"):
            server.load_model("..")
        body = {"parameters": {"config": "[]"}}
        assert client.post("/v2/repository/models/m/load", json=body).status_code == 400
        only = client.post("/v2/repository/index", json={"ready": True}).json()
        assert [item["name"] for item in only] == []
        whole = {"max_batch_size": 8, "version_policy": {"specific": {"versions": [1]}}}
        loaded = client.post("/v2/repository/models/m/load", json={"parameters": {"config": json.dumps(whole)}})
        assert (loaded.status_code, "have no effect" in loaded.json()["warning"]) == (200, True)
        assert ask(client)[0] == "1"
