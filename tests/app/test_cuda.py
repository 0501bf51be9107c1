"""Running on CUDA, as far as that shows without one: a runtime that keeps its device memory in the host's."""

import ctypes
import gc
import json
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from unittest.mock import MagicMock

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from app import cuda, cuda_buffers, cuda_runner
from app.cuda import accelerate
from app.cuda_buffers import Bodies, LoanPool
from app.cuda_runner import CudaRunner, NoBuffersError, batch_sizes, check_buffers, relative_error, size_index
from app.cudart import DEVICE_TO_DEVICE, DEVICE_TO_HOST, HOST_TO_DEVICE, Copy, CudaError, CudaRuntime, Streams
from app.device import CUDA, CudaOptions, Device, choose_device_id, find_device
from app.errors import DeviceError
from app.placement import RECORD, Node, find_placement, placement_report, why_not_captured
from app.settings import SettingsError, read_settings
from app.tensors import TensorSpec, tensor_spec

FLOAT = TensorProto.FLOAT


class HostRuntime:
    """CUDA's runtime, played on the host: a graph is the work that was recorded, and a launch does it."""

    def __init__(self):
        self.memory = {}
        self.graphs = {}
        self.executables = {}
        self.made = 0
        self.events = 0
        self.launched = 0
        self.refuse = None
        self.foreign = []
        self.callbacks = 0
        self.empty = False
        self.recording = None
        self.streams = 0
        self.lost = None
        self.copies = []
        self.bodies = None

    def set_device(self, device_id):
        pass

    def make_stream(self):
        self.streams += 1
        return self.streams

    def device_memory(self, size):
        buffer = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    pinned_memory = device_memory

    def make_event(self):
        self.events += 1
        return self.events

    def record(self, event, stream):
        pass

    def elapsed_ns(self, start, end):
        return 1000

    def look(self, stream):
        pass

    def free(self, device=(), pinned=(), graphs=(), events=()):
        for address in (*device, *pinned):
            del self.memory[address]
        self.events -= len(events)
        for graph in graphs:
            del self.executables[graph]

    def copy(self, target, source, size, kind, stream):
        self.copies.append(source)
        if self.recording is not None:
            self.recording.append(Copy(source, target, kind))
        ctypes.memmove(target, source, size)

    def synchronize(self, stream):
        pass

    def launch(self, graph, stream):
        self.launched += 1
        method, arguments = self.executables[graph]
        method()(*arguments)

    def capture(self, stream, work):
        if self.refuse:
            raise CudaError(self.refuse)
        self.recording = []
        work()
        number = self.made = self.made + 1
        # A recorded graph knows nothing of the object that recorded it.
        self.graphs[number] = (weakref.WeakMethod(work.func), work.args), self.recording
        self.recording = None
        return number

    def host_work(self, graph):
        copies = self.graphs[graph][1] + self.foreign
        return copies, self.callbacks, len(copies) + (0 if self.empty else 3)

    def instantiate(self, graph):
        number = 1000 + graph
        self.executables[number] = self.graphs[graph][0]
        return number

    def destroy(self, graph):
        del self.graphs[graph]


@pytest.fixture(autouse=True)
def _on_the_host(monkeypatch):
    monkeypatch.setattr(CudaRunner, "memory", "cpu")
    monkeypatch.setattr(cuda, "CUDA", "CPUExecutionProvider")


@pytest.fixture
def runtime():
    return HostRuntime()


def open_model(model):
    options = ort.SessionOptions()
    options.add_session_config_entry(RECORD, "1")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return (
        session,
        [tensor_spec(node) for node in session.get_inputs()],
        [tensor_spec(node) for node in session.get_outputs()],
    )


