import logging

import pytest
from helpers import build

from app.errors import DeviceError
from app.runtime import device as device_module
from app.runtime.device import CPU, CUDA, Device, find_device, open_session

needs_no_cuda = pytest.mark.skipif(CUDA in device_module.ort.get_available_providers(), reason="CUDA is here")


@needs_no_cuda
def test_cuda_that_cannot_be_had_is_never_ready_and_says_why(serve, tiny, caplog):
    caplog.set_level(logging.ERROR)
    client = serve(tiny.graph(), device="cuda")
    answer = client.get("/health/ready")
    assert answer.status_code == 503
    assert answer.json()["ready"] is False
    reason = answer.json()["error"]
    assert reason.startswith("device=cuda is not available: onnxruntime")
    assert "install the extra 'gpu'" in reason
    assert client.get("/health/live").json() == {"live": True}
    stats = client.get("/stats").json()
    assert stats["server"]["not_ready_because"] == reason
    assert stats["server"]["device"]["reason"] == reason
    assert f"not ready: {reason}" in caplog.text
    refused = client.post("/predict", json={"inputs": [[0] * 6]})
    assert refused.status_code == 404 or refused.status_code == 503
    assert client.post("/models/m/predict", json={"inputs": [[0] * 6]}).status_code == 503


@needs_no_cuda
def test_auto_comes_down_to_the_cpu_loudly(serve, tiny, caplog):
    caplog.set_level(logging.WARNING)
    client = serve(tiny.graph(), device="auto")
    assert client.get("/health/ready").json() == {"ready": True}
    assert "device=auto: running on the CPU, because onnxruntime" in caplog.text
    runtime = client.get("/stats").json()["models"][0]["runtime"]
    assert runtime["provider"] == CPU
    assert "has no CUDAExecutionProvider" in runtime["device_reason"]


class FallenBack:
    """What onnxruntime does when the CUDA libraries can't be loaded: a warning, and a CPU session."""

    def __init__(self, path, options, providers):
        self.providers = [CPU]

    def disable_fallback(self):
        pass

    def get_providers(self):
        return self.providers

    def get_outputs(self):
        return []


def test_a_silent_fallback_is_found_out(monkeypatch):
    monkeypatch.setattr(device_module.ort, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(device_module.ort, "InferenceSession", FallenBack)
    monkeypatch.setattr(device_module.ort, "preload_dlls", lambda: None, raising=False)
    strict = find_device("cuda")
    assert strict == Device("cuda", (CUDA, CPU))
    with pytest.raises(DeviceError, match="CUDAExecutionProvider could not be started; check the NVIDIA driver"):
        open_session("x", strict, 1)
    _, reason = open_session("x", find_device("auto"), 1)
    assert "could not be started" in reason


def test_the_session_gets_a_definite_number_of_threads(tiny, tmp_path, monkeypatch):
    seen = []
    real = device_module.ort.InferenceSession

    def spy(path, options, providers):
        seen.append(options.intra_op_num_threads)
        return real(path, options, providers=providers)

    monkeypatch.setattr(device_module.ort, "InferenceSession", spy)
    build.put(tmp_path, tiny.graph(), "m")
    with build.running(tmp_path, num_threads=3):
        pass
    with build.running(tmp_path):
        pass
    assert seen[0] == 3
    assert seen[1] >= 1
