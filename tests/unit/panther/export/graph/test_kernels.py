"""Weights of convolutions in the forms that files hold, by what a runtime makes of the nodes."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from panther.export.graph.constants import Builder
from panther.export.graph.kernels import Stored, composed
from panther.nn import SKConv1d, SKConv2d
from panther.nn.quantized import Int8Kernel, StoredConv
from panther.quantize.kernels import four_bits


def value_of(kernel):
    """The weight as onnxruntime computes it from the file's constants, and the bytes of these."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 20}, name="weight")
    builder = Builder(graph, fold=True)
    output = kernel.emit(builder, "W")
    builder.finish()
    output.type = ir.TensorType(ir.DataType.FLOAT)
    graph.outputs.append(output)
    proto = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    stored = sum(value.const_value.nbytes for value in graph.initializers.values())
    return onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"]).run(["W"], {})[0], stored


@pytest.mark.filterwarnings("ignore:.*the sketched layer is the larger one:UserWarning")
@pytest.mark.parametrize("terms", ["both", "output", "input"])
@pytest.mark.parametrize(
    "make",
    [
        lambda terms: SKConv2d(12, 24, 3, 1, 2, terms=terms),
        lambda terms: SKConv2d(12, 24, (2, 3), 2, 1, terms=terms),
        lambda terms: SKConv1d(24, 12, 5, 1, 2, terms=terms),
        lambda terms: SKConv2d(32, 24, 1, 1, 2, terms=terms),
    ],
)
def test_factors_make_up_the_dense_weight_in_fewer_bytes(make, terms):
    layer = make(terms)
    W, stored = value_of(composed(layer))
    wanted = layer.dense_weight().detach().numpy()
    assert W.shape == wanted.shape
    np.testing.assert_allclose(W, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())
    # shapes are besides
    assert stored < wanted.nbytes + 100


@pytest.mark.filterwarnings("ignore:.*the sketched layer is the larger one:UserWarning")
def test_factors_that_take_more_and_those_of_groups_stay_one_weight():
    assert composed(SKConv2d(4, 4, 3, 1, 8)) is None
    assert composed(SKConv2d(16, 32, 3, 1, 1, groups=2)) is None


def test_integers_are_unpacked():
    kernel = Int8Kernel.nearest(torch.randn(8, 3, 3, 2))
    W, stored = value_of(Stored(kernel, np.dtype(np.float32)))
    np.testing.assert_array_equal(W, kernel.weight.numpy())
    assert stored == kernel.stored_bytes + 4 * 8


def test_nibbles_are_unpacked_by_blocks():
    kernel = four_bits(torch.randn(8, 3, 3, 2))
    W, stored = value_of(Stored(kernel, np.dtype(np.float32)))
    np.testing.assert_array_equal(W, kernel.weight.numpy())
    assert kernel.block_size == 18
    # with the numbers and shapes by which it is unpacked
    assert stored < kernel.stored_bytes + 100


def test_a_convolution_in_4_bits_is_named_in_the_card(export):
    conv = nn.Conv2d(16, 16, 3, padding=1)
    model, x = nn.Sequential(StoredConv(conv, four_bits(conv.weight), bias=conv.bias)).eval(), torch.randn(2, 16, 6, 6)
    report = export(model, x)
    (entry,) = report.card.quantized_layers
    assert (entry.scheme, entry.block_size, entry.weight_bytes) == ("int4-stored", 48, 16 * 72 + 4 * 16 * 3)
    assert report.card.totals.model.dense == report.card.totals.model.learnable == 16 * 144 + 16
    assert report.card.check.max_relative_error < 1e-5
    assert report.path.stat().st_size < 16 * 144 + 4 * 16 * 3 + 4000


def test_a_convolution_in_8_bits_that_is_called_twice_is_stored_once(export):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            conv = nn.Conv2d(8, 8, 3, padding=1)
            self.conv = StoredConv(conv, Int8Kernel.nearest(conv.weight), bias=conv.bias)

        def forward(self, x):
            return self.conv(torch.relu(self.conv(x)))

    model, x = Twice().eval(), torch.randn(2, 8, 6, 6)
    report = export(model, x)
    assert report.card.storage.precision == "mixed"
    (entry,) = report.card.quantized_layers
    assert (entry.kind, entry.scheme, entry.weight_bytes) == ("convolution", "int8-stored", 8 * 8 * 9 + 4 * 8)
    assert report.card.totals.model.dense == report.card.totals.model.learnable == 8 * 8 * 9 + 8
    file = ir.load(report.path)
    levels = [value for value in file.graph.initializers.values() if value.const_value.dtype == ir.DataType.INT8]
    assert len(levels) == 1
