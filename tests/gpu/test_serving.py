"""The server on a real GPU: right answers in every mode, and the truth about which mode that is."""

import subprocess
import sys
import threading

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from helpers.host_cuda import taken
from helpers.on_cuda import DIGITS, ROOT, close, on_cpu
from helpers.onnx_models import onnx_model
from helpers.threads import at_once
from onnx import TensorProto, helper, numpy_helper

from app.errors import DeviceError
from app.runtime.device import CUDA, CudaOptions, find_device
from app.runtime.model import OnnxModel

pytestmark = pytest.mark.gpu
FLOAT = TensorProto.FLOAT

if CUDA not in ort.get_available_providers():
    pytest.skip("needs onnxruntime-gpu", allow_module_level=True)


def onnx_file(path, nodes, inputs, outputs, constants=()):
    stored = [numpy_helper.from_array(array, name) for name, array in dict(constants).items()]
    onnx.save(onnx_model(nodes, inputs, outputs, stored), path)
    return path


def wide(path, seed=0, width=1024):
    """Three products with rectifiers between, wide enough for TF32 to show."""
    rng = np.random.default_rng(seed)
    weights = {f"W{i}": (rng.standard_normal((width, width)) / width**0.5).astype(np.float32) for i in range(3)}
    nodes = []
    name = "x"
    for i in range(3):
        nodes.append(helper.make_node("MatMul", [name, f"W{i}"], [f"p{i}"]))
        nodes.append(helper.make_node("Relu", [f"p{i}"], [f"r{i}" if i < 2 else "y"]))
        name = f"r{i}"
    return onnx_file(path, nodes, [("x", FLOAT, ["n", width])], [("y", FLOAT, ["n", width])], weights)


def load(path, max_rows=64, device=None, **options):
    model = OnnxModel("m", "1", path, device or find_device("cuda", CudaOptions(**options)), 1)
    model.prepare(max_rows)
    return model


@pytest.fixture(scope="module")
def device():
    return find_device("cuda")


@pytest.fixture(scope="module")
def digits(device):
    return load(DIGITS, 100, device)


def test_every_node_of_digits_is_on_cuda_and_in_a_graph(digits):
    assert digits.provider == CUDA
    assert {node.provider for node in digits.placement} == {CUDA}
    assert (digits.cuda.mode, digits.cuda.reason) == ("graph", None)
    assert digits.cuda.batch_sizes == (1, 2, 4, 8, 16, 32, 64, 100)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 16, 17, 33, 99, 100, 250])
def test_any_number_of_rows(digits, rows):
    x = np.random.default_rng(rows).random((rows, 784), np.float32)
    close(digits.run({"x": x}, ["logits"]).arrays[0], on_cpu(DIGITS, {"x": x})[0])


def test_answers_stay_right_when_sizes_and_threads_mix(digits):
    rng = np.random.default_rng(0)
    inputs = [rng.random((int(rows), 784), np.float32) for rows in rng.integers(1, 101, 40)]
    session = ort.InferenceSession(str(DIGITS), providers=["CPUExecutionProvider"])
    expected = [session.run(None, {"x": x})[0] for x in inputs]
    wrong = []

    def work(seed):
        order = np.random.default_rng(seed).integers(0, 40, 300)
        for index in order:
            answer = digits.run({"x": inputs[index]}, ["logits"]).arrays[0]
            if np.abs(answer - expected[index]).max() > 1e-4:
                wrong.append(index)

    at_once(work, 4)
    assert wrong == []


def test_graphs_outlive_the_thread_that_recorded_them(device):
    made = []
    thread = threading.Thread(target=lambda: made.append(load(DIGITS, 32, device)))
    thread.start()
    thread.join()
    other = load(DIGITS, 32, device)  # takes over what the ended thread may have left
    for rows in (1, 20, 5):
        x = np.random.default_rng(rows).random((rows, 784), np.float32)
        for model in (made[0], other):
            assert model.cuda.mode == "graph"
            close(model.run({"x": x}, ["logits"]).arrays[0], on_cpu(DIGITS, {"x": x})[0])