def quicken(model, runtime, max_rows=20, *, graphs=True, plain=None, bodies=None):
    session, inputs, outputs = open_model(model)
    device = Device("cuda", (CUDA,), cuda=CudaOptions(graphs=graphs), runtime=runtime, bodies=bodies)
    rng = np.random.default_rng(0)

    def feeds(rows):
        return {
            spec.name: rng.standard_normal(
                [rows if max_rows else spec.shape[0] or 1, *[n or 2 for n in spec.shape[1:]]]
            ).astype(spec.dtype)
            if spec.shape
            else np.asarray(rng.standard_normal(), spec.dtype)
            for spec in inputs
        }

    def run(given, names):
        return session.run(names, given)

    return accelerate(session, inputs, outputs, max_rows, device, 7, feeds, plain or run)


@pytest.mark.parametrize(
    ("max_rows", "expected"),
    [(1, (1,)), (2, (1, 2)), (5, (1, 2, 4, 5)), (8, (1, 2, 4, 8)), (100, (1, 2, 4, 8, 16, 32, 64, 100))],
)
def test_batch_sizes_are_powers_of_two_and_the_maximum(max_rows, expected):
    assert batch_sizes(max_rows) == expected


@pytest.mark.parametrize("max_rows", [1, 2, 3, 7, 8, 9, 100, 256])
def test_the_smallest_size_that_holds_the_rows_is_taken(max_rows):
    sizes = batch_sizes(max_rows)
    for rows in range(1, max_rows + 1):
        assert sizes[size_index(rows)] == min(size for size in sizes if size >= rows)


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 16, 17, 20])
def test_padded_runs_answer_what_the_model_answers(tiny, runtime, rows, graphs):
    report, runner = quicken(tiny.graph(), runtime, graphs=graphs)
    assert (report.mode, report.batch_sizes) == ("graph" if graphs else "bound", (1, 2, 4, 8, 16, 20))
    assert report.reason == (None if graphs else "no graphs: cuda_graphs is off")
    assert report.buffer_bytes == 20 * (6 + 3) * 4
    assert report.padded_to is None or all(
        to >= size for to, size in zip(report.padded_to, report.batch_sizes, strict=True)
    )
    launched = runtime.launched
    x = np.random.default_rng(rows).standard_normal((rows, 6)).astype(np.float32)
    (logits,) = runner.run({"x": x}, ["logits"])
    assert runtime.launched - launched == graphs
    np.testing.assert_allclose(logits, tiny.logits(x), rtol=1e-4, atol=1e-5)
    (again,) = runner.run({"x": x[:1] + 1}, ["logits"])
    np.testing.assert_allclose(again, tiny.logits(x[:1] + 1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits, tiny.logits(x), rtol=1e-4, atol=1e-5, err_msg="an answer lies in the buffers")


@pytest.mark.parametrize("rows", [0, 21, 40])
def test_more_rows_than_the_largest_batch_go_from_the_host(tiny, runtime, rows):
    _, runner = quicken(tiny.graph(), runtime)
    launched = runtime.launched
    x = np.ones((rows, 6), np.float32)
    (logits,) = runner.run({"x": x}, ["logits"])
    np.testing.assert_allclose(logits, tiny.logits(x), rtol=1e-4, atol=1e-5)
    assert runtime.launched == launched


@pytest.fixture(params=["small", "large"])
def sized(request, monkeypatch):
    """Tensors that are copied within the graph, and such that are copied piece by piece."""
    if request.param == "large":
        monkeypatch.setattr(cuda_runner, "_LARGE_BYTES", 0)
        monkeypatch.setattr(cuda_runner, "_CHUNK_BYTES", 24 * 3)
        monkeypatch.setattr(cuda_runner, "_LAST_CHUNK_BYTES", 24)
    return request.param


@pytest.mark.parametrize("cut", [(5,), (1, 1, 1), (4, 3), (3, 9, 1, 2), (20,)])
def test_rows_of_several_requests_are_put_together(tiny, runtime, sized, cut):
    _, runner = quicken(tiny.graph(), runtime)
    rng = np.random.default_rng(sum(cut))
    parts = [rng.standard_normal((rows, 6)).astype(np.float32) for rows in cut]
    (logits,) = runner.run({"x": parts}, ["logits"])
    np.testing.assert_allclose(logits, tiny.logits(np.concatenate(parts)), rtol=1e-4, atol=1e-5)
    assert (runner.input_ns == 1000) == (sized == "large")
    assert runner.output_ns > 0
    assert runner.input_ns > 0


@pytest.fixture
def bodies(runtime, monkeypatch):
    monkeypatch.setattr(cuda_buffers, "_SHORT", 0)
    monkeypatch.setattr(cuda_buffers, "_BODIES", ((256, 3), (1024, 2)))
    return Bodies(runtime, 0)


def lying(bodies, x):
    """An array in a body, behind a head of 5 bytes."""
    body = bodies.take(5 + x.nbytes)
    body[5:] = x.tobytes()
    return np.frombuffer(body, x.dtype, x.size, 5).reshape(x.shape)


@pytest.mark.parametrize("cut", [(5,), (4, 3), (8, 2, 1)])
def test_tensors_in_bodies_are_copied_to_the_device_as_they_lie(tiny, runtime, bodies, sized, cut):
    _, runner = quicken(tiny.graph(), runtime, bodies=bodies)
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal((rows, 6)).astype(np.float32) for rows in cut]
    expected = tiny.logits(np.concatenate(parts))
    lent = [lying(bodies, part) for part in parts]
    runtime.copies.clear()
    (logits,) = runner.run({"x": lent if len(lent) > 1 else lent[0]}, ["logits"])
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert all((bodies.address(part) in runtime.copies) == (sized == "large") for part in lent)
    (logits,) = runner.run({"x": [*lent, parts[0]]}, ["logits"])  # one of them lies elsewhere
    np.testing.assert_allclose(logits[: len(expected)], expected, rtol=1e-4, atol=1e-5)


