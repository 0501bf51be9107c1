"""One worker that feeds two GPUs: instances of a model on both, behind one queue."""

import json
import shutil
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
import pytest
from helpers.on_cuda import DIGITS, Server, close, on_cpu

from app.runtime.cuda.cudart import CudaError, load_runtime
from app.runtime.device import CUDA, find_device
from app.runtime.model import OnnxModel

pytestmark = pytest.mark.gpu

if CUDA not in ort.get_available_providers():
    pytest.skip("needs onnxruntime-gpu", allow_module_level=True)


def devices():
    """CUDA devices of this machine."""
    getattr(ort, "preload_dlls", lambda: None)()
    try:
        return load_runtime().device_count()
    except CudaError:
        return 0


needs_two = pytest.mark.skipif(devices() < 2, reason=f"needs two CUDA devices, and there are {devices()}")


@pytest.fixture
def placed(tmp_path):
    """A folder with the shipped model and a placement."""

    def make(text):
        shutil.copytree(DIGITS.parent, tmp_path / "digits" / "1")
        (tmp_path / "digits" / "panther.toml").write_text(f"[placement]\n{text}")
        return tmp_path

    return make


@needs_two
def test_each_instance_runs_on_its_device():
    device = find_device("cuda")
    model = OnnxModel("digits", "1", DIGITS, device, 1)
    model.add_instance(device.on_cuda(1))
    model.prepare(64)
    assert [(each.device, each.cuda.device_id, each.cuda.mode) for each in model.instances] == [
        ("cuda:0", 0, "graph"),
        ("cuda:1", 1, "graph"),
    ]
    for rows in (1, 7, 64, 100):
        x = np.random.default_rng(rows).random((rows, 784)).astype(np.float32)
        (expected,) = on_cpu(DIGITS, {"x": x})
        for _ in range(2):  # in turn on one thread: each run makes its device the current one
            for instance in model.instances:
                close(instance.run({"x": x}, ["logits"]).arrays[0], expected)


@needs_two
@pytest.mark.parametrize("instances", [1, 2])
def test_one_worker_feeds_two_gpus(placed, instances):
    folder = placed(f"devices = [0, 1]\ninstances = {instances}")
    rng = np.random.default_rng(0)
    # Small requests, and bodies that go through pinned memory.
    inputs = [rng.random((int(rows), 784)).astype(np.float32) for rows in (*rng.integers(1, 60, 160), *[330] * 40)]
    with Server("--device", "cuda", "--log-level", "warning", models=folder) as server:
        assert server.settled()[0] == 200

        def ask(x):
            item = {"name": "x", "shape": list(x.shape), "datatype": "FP32"}
            text = json.dumps({"inputs": [{**item, "parameters": {"binary_data_size": x.nbytes}}]}).encode()
            headers = {"Inference-Header-Content-Length": str(len(text)), "Content-Type": "application/octet-stream"}
            url = f"http://127.0.0.1:{server.port}/v2/models/digits/infer"
            with urllib.request.urlopen(urllib.request.Request(url, text + x.tobytes(), headers), timeout=60) as answer:
                (output,) = json.loads(answer.read())["outputs"]
            return np.array(output["data"]).reshape(output["shape"])

        with ThreadPoolExecutor(16) as pool:
            for x, logits in zip(inputs, pool.map(ask, inputs), strict=True):
                close(logits, on_cpu(DIGITS, {"x": x})[0])
        _, stats = server.get("/stats")
        _, config = server.get("/v2/models/digits/config")
    found = stats["models"][0]["runtime"]["instances"]
    assert [item["device"] for item in found] == ["cuda:0", "cuda:1"] * instances
    assert all(item["runs"] > 0 for item in found)
    assert config["instance_group"] == [{"name": "digits", "kind": "KIND_GPU", "count": instances, "gpus": [0, 1]}]


def test_a_device_that_is_not_there_is_named_with_what_there_is(placed):
    with Server("--device", "cuda", models=placed("devices = [0, 99]")) as server:
        status, answer = server.settled()
    assert status == 503
    assert f"there is no device 99; this server sees {devices()} CUDA device" in answer["error"]


def test_two_instances_share_one_gpu(placed):
    x = np.random.default_rng(0).random((3, 784)).astype(np.float32)
    with Server("--device", "cuda", models=placed("instances = 2")) as server:
        assert server.settled()[0] == 200
        for _ in range(20):
            _, answer = server.get("/predict", json.dumps({"inputs": x.tolist()}).encode())
            close(np.array(answer["outputs"]["logits"]), on_cpu(DIGITS, {"x": x})[0])
        _, stats = server.get("/stats")
    assert [item["device"] for item in stats["models"][0]["runtime"]["instances"]] == ["cuda:0", "cuda:0"]
