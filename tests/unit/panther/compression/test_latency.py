"""Products timed are the products that the layers compute."""

import numpy as np
import onnxruntime
import pytest

from panther.compression import latency
from panther.compression.latency import Stopwatch, graph
from panther.compression.options import FLOAT, INT8, Option, Product, unchanged


@pytest.mark.parametrize("smoothed", [True, False])
def test_the_integer_product_is_what_it_says(smoothed):
    model = graph(Product(INT8, 12, 7, smoothed), np.random.default_rng(3))
    constants = {tensor.name: onnxruntime_array(tensor) for tensor in model.graph.initializer}
    x = np.random.default_rng(4).normal(size=(5, 12)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    q = np.clip(np.round(x / 0.02) + 128, 0, 255).astype(np.int64) - 128
    np.testing.assert_allclose(y, q @ constants["weight"].astype(np.int64) * 0.02 * 0.01, rtol=1e-4, atol=1e-5)
    assert [node.op_type for node in model.graph.node][: 1 + smoothed][-1] == "QuantizeLinear"


def onnxruntime_array(tensor):
    from onnx import numpy_helper

    return numpy_helper.to_array(tensor)


def test_each_shape_is_measured_once(monkeypatch):
    monkeypatch.setattr(latency, "_MEASURED", {})
    calls = []
    original = latency.median_us
    monkeypatch.setattr(latency, "median_us", lambda *a, **k: calls.append(1) or original(*a, **k))
    watch = Stopwatch(1, {"a": [(3, 16), (1, 3, 16)], "b": [(3, 16)]})
    option = Option(FLOAT, 1, 1, 0.0, unchanged, products=(Product(FLOAT, 16, 8),))
    twice, once = watch.option_us("a", option), watch.option_us("b", option)
    assert len(calls) == 1
    assert twice == 2 * once > 0
    assert watch.option_us("not called", option) == 0


def test_more_work_takes_longer():
    watch = Stopwatch(1, {})
    assert watch.product_us(Product(FLOAT, 512, 512), (64, 512)) > 3 * watch.product_us(
        Product(FLOAT, 64, 64), (64, 64)
    )
