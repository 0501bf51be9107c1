"""Model names can't leave the folder, and no answer tells where the folder is."""

import contextlib
import http.client
import json
from urllib.parse import quote

import pytest
from helpers import build
from onnx import TensorProto, helper, numpy_helper

ROW = [0.5, -1.0, 2.0, 0.25, 0.0, 1.5]
NAMES = [
    "..", ".", "../outside", "..\\outside", "inside/../../outside", "/outside", "outside/1", "inside/1", ".hidden",
    "inside\0", "inside\n", "", " inside", "~root", "inside%2f..%2f..%2foutside", "a" * 129, "ïnside",
]  # fmt: skip


@pytest.fixture
def place(tmp_path):
    """A folder with one model, beside another with a model of its own."""
    inside = tmp_path / "the-folder"
    build.put(inside, build.Tiny().graph(), "inside", card=build.sketched_card())
    build.put(inside, build.Tiny().graph(), ".hidden")
    build.put(tmp_path, build.Tiny(seed=1).graph(), "outside")
    return inside


def ask(client, method, path, body=None):
    """Ask for a path as it stands; httpx would tidy it up."""
    with contextlib.closing(http.client.HTTPConnection(client.base_url.host, client.base_url.port, timeout=60)) as wire:
        wire.request(method, path, body, {"content-type": "application/json"})
        answer = wire.getresponse()
        return answer.status, answer.read().decode()


def test_no_name_leads_out_of_the_folder(place):
    with build.running(place, model_control="explicit") as client:
        before = client.post("/v2/repository/index").json()
        assert [item["name"] for item in before] == ["inside"]
        for name in [quote(name, safe="") for name in NAMES] + [quote(name, safe="/.~\\") for name in NAMES]:
            paths = [
                f"/models/{name}/predict", f"/models/{name}/versions/1/predict", f"/v2/models/{name}/infer",
                f"/models/inside/versions/{name}/predict", f"/v2/repository/models/{name}/load",
                f"/v2/repository/models/{name}/unload", f"/models/{name}/benchmark",
            ]  # fmt: skip
            for path in paths:
                status, text = ask(client, "POST", path, json.dumps({"inputs": [ROW]}) if "predict" in path else None)
                assert status in {307, 400, 404, 405}, (path, text)
                assert str(place.parent) not in text
            for path in (f"/models/{name}", f"/models/{name}/stats", f"/v2/models/{name}", f"/v2/models/{name}/config"):
                status, text = ask(client, "GET", path)
                assert status in {200, 307, 404}, (path, text)
                assert "outside" not in text or status == 404
        assert client.post("/v2/repository/index").json() == before
        assert client.post("/predict", json={"inputs": [ROW]}).status_code == 200


def far_weights():
    """A model whose weights are said to lie outside of its folder."""
    weight = numpy_helper.from_array(build.Tiny().W[:3].T.copy(), "w")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "../../../secret.bin"), ("offset", "0"), ("length", "60")):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5])],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


def test_no_answer_tells_where_the_folder_is(place):
    def broken(name, content):
        (place / name / "1").mkdir(parents=True)
        (place / name / "1" / "model.onnx").write_bytes(content)

    broken("empty", b"")
    broken("noise", bytes(range(256)) * 40)
    broken("far", far_weights())
    broken("cut", build.Tiny().graph().SerializeToString()[:300])
    build.put(place, build.Tiny().graph(), "cardless", card="{not json")
    locked = build.put(place, build.Tiny().graph(), "locked").parent
    (locked / "model.onnx").unlink()
    (locked / "model.onnx").symlink_to("/nonexistent/model.onnx")
    with build.running(place, model_control="explicit") as client:
        answers = [
            client.get("/health/ready"), client.get("/models"), client.get("/stats"), client.get("/metrics"),
            client.get("/stats?format=table"), client.get("/v2/models/stats"), client.get("/docs"),
            client.get("/openapi.json"), client.post("/v2/repository/index"), client.get("/"),
        ]  # fmt: skip
        for name in ("empty", "noise", "far", "cut", "cardless", "locked", "inside"):
            answers += [client.post(f"/v2/repository/models/{name}/load"), client.get(f"/models/{name}")]
            answers += [client.get(f"/models/{name}/stats"), client.get(f"/v2/models/{name}/config")]
            answers.append(client.post(f"/models/{name}/predict", json={"inputs": [ROW]}))
        index = {item["name"]: item for item in client.post("/v2/repository/index").json()}
    assert {name for name, item in index.items() if item["state"] == "READY"} == {"inside", "cardless"}
    assert all(index[name]["reason"] for name in ("empty", "noise", "far", "cut"))
    for answer in answers:
        for hidden in (str(place), str(place.parent), "/tmp/", "site-packages", "/nonexistent", "Traceback"):
            assert hidden not in answer.text, (answer.url, answer.text[:600])