def test_recording_one_model_does_not_disturb_another(digits, device, tmp_path):
    path = wide(tmp_path / "wide.onnx")
    x = np.random.default_rng(0).random((5, 784), np.float32)
    expected = on_cpu(DIGITS, {"x": x})[0]
    ended = threading.Event()
    wrong = []

    def serve():
        while not ended.is_set():
            if np.abs(digits.run({"x": x}, ["logits"]).arrays[0] - expected).max() > 1e-4:
                wrong.append(1)
            # more rows than the largest batch: the runtime allocates for these
            digits.run({"x": np.zeros((150, 784), np.float32)}, ["logits"])

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        modes = [load(path, 64, device).cuda.mode for _ in range(5)]
    finally:
        ended.set()
        thread.join()
    assert modes == ["graph"] * 5
    assert wrong == []


def test_without_graphs_the_same_answers(tmp_path):
    model = load(DIGITS, 16, graphs=False)
    assert (model.cuda.mode, model.cuda.reason) == ("bound", "no graphs: cuda_graphs is off")
    x = np.random.default_rng(0).random((11, 784), np.float32)
    close(model.run({"x": x}, ["logits"]).arrays[0], on_cpu(DIGITS, {"x": x})[0])


def test_control_flow_is_not_recorded(tmp_path, device):
    branches = []
    for op in ("Relu", "Neg"):
        out = helper.make_tensor_value_info(op, FLOAT, ["n", 4])
        branches.append(helper.make_graph([helper.make_node(op, ["x"], [op])], op, [], [out]))
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Greater", ["m", "zero"], ["c"]),
        helper.make_node("If", ["c"], ["y"], name="choice", then_branch=branches[0], else_branch=branches[1]),
    ]
    path = onnx_file(
        tmp_path / "if.onnx", nodes, [("x", FLOAT, [3, 4])], [("y", FLOAT, [3, 4])], {"zero": np.float32(0)}
    )
    model = load(path, 8, device)
    assert model.cuda.mode != "graph"
    assert "control flow: choice (If)" in model.cuda.reason or "on CPUExecutionProvider" in model.cuda.reason
    for x in (np.full((3, 4), -2, np.float32), np.arange(12, dtype=np.float32).reshape(3, 4)):
        np.testing.assert_array_equal(model.run({"x": x}, ["y"]).arrays[0], on_cpu(path, {"x": x})[0])


def test_nodes_on_the_cpu_are_told_of_and_not_recorded(tmp_path, device):
    nodes = [helper.make_node("Mul", ["x", "x"], ["z"]), helper.make_node("Det", ["z"], ["y"], name="determinant")]
    path = onnx_file(tmp_path / "det.onnx", nodes, [("x", FLOAT, ["n", 3, 3])], [("y", FLOAT, ["n"])])
    model = load(path, 8, device)
    assert model.cuda.mode == "bound"
    assert model.cuda.reason == "no graphs: 1 node runs on CPUExecutionProvider: determinant (Det)"
    x = np.random.default_rng(0).standard_normal((5, 3, 3)).astype(np.float32)
    np.testing.assert_allclose(model.run({"x": x}, ["y"]).arrays[0], np.linalg.det(x * x), rtol=1e-4, atol=1e-4)


def test_dynamic_dimensions_run_from_the_host(tmp_path, device):
    path = onnx_file(
        tmp_path / "neg.onnx",
        [helper.make_node("Neg", ["x"], ["y"])],
        [("x", FLOAT, ["n", "m"])],
        [("y", FLOAT, ["n", "m"])],
    )
    model = load(path, 8, device)
    assert model.cuda.mode == "host"
    assert "more dynamic dimensions than the batch" in model.cuda.reason
    x = np.random.default_rng(0).standard_normal((3, 7)).astype(np.float32)
    np.testing.assert_array_equal(model.run({"x": x}, ["y"]).arrays[0], -x)


