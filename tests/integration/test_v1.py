"""KServe's v1 protocol, as TensorFlow Serving's clients speak it, at a real server."""

import gzip
import json

import numpy as np
import pytest
from helpers import build

KEY = "a key of sixteen or more".replace(" ", "-")
X = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    build.put(root, build.Tiny().graph(), "tiny", card=build.sketched_card())
    build.put(root, build.Tiny(1).graph(), "tiny", version="2")
    broken = root / "broken" / "1"
    broken.mkdir(parents=True)
    (broken / "model.onnx").write_bytes(b"no model")
    with build.running(root, version_policy="all", predict_keys=KEY) as client:
        client.headers["authorization"] = f"Bearer {KEY}"
        yield client


@pytest.mark.parametrize(("path", "seed"), [("tiny", 1), ("tiny/versions/1", 0)])
def test_instances_are_answered_with_predictions(client, path, seed):
    answer = client.post(f"/v1/models/{path}:predict", json={"instances": X.tolist()})
    assert answer.status_code == 200, answer.text
    np.testing.assert_allclose(answer.json()["predictions"], build.Tiny(seed).logits(X), rtol=1e-4, atol=1e-4)
    assert list(answer.json()) == ["predictions"]
    by_name = client.post(f"/v1/models/{path}:predict", json={"inputs": {"x": X.tolist()}})
    np.testing.assert_allclose(by_name.json()["outputs"], build.Tiny(seed).logits(X), rtol=1e-4, atol=1e-4)


def test_compressed_and_long_bodies_are_read_as_well(client):
    rows = np.tile(X, (8000, 1))
    body = gzip.compress(json.dumps({"instances": rows.tolist()}).encode(), 1)
    answer = client.post("/v1/models/tiny:predict", content=body, headers={"content-encoding": "gzip"})
    assert answer.status_code == 200, answer.text
    np.testing.assert_allclose(answer.json()["predictions"], build.Tiny(1).logits(rows), rtol=1e-3, atol=1e-3)


def test_errors_are_as_everywhere(client):
    for path, body, status, message in (
        ("tiny", {"instances": [[1, 2]]}, 400, "instances[0] has 2 values; expected 6"),
        ("none", {"instances": []}, 404, "model 'none' is not loaded"),
        ("tiny/versions/7", {"instances": []}, 404, "has no version '7'"),
        ("broken", {"instances": []}, 503, "model 'broken' is not ready"),
    ):
        answer = client.post(f"/v1/models/{path}:predict", json=body)
        assert (answer.status_code, message in answer.json()["error"]) == (status, True), answer.text
    assert (
        client.post("/v1/models/tiny:predict", json={"instances": []}, headers={"authorization": ""}).status_code == 401
    )
    assert client.post("/v1/models/tiny:explain", json={}).status_code == 403


def test_models_are_listed_with_their_versions(client):
    assert client.get("/v1/models").json() == {"models": ["tiny"]}
    found = client.get("/v1/models/tiny").json()
    assert (found["name"], found["ready"]) == ("tiny", True)
    assert {item["version"]: item["state"] for item in found["model_version_status"]} == {
        "1": "AVAILABLE",
        "2": "AVAILABLE",
    }
    broken = client.get("/v1/models/broken")
    assert (broken.status_code, "model 'broken' is not ready" in broken.json()["error"]) == (503, True)
    assert client.get("/v1/models/none").status_code == 404