def test_a_body_is_used_again_when_the_last_array_over_it_is_gone(bodies, runtime):
    arrays = [lying(bodies, np.full(40, number, np.uint8)) for number in range(3)]
    assert bodies.take(100) is None
    assert [array[0] for array in arrays] == [0, 1, 2]
    rows = arrays[1][3:]
    address = bodies.address(arrays[1])
    del arrays[1]
    assert bodies.take(100) is None
    del rows
    assert bodies.address(np.frombuffer(bodies.take(100), np.uint8)) == address - 5
    assert [len(bodies.take(length)) for length in (257, 1024)] == [257, 1024]
    assert bodies.take(1025) is None
    assert bodies.address(np.zeros(3)) is None
    assert bodies.address(arrays[0][::2]) is None


def test_what_else_is_to_be_done_is_done_while_the_device_is_at_work(tiny, runtime, monkeypatch):
    monkeypatch.setattr(cuda_runner, "_LARGE_BYTES", 0)
    _, runner = quicken(tiny.graph(), runtime)
    done = []

    def meanwhile():
        done.append(runtime.launched)
        time.sleep(0.02)

    launched = runtime.launched
    x = np.ones((3, 6), np.float32)
    (logits,) = runner.run({"x": x}, ["logits"], meanwhile)
    np.testing.assert_allclose(logits, tiny.logits(x), rtol=1e-4, atol=1e-5)
    assert done == [launched + 1]
    assert 20e6 <= runner.aside_ns < 1e9
    runner.run({"x": x}, ["logits"])
    assert runner.aside_ns == 0


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 100])
@pytest.mark.parametrize("row_bytes", [1, 100, 70_000, 1_000_000])
def test_pieces_hold_all_rows_in_their_order(rows, row_bytes):
    x = np.arange(rows)
    for parts in (x, [x[: rows // 2], x[rows // 2 :]], [x[at : at + 1] for at in range(rows)]):
        pieces = list(cuda_runner._pieces(parts, rows, row_bytes))
        assert [size for _, size in pieces] == [len(cuda_runner._joined(piece)) for piece, _ in pieces]
        np.testing.assert_array_equal(np.concatenate([cuda_runner._joined(piece) for piece, _ in pieces]), x)


def test_the_last_pieces_are_small():
    sizes = [size for _, size in cuda_runner._pieces(np.zeros((1024, 1)), 1024, 1024)]
    assert sizes == [512, 256, 128, 64, 64]


def test_more_rows_of_several_requests_than_the_largest_batch(tiny, runtime):
    _, runner = quicken(tiny.graph(), runtime)
    parts = [np.full((15, 6), value, np.float32) for value in (1, 2)]
    (logits,) = runner.run({"x": parts}, ["logits"])
    np.testing.assert_allclose(logits, tiny.logits(np.concatenate(parts)), rtol=1e-4, atol=1e-5)


def test_results_stay_as_they_are_while_others_run(tiny, runtime, sized):
    _, runner = quicken(tiny.graph(), runtime)
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((7, 6)).astype(np.float32) for _ in range(20)]
    results = [runner.run({"x": x}, ["logits"])[0] for x in inputs]
    for x, logits in zip(inputs, results, strict=True):
        np.testing.assert_allclose(logits, tiny.logits(x), rtol=1e-4, atol=1e-5)


def test_results_outlive_the_runner(tiny, runtime, monkeypatch):
    monkeypatch.setattr(cuda_runner, "_LARGE_BYTES", 0)
    _, runner = quicken(tiny.graph(), runtime)
    x = np.ones((3, 6), np.float32)
    (logits,) = runner.run({"x": x}, ["logits"])
    rows = logits[1:]
    del runner, logits
    np.testing.assert_allclose(rows, tiny.logits(x)[1:], rtol=1e-4, atol=1e-5)
    assert runtime.memory
    del rows
    assert runtime.memory == {}


def test_lent_memory_is_lent_again_and_not_without_end(runtime):
    pool = LoanPool(1024 * 1024 * 16, runtime, 0)
    first = pool.take((2,), np.dtype(np.float32))
    others = [pool.take((2,), np.dtype(np.float32)) for _ in range(3)]
    assert len({address for address, _ in (first, *others)}) == 4
    assert pool.take((2,), np.dtype(np.float32)) is None
    address = first[0]
    del first
    assert pool.take((2,), np.dtype(np.float32))[0] == address


def test_a_larger_size_is_taken_where_it_is_quicker(tiny, runtime, monkeypatch):
    _, plain = quicken(tiny.graph(), runtime)
    slow = {plain.sizes.index(4), plain.sizes.index(8)}
    real = CudaRunner._go

    def go(self, index):
        real(self, index)
        if index in slow and self._graphs:
            threading.Event().wait(0.002)

    monkeypatch.setattr(CudaRunner, "_go", go)
    report, runner = quicken(tiny.graph(), runtime)
    taken = dict(zip(report.batch_sizes, report.padded_to, strict=True))
    assert taken[4] in {16, 20}
    assert taken[8] in {16, 20}
    x = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    np.testing.assert_allclose(runner.run({"x": x}, ["logits"])[0], tiny.logits(x), rtol=1e-4, atol=1e-5)


def two_outputs():
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Cast", ["a"], ["whole"], to=TensorProto.INT64),
    ]
    tensors = [("a", FLOAT, ["n", 2, 3]), ("b", FLOAT, ["n", 2, 3])]
    return tensors, nodes, [("sum", FLOAT, ["n", 2, 3]), ("whole", TensorProto.INT64, ["n", 2, 3])]


def test_several_tensors_of_several_types_and_any_choice_of_outputs(build, runtime, sized):
    inputs, nodes, outputs = two_outputs()
    report, runner = quicken(build.onnx_model(nodes, inputs, outputs), runtime, 4)
    assert (report.mode, report.buffer_bytes) == ("graph", 4 * 6 * (4 + 4 + 4 + 8))
    a = np.arange(18, dtype=np.float32).reshape(3, 2, 3) / 2
    whole, total = runner.run({"a": a, "b": a[::-1]}, ["whole", "sum"])
    np.testing.assert_array_equal(whole, a.astype(np.int64))
    np.testing.assert_array_equal(total, a + a[::-1])
    assert len(runner.run({"a": a, "b": a}, ["sum"])) == 1


def test_a_model_without_a_batch_has_one_graph(build, runtime, sized):
    model = build.onnx_model([helper.make_node("Neg", ["x"], ["y"])], [("x", FLOAT, [2, 3])], [("y", FLOAT, [2, 3])])
    report, runner = quicken(model, runtime, None)
    assert (report.mode, report.batch_sizes, len(runtime.executables)) == ("graph", None, 1)
    assert runtime.graphs == {}
    (y,) = runner.run({"x": np.eye(2, 3, dtype=np.float32)}, ["y"])
    np.testing.assert_array_equal(y, -np.eye(2, 3))


def test_a_single_number_has_a_buffer_too(build, runtime, sized):
    model = build.onnx_model([helper.make_node("Neg", ["x"], ["y"])], [("x", FLOAT, [])], [("y", FLOAT, [])])
    _, runner = quicken(model, runtime, None)
    assert runner.run({"x": np.float32(3)}, ["y"])[0] == -3


def spec(name="x", datatype="FP32", shape=(None, 4)):
    dtype = np.dtype(object) if datatype == "BYTES" else np.dtype(np.float32)
    return TensorSpec(name, datatype, dtype, shape, tuple("n" if size is None else None for size in shape))


@pytest.mark.parametrize(
    ("tensor", "batched", "reason"),
    [
        (spec("words", "BYTES"), True, "'words' holds strings"),
        (spec(shape=(None, None)), True, r"'x' has more dynamic dimensions than the batch: \(n, n\)"),
        (spec(), False, r"'x' has more dynamic dimensions than the batch: \(n, 4\)"),
        (spec(shape=(None, 0)), True, r"'x' is empty: \(n, 0\)"),
    ],
)
def test_tensors_that_can_have_no_buffer(tensor, batched, reason):
    with pytest.raises(NoBuffersError, match=reason):
        check_buffers([spec("good")] if batched else [spec("good", shape=(3,))], [tensor], batched=batched)


def test_a_model_of_unknown_shape_runs_from_the_host_and_says_why(build, runtime):
    model = build.onnx_model(
        [helper.make_node("Neg", ["x"], ["y"])], [("x", FLOAT, ["n", "m"])], [("y", FLOAT, ["n", "m"])]
    )
    report, runner = quicken(model, runtime)
    assert runner is None
    assert (report.mode, report.reason) == (
        "host",
        "no buffers: 'x' has more dynamic dimensions than the batch: (n, m)",
    )
    assert runtime.memory == {}


def test_an_output_that_is_not_as_declared_is_found_out(build, runtime):
    nodes = [helper.make_node("Slice", ["x", "zero", "two", "zero"], ["y"])]
    limits = [numpy_helper.from_array(np.array([value], np.int64), name) for name, value in (("zero", 0), ("two", 2))]
    model = build.onnx_model(nodes, [("x", FLOAT, ["n", 3])], [("y", FLOAT, ["n", 3])], limits)
    report, runner = quicken(model, runtime, 4)
    assert runner is None
    assert report.reason == "no buffers: 'y' came out as (2, 3), not as (4, 3)"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"refuse": "beginning a capture failed: no"}, "no graphs: beginning a capture failed: no"),
        ({"foreign": [Copy(1, 2, HOST_TO_DEVICE)]}, "no graphs: a node copies from memory of the host, or calls it"),
        ({"foreign": [Copy(1, 2, DEVICE_TO_HOST)]}, "no graphs: a node copies from memory of the host, or calls it"),
        ({"callbacks": 1}, "no graphs: a node copies from memory of the host, or calls it"),
        ({"empty": True}, "no graphs: the recording holds no work: it went to another stream"),
    ],
)
def test_a_recording_that_is_refused_leaves_the_buffers(tiny, runtime, change, reason):
    for name, value in change.items():
        setattr(runtime, name, value)
    report, runner = quicken(tiny.graph(), runtime)
    assert (report.mode, report.reason) == ("bound", reason)
    assert runtime.executables == {}
    x = np.ones((3, 6), np.float32)
    np.testing.assert_allclose(runner.run({"x": x}, ["logits"])[0], tiny.logits(x), rtol=1e-4, atol=1e-5)