def test_a_batch_that_is_run_at_a_larger_size_is_right(tmp_path, device):
    path = wide(tmp_path / "wide.onnx")
    model = load(path, 256, device)
    assert all(to >= size for to, size in zip(model.cuda.padded_to, model.cuda.batch_sizes, strict=True))
    for rows in (*model.cuda.batch_sizes, 3, 9, 17, 100, 200):
        x = np.random.default_rng(rows).standard_normal((rows, 1024)).astype(np.float32)
        close(model.run({"x": x}, ["y"]).arrays[0], on_cpu(path, {"x": x})[0])
        parts = [x[: rows // 2], x[rows // 2 :]] if rows > 1 else [x]
        close(model.run({"x": parts}, ["y"]).arrays[0], on_cpu(path, {"x": x})[0])


def test_results_in_lent_memory_stay_as_they_are(tmp_path, device):
    path = wide(tmp_path / "wide.onnx")
    model = load(path, 256, device)
    inputs = [np.random.default_rng(seed).standard_normal((100, 1024)).astype(np.float32) for seed in range(12)]
    results = [model.run({"x": x}, ["y"]).arrays[0] for x in inputs]
    del model
    for x, y in zip(inputs, results, strict=True):
        close(y, on_cpu(path, {"x": x})[0])


def test_tensors_in_the_memory_for_bodies_go_to_the_device_as_they_lie(tmp_path, device):
    path = wide(tmp_path / "wide.onnx")
    model = load(path, 256, device)
    for cut in ((256,), (32,) * 8, (40, 17, 100)):
        x = np.random.default_rng(len(cut)).standard_normal((sum(cut), 1024)).astype(np.float32)
        parts = []
        for part in np.split(x, np.cumsum(cut)[:-1]):
            body = taken(device.bodies, part.nbytes + 3)  # behind a head of 3 bytes
            body[3:] = part.tobytes()
            parts.append(np.frombuffer(body, np.float32, part.size, 3).reshape(part.shape))
            assert device.bodies.address(parts[-1]) is not None
        close(model.run({"x": parts if len(parts) > 1 else parts[0]}, ["y"]).arrays[0], on_cpu(path, {"x": x})[0])


def test_a_device_that_fails_for_good_is_told_of():
    pytest.importorskip("torch")
    program = f"""
import os
from pathlib import Path
import numpy as np, torch
from app.runtime.device import find_device
from app.errors import InferenceFailedError
from app.runtime.model import OnnxModel
device = find_device("cuda")
model = OnnxModel("m", "1", Path({str(DIGITS)!r}), device, 1)
model.prepare(8)
feeds = model.random_feeds(2)
try:
    model.run({{"x": np.zeros((2, 7), np.float32)}}, model.output_names)
except InferenceFailedError:
    pass
model.run(feeds, model.output_names)
assert device.runtime.lost is None
torch.zeros(2, device="cuda")[torch.tensor([5], device="cuda")]  # fails within the kernel
for _ in range(2):
    try:
        model.run(feeds, model.output_names)
        raise SystemExit("it ran")
    except InferenceFailedError as error:
        print(error)
print(device.runtime.lost, flush=True)
os._exit(0)
"""
    told = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert "device-side assert" in told.stdout.splitlines()[-1], told


def test_tf32_is_off_by_default_and_its_error_is_measured(tmp_path):
    path = wide(tmp_path / "wide.onnx")
    x = np.random.default_rng(1).standard_normal((32, 1024)).astype(np.float32)
    expected = x.astype(np.float64)
    for tensor in onnx.load(path).graph.initializer:
        expected = np.maximum(expected @ numpy_helper.to_array(tensor).astype(np.float64), 0)
    exact, quick = load(path), load(path, tf32=True)
    errors = [
        np.abs(m.run({"x": x}, ["y"]).arrays[0] - expected).max() / np.abs(expected).max() for m in (exact, quick)
    ]
    assert errors[0] < 1e-5 < errors[1] < 1e-2
    assert exact.cuda.tf32_max_relative_error is None
    assert errors[1] / 5 < quick.cuda.tf32_max_relative_error < errors[1] * 5


def test_loading_and_unloading_leaves_no_memory_behind(device):
    def free():
        return device.runtime.gpu(0).free_bytes

    for _ in range(3):
        load(DIGITS, 256, device)
    before = free()
    for _ in range(20):
        load(DIGITS, 256, device)
    assert before - free() < 64 * 1024**2


def test_a_memory_limit_that_is_too_small_is_an_error_or_a_reason(tmp_path):
    path = wide(tmp_path / "wide.onnx")
    options = CudaOptions(memory_limit_bytes=4 * 1024**2)
    with pytest.raises(DeviceError, match="could not be started"):
        load(path, 8, find_device("cuda", options))
    model = load(path, 8, find_device("auto", options))
    assert model.provider == "CPUExecutionProvider"
    assert "could not be started" in model.device_reason
