"""Sketched convolutions in a file: plain Conv nodes that compute what torch's own convolution does."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from panther.export import ExportError
from panther.export.graph.convolutions import check_convolutions
from panther.export.graph.trace import trace
from panther.nn import SKConv1d, SKConv2d, SKLinear

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*the sketched layer is the larger one:UserWarning"),
    # of torch, where the oracle pads by an odd width
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning"),
]

# layer, and the Conv nodes of its factors
LAYERS = [
    (lambda: SKConv2d(6, 8, 3, 1, 2, padding=1), 4),
    (lambda: SKConv2d(6, 8, 3, 2, 2, stride=2, padding=1, terms="output"), 2),
    (lambda: SKConv2d(6, 8, (3, 2), 1, 2, dilation=2, terms="input", bias=False), 2),
    (lambda: SKConv2d(6, 8, 1, 1, 2, stride=(2, 1), padding=1), 2),
    (lambda: SKConv2d(6, 8, (2, 3), 1, 2, padding="same"), 4),
    (lambda: SKConv2d(6, 8, 3, 1, 2, padding=2, padding_mode="reflect", terms="output"), 2),
    (lambda: SKConv2d(6, 8, 3, 1, 2, padding=1, padding_mode="replicate"), 4),
    (lambda: SKConv2d(6, 8, 3, 1, 2, groups=2), 4),
    (lambda: SKConv2d(6, 8, 1, 1, 2, groups=2), 4),
    (lambda: SKConv2d(6, 8, 3, 1, 2, sketch="gaussian", padding="valid"), 4),
]


def run(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def oracle(layer, x):
    """The dense convolution, by torch, in float64."""
    return layer.to_conv().double()(x.double()).detach().numpy()


@pytest.mark.parametrize("plan", ["two_products", "dense"])
@pytest.mark.parametrize(("make", "nodes"), LAYERS)
def test_is_written_as_conv_nodes_and_takes_any_size(make, nodes, plan, export):
    layer = make()
    axes = {"x": {0: "batch", 2: "height", 3: "width"}}
    report = export(layer, {"x": torch.randn(2, 6, 9, 10)}, plan=plan, dynamic_axes=axes)
    graph = onnx.load(report.path).graph
    ops = [node.op_type for node in graph.node]
    assert ops.count("Conv") == (1 if plan == "dense" else nodes)
    assert not [node for node in graph.node if node.domain]
    x = torch.randn(3, 6, 12, 7)
    expected = oracle(layer, x)
    np.testing.assert_allclose(run(report.path, x), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("plan", ["two_products", "dense"])
@pytest.mark.parametrize("terms", ["both", "output", "input"])
def test_one_axis(terms, plan, export):
    layer = SKConv1d(6, 8, 5, 1, 2, stride=2, padding=2, terms=terms)
    report = export(layer, {"x": torch.randn(2, 6, 20)}, plan=plan, dynamic_axes={"x": {0: "batch", 2: "time"}})
    x = torch.randn(3, 6, 31)
    np.testing.assert_allclose(run(report.path, x), oracle(layer, x), rtol=0, atol=1e-5)


class Network(nn.Module):
    """A convolution used three times, with a hook, behind one whose weight is asked for its type; a linear layer."""

    def __init__(self):
        super().__init__()
        self.stem = SKConv2d(3, 16, 3, 1, 2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.body = SKConv2d(16, 16, 3, 1, 2, padding=1, terms="output")
        self.head = SKLinear(16, 16, 1, 2)
        self.body.register_forward_hook(lambda module, args, y: y * 2)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x.to(self.stem.weight.dtype))))
        x = torch.relu(self.body(torch.relu(self.body(x))))
        one = self.body(x[0])
        return self.head(x.mean((2, 3))) + one.mean()


def test_a_network(export):
    model = Network().eval()
    with torch.no_grad():
        model.norm.running_mean.normal_()
        model.norm.running_var.uniform_(0.5, 2)
    x = torch.randn(4, 3, 8, 8)
    report = export(model, {"x": x}, plan={"stem": "dense", "body": "two_products", "head": "dense"})
    file = onnx.load(report.path)
    np.testing.assert_allclose(run(report.path, x), model(x).detach().numpy(), atol=1e-5)
    names = [initializer.name for initializer in file.graph.initializer]
    assert names.count("body.S1") == names.count("body.U1") == 1
    # factors, which are multiplied when the file is loaded
    assert "stem.W" not in names
    assert [node.op_type for node in file.graph.node if "stem.W" in node.output] in (["Reshape"], ["Add"])
    assert [node.op_type for node in file.graph.node].count("Conv") == 1 + 3 * 2
    plans = {entry.name: entry.plan for entry in report.card.convolutions}
    assert plans == {"stem": "dense", "body": "two_products"}
    with pytest.raises(ValueError, match="plan names layer 'tail'"):
        export(model, {"x": x}, plan={"tail": "dense"})
    with pytest.raises(ValueError, match=r"plan \('sparse'\) must be"):
        export(model, {"x": x}, plan={"stem": "sparse"})


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_other_precisions(precision, export):
    model = nn.Sequential(SKConv2d(3, 32, 3, 1, 4, padding=1), nn.Flatten(), SKLinear(32 * 16, 64, 1, 16)).eval()
    x = torch.randn(4, 3, 4, 4)
    report = export(model, x, precision=precision)
    y = run(report.path, x)
    assert y.dtype == np.float32
    expected = model(x).detach().numpy()
    assert np.abs(y - expected).max() < 0.03 * np.abs(expected).max()


def test_the_traced_graph_holds_one_node_a_call():
    model = nn.Sequential(SKConv2d(3, 4, 3, 1, 1), nn.ReLU())
    traced = trace(
        model, {"x": torch.randn(2, 3, 5, 5)}, by_name=False, output_names=["y"], dynamic_axes={"x": {0: "batch"}}
    )
    assert [node.op_type for node in traced.model.graph] == ["SketchedConv", "Relu"]
    assert list(traced.convolutions) == ["0"]


def test_a_graph_that_lacks_a_convolution_is_refused(export, tmp_path):
    layer = SKConv2d(3, 4, 3, 1, 1, terms="output")
    report = export(layer, {"x": torch.randn(2, 3, 5, 5)})
    file = onnx.load(report.path)
    written = ir.from_proto(copy.deepcopy(file)).graph
    check_convolutions(file, written)
    lost = next(node for node in file.graph.node if node.op_type == "Conv")
    file.graph.node.remove(lost)
    with pytest.raises(ExportError, match="has 1 convolutions, but 2 were planned"):
        check_convolutions(file, written)
