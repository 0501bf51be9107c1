"""The whole server on a real GPU: ready when it should be, right under load, and truthful about the device."""

import json
import time

import numpy as np
import onnxruntime as ort
import pytest
from helpers.on_cuda import DIGITS, Server, close, on_cpu

from app.runtime.device import CUDA

pytestmark = pytest.mark.gpu

if CUDA not in ort.get_available_providers():
    pytest.skip("needs onnxruntime-gpu", allow_module_level=True)


def test_the_server_becomes_ready_on_cuda_and_says_so():
    with Server("--device", "cuda") as server:
        assert server.settled()[0] == 200
        x = np.random.default_rng(0).random((3, 784)).astype(np.float32)
        status, answer = server.get("/predict", json.dumps({"inputs": x.tolist()}).encode())
        assert status == 200
        close(np.array(answer["outputs"]["logits"]), on_cpu(DIGITS, {"x": x})[0])
        _, stats = server.get("/stats?nodes=true")
    runtime = stats["models"][0]["runtime"]
    assert runtime["provider"] == CUDA
    assert runtime["cuda"]["mode"] == "graph"
    (part,) = runtime["placement"]
    assert part["provider"] == CUDA
    assert part["nodes"] == len(part["node_names"])
    gpu = stats["server"]["device"]["gpu"]
    assert "NVIDIA" in gpu["name"]
    assert 0 < gpu["free_bytes"] < gpu["total_bytes"]


@pytest.mark.parametrize(("device", "status"), [("cuda", 503), ("auto", 200)])
def test_without_a_visible_gpu_strict_is_never_ready_and_automatic_says_why(device, status):
    with Server("--device", device, CUDA_VISIBLE_DEVICES="") as server:
        got, answer = server.settled()
        _, stats = server.get("/stats")
    assert got == status
    said = answer["error"] if device == "cuda" else json.dumps(stats)
    assert "there is no device 0; available: none" in said or "could not be started" in said


def test_two_workers_share_one_gpu():
    with Server("--device", "cuda", "--workers", "2", "--cuda-devices", "all") as server:
        assert server.settled()[0] == 200
        for _ in range(100):  # each of them says for itself
            if {server.get("/health/ready")[0] for _ in range(20)} == {200}:
                break
            time.sleep(0.1)
        x = json.dumps({"inputs": np.zeros((1, 784)).tolist()}).encode()
        assert {server.get("/predict", x)[0] for _ in range(20)} == {200}


def test_many_clients_at_once_get_their_own_answers():
    from concurrent.futures import ThreadPoolExecutor

    rng = np.random.default_rng(0)
    inputs = [rng.random((int(rows), 784)).astype(np.float32) for rows in rng.integers(1, 60, 200)]
    with Server("--device", "cuda", "--log-level", "warning") as server:
        assert server.settled()[0] == 200

        def ask(x):
            return server.get("/predict", json.dumps({"inputs": x.tolist()}).encode())

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(ask, inputs))
    for x, (status, answer) in zip(inputs, answers, strict=True):
        assert status == 200
        close(np.array(answer["outputs"]["logits"]), on_cpu(DIGITS, {"x": x})[0])