def test_copies_within_the_device_are_no_hindrance(tiny, runtime):
    runtime.foreign = [Copy(1, 2, DEVICE_TO_DEVICE)]
    assert quicken(tiny.graph(), runtime)[0].mode == "graph"


def test_a_replay_that_answers_otherwise_is_not_used(tiny, runtime):
    runtime.launch = lambda graph, stream: None
    report, _ = quicken(tiny.graph(), runtime)
    assert report.mode == "bound"
    assert report.reason.startswith("no graphs: output 'logits' of 1 rows is off by ")
    assert runtime.executables == {}


def test_a_bound_run_that_answers_otherwise_is_not_used(tiny, runtime):
    runtime.copy = lambda *_: None
    report, runner = quicken(tiny.graph(), runtime)
    assert runner is None
    assert report.reason.startswith("no buffers: output 'logits' of 1 rows is off by ") or "20 rows" in report.reason
    gc.collect()
    assert runtime.memory == {}


def test_what_a_runner_holds_is_given_back_at_once(tiny, runtime):
    _, runner = quicken(tiny.graph(), runtime)
    assert len(runtime.memory) == 4
    assert len(runtime.executables) == 6
    del runner
    assert runtime.memory == {}
    assert runtime.executables == {}
    assert runtime.events == 0


