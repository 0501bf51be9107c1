import types

import numpy as np
import onnxruntime as ort
import pytest
from helpers import build
from helpers.host_cuda import open_model
from onnx import TensorProto, helper

from app.runtime.host_runners import CpuRunner, DeviceRunner, OrtValueRunner, host_runner
from app.runtime.tensors import bfloat16_bits, bfloat16_values


def test_arrays_are_run_as_they_are(tiny):
    session, inputs, outputs = open_model(tiny.graph())
    runner = host_runner(session, inputs, outputs)
    assert isinstance(runner, CpuRunner)
    assert not runner.gathers
    x = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    run = runner.run({"x": x}, ["logits"])
    np.testing.assert_allclose(run.arrays[0], tiny.logits(x), rtol=1e-4, atol=1e-5)
    assert (run.input_ns, run.output_ns, run.meanwhile_ns) == (0, 0, 0)


def cast():
    """bfloat16 in and out, and a float32 beside it."""
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["wide", "b"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["y"], to=TensorProto.BFLOAT16),
    ]
    return build.onnx_model(
        nodes,
        [("x", TensorProto.BFLOAT16, ["n", 4]), ("b", TensorProto.FLOAT, ["n", 4])],
        [("y", TensorProto.BFLOAT16, ["n", 4]), ("sum", TensorProto.FLOAT, ["n", 4])],
    )


def test_bfloat16_travels_as_its_bits():
    session, inputs, outputs = open_model(cast())
    runner = host_runner(session, inputs, outputs)
    assert isinstance(runner, OrtValueRunner)
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)[:, :4]  # not contiguous
    bits = bfloat16_bits(np.ascontiguousarray(x))
    b = np.ones((4, 4), np.float32)
    total, y = runner.run({"x": bits, "b": b}, ["sum", "y"]).arrays
    np.testing.assert_array_equal(total, bfloat16_values(bits) + 1)
    assert y.dtype == np.uint16
    np.testing.assert_array_equal(y, bfloat16_bits(bfloat16_values(bits) + 1))
    (part,) = runner.run({"x": bits[1:], "b": b[1:]}, ["y"]).arrays
    np.testing.assert_array_equal(part, y[1:])


@pytest.mark.parametrize("model", ["plain", "bfloat16"])
def test_a_run_can_be_stopped(tiny, model):
    session, inputs, outputs = open_model(tiny.graph() if model == "plain" else cast())
    runner = host_runner(session, inputs, outputs)
    feeds = {spec.name: np.zeros((2, spec.shape[1]), spec.dtype) for spec in inputs}
    options = ort.RunOptions()
    options.terminate = True
    with pytest.raises(Exception, match=r"(?i)terminate"):
        runner.run(feeds, [outputs[0].name], options)


@pytest.mark.parametrize("several", [True, False])
def test_the_device_of_a_session_becomes_the_current_one_where_there_are_several(tiny, several):
    chosen = []
    runtime = types.SimpleNamespace(several=several, set_device=chosen.append)
    session, inputs, outputs = open_model(tiny.graph())
    runner = DeviceRunner(host_runner(session, inputs, outputs), runtime, 1)
    x = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    np.testing.assert_allclose(runner.run({"x": x}, ["logits"]).arrays[0], tiny.logits(x), rtol=1e-4, atol=1e-5)
    assert chosen == [1] * several
