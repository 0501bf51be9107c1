"""The server on CUDA, as far as that shows without one: devices, placement, settings, and a CPU that plays CUDA."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from unittest.mock import MagicMock

import numpy as np
import pytest
from helpers.host_cuda import HostRuntime, open_model, taken

from app.config.settings_file import SettingsError
from app.config.settings_sources import read_settings
from app.errors import DeviceError
from app.reports.stats import PlacementStats
from app.runtime.cuda import runner as runner_module
from app.runtime.cuda.buffers import Bodies
from app.runtime.cuda.cudart import CudaError, CudaRuntime, Streams
from app.runtime.device import CUDA, CudaOptions, Device, choose_device_id, find_device
from app.runtime.placement import Node, find_placement, why_not_captured


def test_streams_are_used_again(runtime):
    streams = Streams(runtime)
    first, second = streams.take(0), streams.take(0)
    assert first != second
    streams.give(0, first)
    assert streams.take(1) not in {first, second}
    assert streams.take(0) == first
    assert runtime.streams == 3


ON = "CUDAExecutionProvider"
OFF = "CPUExecutionProvider"


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([Node("a", "Gemm", ON)], None),
        (None, "this version of onnxruntime does not report the provider of each node"),
        ([Node("a", "Gemm", ON), Node("b", "Gather", OFF)], "1 node runs on CPUExecutionProvider: b (Gather)"),
        (
            [Node(name, "Shape", OFF) for name in "abcde"],
            "5 nodes run on CPUExecutionProvider: a (Shape), b (Shape), c (Shape) and 2 more",
        ),
        ([Node("", "Loop", ON), Node("a", "Gemm", ON)], "control flow: (unnamed) (Loop)"),
    ],
)
def test_models_that_can_not_be_recorded(nodes, reason):
    assert why_not_captured(nodes, ON) == reason


def test_the_placement_counts_every_node(tiny):
    session, *_ = open_model(tiny.graph())
    nodes = find_placement(session)
    (part,) = PlacementStats.of(nodes)
    assert part.provider == OFF
    assert part.nodes == len(nodes) == len(part.node_names) == sum(part.op_types.values())
    assert part.op_types["Relu"] == 1
    assert find_placement(object()) is None


def test_stats_tell_of_the_placement(client):
    runtime = client.get("/models/tiny/stats?nodes=true").json()["models"][0]["runtime"]
    (part,) = runtime["placement"]
    assert part["provider"] == OFF
    assert part["nodes"] == len(part["node_names"]) > 0
    assert runtime["cuda"] is None


@pytest.mark.parametrize(
    ("setting", "count", "slot", "expected"),
    [
        ("0", 1, 0, 0),
        ("0", 1, 3, 0),
        ("0,2", 4, 1, 2),
        ("0,2", 4, 2, 0),
        ("all", 4, 5, 1),
        ("all", None, 3, 0),
        ("7", None, 0, 7),
    ],
)
def test_workers_take_the_devices_in_turn(setting, count, slot, expected):
    assert choose_device_id(setting, count, slot) == expected


@pytest.mark.parametrize(("count", "there"), [(0, "none"), (1, "0"), (4, "0 to 3")])
def test_a_device_that_is_not_there(count, there):
    with pytest.raises(
        DeviceError, match=f"cuda_devices=0,9 is not available: there is no device 9; available: {there}$|no device 0"
    ):
        choose_device_id("0,9", count, 0)


def test_a_missing_device_is_an_error_in_strict_mode_and_a_reason_in_automatic(monkeypatch):
    class OneDevice(HostRuntime):
        def device_count(self):
            return 1

    monkeypatch.setattr("app.runtime.device.load_runtime", OneDevice)
    monkeypatch.setattr("app.runtime.device.ort.get_available_providers", lambda: [CUDA, OFF])
    monkeypatch.setattr("app.runtime.device.ort.preload_dlls", lambda: None, raising=False)
    with pytest.raises(DeviceError, match="there is no device 1; available: 0"):
        find_device("cuda", None, "1")
    found = find_device("auto", None, "1")
    assert (found.providers, found.reason) == (
        (OFF,),
        "cuda_devices=1 is not available: there is no device 1; available: 0",
    )
    assert find_device("cuda", CudaOptions(tf32=True), "0").cuda == CudaOptions(0, tf32=True)


def test_the_options_of_the_provider():
    options = CudaOptions(2, tf32=True, memory_limit_bytes=1 << 30, arena="same_as_requested").provider_options(99)
    assert options == {
        "device_id": "2",
        "use_tf32": "1",
        "arena_extend_strategy": "kSameAsRequested",
        "gpu_mem_limit": "1073741824",
        "user_compute_stream": "99",
    }
    assert CudaOptions().provider_options() == {
        "device_id": "0",
        "use_tf32": "0",
        "arena_extend_strategy": "kNextPowerOfTwo",
    }


@pytest.fixture
def played(monkeypatch, runtime):
    """A server for which the CPU is CUDA."""
    monkeypatch.setattr("app.runtime.model.CUDA", OFF)
    monkeypatch.setattr("app.runtime.instance.CUDA", OFF)
    monkeypatch.setattr(Device, "has_cuda", property(lambda self: self.requested == "cuda"))
    device = Device("cuda", (OFF,), runtime=runtime, streams=Streams(runtime), count=2)
    asked = []

    def find(*arguments):
        asked.append(arguments)
        return replace(device, cuda=arguments[1], bodies=runtime.bodies)

    monkeypatch.setattr("app.repository.served_model.find_device", find)
    return asked


def test_the_server_answers_from_buffers_and_tells_of_them(serve, tiny, played, caplog):
    caplog.set_level("INFO")
    client = serve(tiny.graph(), max_batch_rows=20, cuda_devices="0,1", cuda_memory_limit_bytes=2**30)
    assert played == [("auto", CudaOptions(memory_limit_bytes=2**30), "0,1", 0)]
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((int(rows), 6)).astype(np.float32) for rows in rng.integers(1, 50, 40)]

    def ask(x):
        return client.post("/models/m/predict", json={"inputs": x.tolist()}).json()["outputs"]["logits"]

    with ThreadPoolExecutor(8) as pool:
        for x, logits in zip(inputs, pool.map(ask, inputs), strict=True):
            np.testing.assert_allclose(logits, tiny.logits(x), rtol=1e-4, atol=1e-5)
    found = client.get("/models/m/stats").json()["models"][0]["runtime"]["cuda"]
    assert (found["mode"], found["reason"], found["batch_sizes"]) == ("graph", None, [1, 2, 4, 8, 16, 20])
    assert len(found["padded_to"]) == 6
    (stats,) = client.get("/v2/models/m/stats").json()["model_stats"]
    assert all(batch["compute_output"]["ns"] > 0 for batch in stats["batch_stats"])
    assert "model m version 1 runs on CUDA device 0 in the mode graph" in caplog.text


def test_instances_on_two_devices_take_batches_from_one_queue(serve, tiny, played, runtime, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "panther.toml").write_text("[placement]\ndevices = [0, 1]\ninstances = 2")
    client = serve(tiny.graph(), max_batch_rows=20)
    inputs = [np.random.default_rng(seed).standard_normal((seed % 30 + 1, 6)).astype(np.float32) for seed in range(60)]

    def ask(x):
        return client.post("/models/m/predict", json={"inputs": x.tolist()}).json()["outputs"]["logits"]

    with ThreadPoolExecutor(8) as pool:
        for x, logits in zip(inputs, pool.map(ask, inputs), strict=True):
            np.testing.assert_allclose(logits, tiny.logits(x), rtol=1e-4, atol=1e-5)
    instances = client.get("/models/m/stats").json()["models"][0]["runtime"]["instances"]
    assert [item["device"] for item in instances] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert [(item["cuda"]["device_id"], item["cuda"]["mode"]) for item in instances] == 2 * [(0, "graph"), (1, "graph")]
    assert all(item["runs"] > 0 for item in instances)
    assert {0, 1} <= set(runtime.devices)
    groups = client.get("/v2/models/m/config").json()["instance_group"]
    assert groups == [{"name": "m", "kind": "KIND_GPU", "count": 2, "gpus": [0, 1]}]


def test_a_device_that_is_not_there_is_named_with_what_there_is(serve, tiny, played, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "panther.toml").write_text("[placement]\ndevices = [0, 5]")
    error = serve(tiny.graph()).get("/health/ready").json()["error"]
    assert error.endswith("placement.devices: there is no device 5; this server sees 2 CUDA devices, counted from 0")


def test_long_bodies_are_received_where_the_device_copies_from(serve, tiny, played, runtime, monkeypatch):
    monkeypatch.setattr(runner_module, "_LARGE_BYTES", 0)
    bodies = runtime.bodies = Bodies(runtime, 0)
    client = serve(tiny.graph(), max_batch_rows=4096)
    x = np.random.default_rng(0).standard_normal((4000, 6)).astype(np.float32)
    item = {"name": "x", "shape": list(x.shape), "datatype": "FP32"}

    def ask(head, content, *, length):
        text = json.dumps(head).encode()
        more = {"Inference-Header-Content-Length": str(len(text))} if length else {}
        return client.post("/v2/models/m/infer", content=text + content, headers=more)

    binary = {"inputs": [{**item, "parameters": {"binary_data_size": x.nbytes}}]}
    inline = {"inputs": [{**item, "data": x.round(3).reshape(-1).tolist()}]}
    assert bodies.nbytes == 0
    ask(binary, x.tobytes(), length=True)
    taken(bodies, x.nbytes)  # until the pieces are there
    runtime.copies.clear()
    for _ in range(150):  # there are fewer pieces
        answer = ask(binary, x.tobytes(), length=True).json()
    blocks = bodies._blocks
    assert sum(any(start <= source < end for start, end, _ in blocks) for source in runtime.copies) == 150
    for given, sent in (
        (answer, x),
        (ask(inline, b"", length=True).json(), x.round(3)),
        (ask(inline, b"", length=False).json(), x.round(3)),
    ):
        logits = np.reshape(given["outputs"][0]["data"], (4000, -1))
        np.testing.assert_allclose(logits, tiny.logits(sent), rtol=1e-4, atol=1e-4)


def test_a_server_that_has_lost_the_device_is_neither_alive_nor_ready(serve, tiny, played, runtime):
    client = serve(tiny.graph())
    assert client.get("/health/live").json() == {"live": True}
    runtime.lost = "the run failed: an illegal memory access was encountered (CUDA error 700)"
    said = f"CUDA is unusable in this process: {runtime.lost}"
    assert client.get("/health/live").json() == {"live": False, "error": said}
    assert client.get("/health/live").status_code == 503
    assert client.get("/v2/health/live").status_code == 400
    assert client.get("/health/ready").json() == {"ready": False, "error": said}


def test_after_a_run_that_failed_the_device_is_looked_at(serve, tiny, played, runtime):
    client = serve(tiny.graph(), max_batch_rows=4)
    looked = []

    def fail(graph, stream):
        raise CudaError("launching the graph failed: out of memory (CUDA error 2)")

    runtime.launch, runtime.check_device = fail, looked.append
    assert client.post("/models/m/predict", json={"inputs": [[0] * 6]}).status_code == 500
    assert looked == [1]


@pytest.mark.parametrize(
    ("code", "lost"), [(0, None), (719, "the run failed: unspecified launch failure (CUDA error 719)")]
)
def test_an_error_that_stays_is_told_from_one_that_passes(code, lost):
    library = MagicMock()
    library.cudaStreamSynchronize.return_value = code
    library.cudaGetErrorString.return_value = b"unspecified launch failure"
    runtime = CudaRuntime(library, library)
    runtime.check_device(1)
    assert runtime.lost == lost


def test_the_error_of_tf32_is_measured_against_a_session_without(serve, tiny, played):
    client = serve(tiny.graph(), cuda_tf32=True)
    found = client.get("/models/m/stats").json()["models"][0]["runtime"]["cuda"]
    assert found["tf32"] is True
    assert found["tf32_max_relative_error"] < 1e-6  # on the CPU there is no TF32


def test_what_a_model_had_on_cuda_is_given_back_with_it(serve, tiny, played, runtime, tmp_path):
    client = serve(tiny.graph(), model_control="explicit", max_batch_rows=4)

    def held():
        return len(runtime.memory), len(runtime.executables), runtime.events

    def settled(expected):
        end = time.monotonic() + 60  # a version that was replaced finishes what it has in hand, and then goes
        while held() != expected and time.monotonic() < end:
            time.sleep(0.01)
        return held()

    one = held()
    for _ in range(5):
        assert client.post("/v2/repository/models/m/load", json={}).status_code == 200
        assert settled(one) == one
    assert runtime.streams == 2
    assert client.post("/v2/repository/models/m/unload", json={}).status_code == 200
    assert settled((0, 0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("value", ["", "a", "0,", "0,,1", "-1", "0 1"])
def test_devices_are_numbers_or_all(value):
    with pytest.raises(SettingsError, match="must be all, or numbers of devices separated by commas"):
        read_settings([], cuda_devices=value)