def test_runs_of_several_threads_take_turns(tiny, runtime, sized):
    _, runner = quicken(tiny.graph(), runtime)
    wrong = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(50):
            x = rng.standard_normal((int(rng.integers(1, 20)), 6)).astype(np.float32)
            if not np.allclose(runner.run({"x": x}, ["logits"])[0], tiny.logits(x), rtol=1e-4, atol=1e-4):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_without_the_runtime_it_runs_from_the_host(tiny):
    session, inputs, outputs = open_model(tiny.graph())
    device = Device("cuda", (CUDA,), runtime_problem="libcudart.so.13 can't be loaded")
    report, runner = accelerate(session, inputs, outputs, 8, device, None, dict, list)
    assert (runner, report.mode) == (None, "host")
    assert report.reason == "no buffers: libcudart.so.13 can't be loaded"


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
        (None, "this version of onnxruntime does not tell where nodes run"),
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
    (report,) = placement_report(nodes, by_name=True)
    assert report["provider"] == OFF
    assert report["nodes"] == len(nodes) == len(report["node_names"]) == sum(report["op_types"].values())
    assert report["op_types"]["Relu"] == 1
    assert "node_names" not in placement_report(nodes)[0]
    assert placement_report(find_placement(object())) is None


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
        DeviceError, match=f"cuda_devices=0,9 can't be had: there is no device 9; there are: {there}$|no device 0"
    ):
        choose_device_id("0,9", count, 0)


