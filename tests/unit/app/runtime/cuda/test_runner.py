"""Runs on CUDA from buffers and graphs, on a runtime that is played on the host."""

import gc
import threading
import time

import numpy as np
import pytest
from helpers import build
from helpers.host_cuda import open_model, taken
from helpers.threads import at_once
from onnx import TensorProto, helper, numpy_helper

from app.runtime.cuda import buffers as buffers_module
from app.runtime.cuda import runner as runner_module
from app.runtime.cuda import transfer as transfer_module
from app.runtime.cuda.accelerate import accelerate
from app.runtime.cuda.buffers import Bodies, CudaTarget, LoanPool
from app.runtime.cuda.cudart import DEVICE_TO_DEVICE, DEVICE_TO_HOST, HOST_TO_DEVICE, Copy, CudaError
from app.runtime.cuda.graphs import CudaGraphRunner
from app.runtime.device import CUDA, CudaOptions, Device
from app.runtime.host_runners import CpuRunner
from app.runtime.signature import Signature

FLOAT = TensorProto.FLOAT


def quicken(model, runtime, max_rows=20, *, graphs=True, bodies=None):
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

    target = CudaTarget(runtime, 0, 7, bodies)
    return accelerate(session, Signature(inputs, outputs), max_rows, device, target, feeds, CpuRunner(session))


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
    (logits,) = runner.run({"x": x}, ["logits"]).arrays
    assert runtime.launched - launched == graphs
    np.testing.assert_allclose(logits, tiny.logits(x), rtol=1e-4, atol=1e-5)
    (again,) = runner.run({"x": x[:1] + 1}, ["logits"]).arrays
    np.testing.assert_allclose(again, tiny.logits(x[:1] + 1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits, tiny.logits(x), rtol=1e-4, atol=1e-5, err_msg="an answer lies in the buffers")


@pytest.mark.parametrize("rows", [0, 21, 40])
def test_more_rows_than_the_largest_batch_go_from_the_host(tiny, runtime, rows):
    _, runner = quicken(tiny.graph(), runtime)
    launched = runtime.launched
    x = np.ones((rows, 6), np.float32)
    (logits,) = runner.run({"x": x}, ["logits"]).arrays
    np.testing.assert_allclose(logits, tiny.logits(x), rtol=1e-4, atol=1e-5)
    assert runtime.launched == launched


@pytest.fixture(params=["small", "large"])
def sized(request, monkeypatch):
    """Tensors that are copied within the graph, and such that are copied piece by piece."""
    if request.param == "large":
        monkeypatch.setattr(runner_module, "_LARGE_BYTES", 0)
        monkeypatch.setattr(transfer_module, "_CHUNK_BYTES", 24 * 3)
        monkeypatch.setattr(transfer_module, "_LAST_CHUNK_BYTES", 24)
    return request.param


@pytest.mark.parametrize("cut", [(5,), (1, 1, 1), (4, 3), (3, 9, 1, 2), (20,)])
def test_rows_of_several_requests_are_put_together(tiny, runtime, sized, cut):
    _, runner = quicken(tiny.graph(), runtime)
    rng = np.random.default_rng(sum(cut))
    parts = [rng.standard_normal((rows, 6)).astype(np.float32) for rows in cut]
    run = runner.run({"x": parts}, ["logits"])
    np.testing.assert_allclose(run.arrays[0], tiny.logits(np.concatenate(parts)), rtol=1e-4, atol=1e-5)
    assert (run.input_ns == 1000) == (sized == "large")
    assert run.output_ns > 0
    assert run.input_ns > 0


@pytest.fixture
def bodies(runtime, monkeypatch):
    monkeypatch.setattr(buffers_module, "_SHORT", 0)
    monkeypatch.setattr(buffers_module, "_BODIES", ((256, 3), (1024, 2)))
    monkeypatch.setattr(buffers_module, "_MOST_BLOCKS", 2)
    return Bodies(runtime, 0)


def lying(bodies, x):
    """An array in a body, behind a head of 5 bytes."""
    body = taken(bodies, 5 + x.nbytes)
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
    (logits,) = runner.run({"x": lent if len(lent) > 1 else lent[0]}, ["logits"]).arrays
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert all((bodies.address(part) in runtime.copies) == (sized == "large") for part in lent)
    for mixed in ([*lent, parts[0]], [parts[0], *lent], [parts[0][:2], *lent, parts[0][:2], parts[0][:1]]):
        runtime.copies.clear()
        (logits,) = runner.run({"x": mixed}, ["logits"]).arrays  # some of them lie elsewhere
        np.testing.assert_allclose(logits, tiny.logits(np.concatenate(mixed)), rtol=1e-4, atol=1e-5)
        assert all((bodies.address(part) in runtime.copies) == (sized == "large") for part in lent)


def test_a_body_is_used_again_when_the_last_array_over_it_is_gone(bodies, runtime):
    arrays = [lying(bodies, np.full(40, number, np.uint8)) for number in range(3)]
    assert [len(taken(bodies, length)) for length in (257, 1024)] == [257, 1024]
    assert bodies.take(100) is None
    assert [array[0] for array in arrays] == [0, 1, 2]
    rows = arrays[1][3:]
    address = bodies.address(arrays[1])
    del arrays[1]
    assert bodies.take(100) is None
    del rows
    assert bodies.address(np.frombuffer(bodies.take(100), np.uint8)) == address - 5
    assert bodies.take(1025) is None
    assert bodies.address(np.zeros(3)) is None
    assert bodies.address(arrays[0][::2]) is None


def test_pinned_memory_comes_with_long_bodies_and_not_without_end(bodies, runtime):
    assert (bodies.nbytes, runtime.memory) == (0, {})
    held = [taken(bodies, 200) for _ in range(3)]
    assert bodies.nbytes == 3 * 256
    held += [taken(bodies, 200) for _ in range(3)]  # a further block
    assert bodies.nbytes == 6 * 256
    assert bodies.take(200) is None
    assert bodies.take(1000) is None  # there are as many blocks as there may be
    assert bodies.nbytes == 6 * 256
    del held
    assert bodies.take(200) is not None


def test_where_no_memory_can_be_pinned_bodies_go_through_ordinary_memory(bodies, runtime, monkeypatch, caplog):
    def refuse(size):
        raise CudaError(f"allocating {size:,} pinned bytes failed: out of memory (CUDA error 2)")

    monkeypatch.setattr(runtime, "pinned_memory", refuse)
    assert bodies.take(200) is None
    end = time.monotonic() + 60
    while "no further pinned memory for request bodies: allocating 768 pinned bytes failed" not in caplog.text:
        assert time.monotonic() < end
        assert bodies.take(200) is None
        time.sleep(0.001)
    assert caplog.text.count("no further pinned memory") == 1


def test_what_else_is_to_be_done_is_done_while_the_device_is_at_work(tiny, runtime, monkeypatch):
    monkeypatch.setattr(runner_module, "_LARGE_BYTES", 0)
    _, runner = quicken(tiny.graph(), runtime)
    done = []

    def meanwhile():
        done.append(runtime.launched)
        time.sleep(0.02)

    launched = runtime.launched
    x = np.ones((3, 6), np.float32)
    run = runner.run({"x": x}, ["logits"], None, meanwhile)
    (logits,) = run.arrays
    np.testing.assert_allclose(logits, tiny.logits(x), rtol=1e-4, atol=1e-5)
    assert done == [launched + 1]
    assert 20e6 <= run.meanwhile_ns < 1e9
    assert runner.run({"x": x}, ["logits"]).meanwhile_ns == 0


def test_more_rows_of_several_requests_than_the_largest_batch(tiny, runtime):
    _, runner = quicken(tiny.graph(), runtime)
    parts = [np.full((15, 6), value, np.float32) for value in (1, 2)]
    (logits,) = runner.run({"x": parts}, ["logits"]).arrays
    np.testing.assert_allclose(logits, tiny.logits(np.concatenate(parts)), rtol=1e-4, atol=1e-5)


def test_results_stay_as_they_are_while_others_run(tiny, runtime, sized):
    _, runner = quicken(tiny.graph(), runtime)
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((7, 6)).astype(np.float32) for _ in range(20)]
    results = [runner.run({"x": x}, ["logits"]).arrays[0] for x in inputs]
    for x, logits in zip(inputs, results, strict=True):
        np.testing.assert_allclose(logits, tiny.logits(x), rtol=1e-4, atol=1e-5)


