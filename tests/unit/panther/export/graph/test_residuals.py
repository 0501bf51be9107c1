"""Residual additions before a LayerNormalization: which are kept apart from it, and what onnxruntime runs then."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from panther.export import export_onnx, ort
from panther.export.graph.nodes import all_nodes


class PostNorm(nn.Module):
    """LN(x + f(x)), as in BERT; `read_twice` also returns the sum, as a block with LN before f reads it."""

    def __init__(self, *, read_twice=False):
        super().__init__()
        self.f, self.norm, self.read_twice = nn.Linear(32, 32), nn.LayerNorm(32), read_twice

    def forward(self, x):
        h = x + self.f(x)
        return self.norm(h) + h if self.read_twice else self.norm(h)


class BiasNorm(nn.Module):
    """LN(x W + b): the addition of a constant."""

    def __init__(self):
        super().__init__()
        self.f, self.norm = nn.Linear(32, 32), nn.LayerNorm(32)

    def forward(self, x):
        return self.norm(self.f(x))


@pytest.fixture
def x():
    return torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(1))


def exported(model, x, folder, **options):
    torch.manual_seed(0)
    axes = {"x": {0: "batch", 1: "tokens"}}
    path = folder / "model.onnx"
    return export_onnx(model.eval(), {"x": x}, path, name="m", dynamic_axes=axes, num_threads=1, **options).path


def running(path):
    graph = ort.optimized_graph(path, ort.Target()).graph
    return Counter(node.op_type for node in all_nodes(graph))


def test_normalization_runs_vectorized(x, tmp_path):
    model = PostNorm()
    path = exported(model, x, tmp_path)
    ops = running(path)
    assert [ops["SkipLayerNormalization"], ops["LayerNormalization"], ops["Sum"]] == [0, 1, 1]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], model(x).numpy(), atol=1e-5)


def test_an_add_would_be_fused(x, tmp_path):
    """The reason for the Sum; when onnxruntime no longer does this, it can go."""
    path = exported(PostNorm(), x, tmp_path)
    proto = onnx.load(path)
    for node in proto.graph.node:
        if node.op_type == "Sum":
            node.op_type = "Add"
    onnx.save(proto, path)
    assert running(path)["SkipLayerNormalization"] == 1


@pytest.mark.parametrize("model", [PostNorm(read_twice=True), BiasNorm()], ids=["read twice", "bias alone"])
def test_other_additions_stay(model, x, tmp_path):
    path = exported(model, x, tmp_path)
    nodes = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert nodes["Sum"] == 0
    assert nodes["Add"]
    assert running(path)["SkipLayerNormalization"] == 0


def test_float16_keeps_add(x, tmp_path):
    """The CPU has no Sum in float16."""
    path = exported(PostNorm(), x, tmp_path, precision="float16")
    assert "Sum" not in {node.op_type for node in onnx.load(path).graph.node}