def test_a_missing_device_is_an_error_in_strict_mode_and_a_reason_in_automatic(monkeypatch):
    class OneDevice(HostRuntime):
        def device_count(self):
            return 1

    monkeypatch.setattr("app.device.load_runtime", OneDevice)
    monkeypatch.setattr("app.device.ort.get_available_providers", lambda: [CUDA, OFF])
    monkeypatch.setattr("app.device.ort.preload_dlls", lambda: None, raising=False)
    with pytest.raises(DeviceError, match="there is no device 1; there are: 0"):
        find_device("cuda", None, "1")
    found = find_device("auto", None, "1")
    assert (found.providers, found.reason) == (
        (OFF,),
        "cuda_devices=1 can't be had: there is no device 1; there are: 0",
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


@pytest.mark.parametrize(
    ("mine", "expected", "error"),
    [
        ([1.0, 2.0], [1.0, 4.0], 0.5),
        ([np.nan, 4.0], [np.nan, 4.0], 0.0),
        ([1.0, 4.0], [np.nan, 4.0], np.inf),
        ([np.inf], [np.inf], 0.0),
        ([np.nan], [1.0], np.nan),
    ],
)
def test_relative_errors(mine, expected, error):
    found = relative_error(np.array(mine, np.float32), np.array(expected, np.float32), spec())
    assert found == error or (np.isnan(error) and np.isnan(found))


@pytest.fixture
def played(monkeypatch, runtime):
    """A server for which the CPU is CUDA."""
    monkeypatch.setattr("app.model.CUDA", OFF)
    device = Device("cuda", (OFF,), runtime=runtime, streams=Streams(runtime))
    asked = []

    def find(*arguments):
        asked.append(arguments)
        return replace(device, cuda=arguments[1], bodies=runtime.bodies)

    monkeypatch.setattr("app.serving.find_device", find)
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


def test_long_bodies_are_received_where_the_device_copies_from(serve, tiny, played, runtime, monkeypatch):
    monkeypatch.setattr(cuda_runner, "_LARGE_BYTES", 0)
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
    runtime.copies.clear()
    for _ in range(150):  # there are fewer pieces
        answer = ask(binary, x.tobytes(), length=True).json()
    assert sum(bodies._start <= source < bodies._end for source in runtime.copies) == 150
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
    said = f"nothing runs on CUDA any more in this process: {runtime.lost}"
    assert client.get("/health/live").json() == {"live": False, "error": said}
    assert client.get("/health/live").status_code == 503
    assert client.get("/v2/health/live").status_code == 400
    assert client.get("/health/ready").json() == {"ready": False, "error": said}


def test_after_a_run_that_failed_the_device_is_looked_at(serve, tiny, played, runtime):
    client = serve(tiny.graph(), max_batch_rows=4)
    looked = []

    def fail(graph, stream):
        raise CudaError("launching the graph failed: out of memory (CUDA error 2)")

    runtime.launch, runtime.look = fail, looked.append
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
    runtime.look(1)
    assert runtime.lost == lost


def test_the_error_of_tf32_is_measured_against_a_session_without(serve, tiny, played):
    client = serve(tiny.graph(), cuda_tf32=True)
    found = client.get("/models/m/stats").json()["models"][0]["runtime"]["cuda"]
    assert found["tf32"] is True
    assert found["tf32_max_relative_error"] < 1e-6  # on the CPU there is no TF32


def test_what_a_model_had_on_cuda_is_given_back_with_it(serve, tiny, played, runtime, tmp_path, build):
    client = serve(tiny.graph(), model_control="explicit", max_batch_rows=4)

    def held():
        return len(runtime.memory), len(runtime.executables), runtime.events

    def settled(expected):
        end = time.monotonic() + 10  # a version that was replaced finishes what it has in hand, and then goes
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


def test_each_worker_has_a_number_for_as_long_as_it_lives(tmp_path):
    program = f"""
import sys
from pathlib import Path
from app.slots import claim_slot
print(claim_slot(Path({str(tmp_path)!r}), 3), flush=True)
sys.stdin.read()
"""

    def start():
        command = [sys.executable, "-c", program]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return process, int(process.stdout.readline())

    def end(process):
        process.communicate("")

    workers = [start() for _ in range(3)]
    try:
        assert [slot for _, slot in workers] == [0, 1, 2]
        end(workers[1][0])
        workers[1] = start()
        assert workers[1][1] == 1
    finally:
        for process, _ in workers:
            end(process)