def test_results_outlive_the_runner(tiny, runtime, monkeypatch):
    monkeypatch.setattr(runner_module, "_LARGE_BYTES", 0)
    _, runner = quicken(tiny.graph(), runtime)
    x = np.ones((3, 6), np.float32)
    (logits,) = runner.run({"x": x}, ["logits"]).arrays
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
    real = CudaGraphRunner._run_within

    def run_within(self, size):
        real(self, size)
        if size.index in slow and size.graph is not None:
            threading.Event().wait(0.002)

    monkeypatch.setattr(CudaGraphRunner, "_run_within", run_within)
    report, runner = quicken(tiny.graph(), runtime)
    taken = dict(zip(report.batch_sizes, report.padded_to, strict=True))
    assert taken[4] in {16, 20}
    assert taken[8] in {16, 20}
    x = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    np.testing.assert_allclose(runner.run({"x": x}, ["logits"]).arrays[0], tiny.logits(x), rtol=1e-4, atol=1e-5)


def two_outputs():
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Cast", ["a"], ["whole"], to=TensorProto.INT64),
    ]
    tensors = [("a", FLOAT, ["n", 2, 3]), ("b", FLOAT, ["n", 2, 3])]
    return tensors, nodes, [("sum", FLOAT, ["n", 2, 3]), ("whole", TensorProto.INT64, ["n", 2, 3])]


def test_several_tensors_of_several_types_and_any_choice_of_outputs(runtime, sized):
    inputs, nodes, outputs = two_outputs()
    report, runner = quicken(build.onnx_model(nodes, inputs, outputs), runtime, 4)
    assert (report.mode, report.buffer_bytes) == ("graph", 4 * 6 * (4 + 4 + 4 + 8))
    a = np.arange(18, dtype=np.float32).reshape(3, 2, 3) / 2
    whole, total = runner.run({"a": a, "b": a[::-1]}, ["whole", "sum"]).arrays
    np.testing.assert_array_equal(whole, a.astype(np.int64))
    np.testing.assert_array_equal(total, a + a[::-1])
    assert len(runner.run({"a": a, "b": a}, ["sum"]).arrays) == 1


def test_a_model_without_a_batch_has_one_graph(runtime, sized):
    model = build.onnx_model([helper.make_node("Neg", ["x"], ["y"])], [("x", FLOAT, [2, 3])], [("y", FLOAT, [2, 3])])
    report, runner = quicken(model, runtime, None)
    assert (report.mode, report.batch_sizes, len(runtime.executables)) == ("graph", None, 1)
    assert runtime.graphs == {}
    (y,) = runner.run({"x": np.eye(2, 3, dtype=np.float32)}, ["y"]).arrays
    np.testing.assert_array_equal(y, -np.eye(2, 3))


def test_a_single_number_has_a_buffer_too(runtime, sized):
    model = build.onnx_model([helper.make_node("Neg", ["x"], ["y"])], [("x", FLOAT, [])], [("y", FLOAT, [])])
    _, runner = quicken(model, runtime, None)
    assert runner.run({"x": np.float32(3)}, ["y"]).arrays[0] == -3


def test_a_model_of_unknown_shape_runs_from_the_host_and_says_why(runtime):
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


def test_an_output_that_is_not_as_declared_is_found_out(runtime):
    nodes = [helper.make_node("Slice", ["x", "zero", "two", "zero"], ["y"])]
    limits = [numpy_helper.from_array(np.array([value], np.int64), name) for name, value in (("zero", 0), ("two", 2))]
    model = build.onnx_model(nodes, [("x", FLOAT, ["n", 3])], [("y", FLOAT, ["n", 3])], limits)
    report, runner = quicken(model, runtime, 4)
    assert runner is None
    assert report.reason == "no buffers: 'y' has shape (2, 3), the graph declares (4, 3)"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"refuse": "beginning a capture failed: no"}, "no graphs: beginning a capture failed: no"),
        (
            {"foreign": [Copy(1, 2, HOST_TO_DEVICE)]},
            "no graphs: a node copies from host memory, or calls a host function",
        ),
        (
            {"foreign": [Copy(1, 2, DEVICE_TO_HOST)]},
            "no graphs: a node copies from host memory, or calls a host function",
        ),
        ({"callbacks": 1}, "no graphs: a node copies from host memory, or calls a host function"),
        ({"empty": True}, "no graphs: the capture is empty: the work went to another stream"),
    ],
)
def test_a_recording_that_is_refused_leaves_the_buffers(tiny, runtime, change, reason):
    for name, value in change.items():
        setattr(runtime, name, value)
    report, runner = quicken(tiny.graph(), runtime)
    assert (report.mode, report.reason) == ("bound", reason)
    assert runtime.executables == {}
    x = np.ones((3, 6), np.float32)
    np.testing.assert_allclose(runner.run({"x": x}, ["logits"]).arrays[0], tiny.logits(x), rtol=1e-4, atol=1e-5)


def test_copies_within_the_device_are_no_hindrance(tiny, runtime):
    runtime.foreign = [Copy(1, 2, DEVICE_TO_DEVICE)]
    assert quicken(tiny.graph(), runtime)[0].mode == "graph"


def test_a_replay_that_answers_otherwise_is_not_used(tiny, runtime):
    runtime.launch = lambda graph, stream: None
    report, _ = quicken(tiny.graph(), runtime)
    assert report.mode == "bound"
    assert report.reason.startswith("no graphs: output 'logits' of 1 rows differs by ")
    assert runtime.executables == {}


def test_a_bound_run_that_answers_otherwise_is_not_used(tiny, runtime):
    runtime.copy = lambda *_: None
    report, runner = quicken(tiny.graph(), runtime)
    assert runner is None
    assert report.reason.startswith("no buffers: output 'logits' of 1 rows differs by ") or "20 rows" in report.reason
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
            if not np.allclose(runner.run({"x": x}, ["logits"]).arrays[0], tiny.logits(x), rtol=1e-4, atol=1e-4):
                wrong.append(seed)

    at_once(work, 4)
    assert wrong == []


def test_without_the_runtime_it_runs_from_the_host(tiny):
    session, inputs, outputs = open_model(tiny.graph())
    device = Device("cuda", (CUDA,), runtime_problem="libcudart.so.13 can't be loaded")
    report, runner = accelerate(session, Signature(inputs, outputs), 8, device, None, dict, CpuRunner(session))
    assert (runner, report.mode) == (None, "host")
    assert report.reason == "no buffers: libcudart.so.13 can't be loaded"
