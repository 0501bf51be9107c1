"""Low rank in few bits: two products in the file, and one dense product in its twin."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from panther.export import export_onnx
from panther.export.planning import latency
from panther.nn.low_rank import Int8LowRank
from panther.nn.quantized import Int8Linear
from panther.quantize.blocks import Blocks, Known
from panther.quantize.factors import quantize_factors


def factor(d_out, d_in, seed, bias=None):
    random = torch.Generator().manual_seed(seed)
    weight = torch.randint(-60, 60, (d_out, d_in), generator=random, dtype=torch.int8)
    return Int8Linear(weight, torch.rand(d_out, generator=random) * 0.01 + 0.001, 0.05, 128, bias=bias)


@pytest.fixture
def exported(tmp_path, monkeypatch):
    layer = Int8LowRank(factor(16, 64, 0), factor(48, 16, 1, torch.ones(48)))
    model = nn.Sequential(layer, nn.ReLU(), Int8LowRank(factor(8, 48, 2), factor(5, 8, 3))).eval()
    twins, real = [], latency.dense_twin
    monkeypatch.setattr(latency, "dense_twin", lambda *a, **k: twins.append(real(*a, **k)) or twins[-1])
    report = export_onnx(model, torch.randn(6, 64), tmp_path / "m.onnx", name="m", num_threads=1, batch_sizes=(1,))
    return model, report, ir.to_proto(twins[0])


def test_the_file_has_two_integer_products_a_layer(exported):
    _, report, _ = exported
    operators = [node.op_type for node in onnx.load(report.path).graph.node]
    products = ["QuantizeLinear", "MatMulIntegerToFloat"] * 2
    assert operators == [*products, "Relu", *products]


def test_the_twin_has_one_dense_product_a_layer(exported):
    model, _, twin = exported
    operators = [node.op_type for node in twin.graph.node]
    assert operators == ["MatMul", "Add", "Relu", "MatMul"]
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in twin.graph.initializer}
    products = [arrays[node.input[1]] for node in twin.graph.node if node.op_type == "MatMul"]
    for product, layer in zip(products, (model[0], model[2]), strict=True):
        np.testing.assert_allclose(product, layer.weight.numpy().T, rtol=1e-5, atol=1e-5)


def test_the_card_counts_the_dense_layers(exported):
    _, report, _ = exported
    counts = report.card.totals.model
    assert counts.dense == 64 * 48 + 48 * 5 + 48
    assert counts.learnable == 16 * (64 + 48) + 8 * (48 + 5) + 48


def test_factors_in_blocks_are_one_product_in_the_twin_too(tmp_path, monkeypatch):
    torch.manual_seed(0)
    known = Known(torch.eye(64, dtype=torch.float64), torch.eye(48, dtype=torch.float64), torch.zeros(64))
    made = quantize_factors(torch.randn(64, 16), torch.randn(16, 48), Blocks(4, 32), known, torch.ones(48))
    model = nn.Sequential(made.layer).eval()
    twins, real = [], latency.dense_twin
    monkeypatch.setattr(latency, "dense_twin", lambda *a, **k: twins.append(real(*a, **k)) or twins[-1])
    report = export_onnx(model, torch.randn(6, 64), tmp_path / "m.onnx", name="m", num_threads=1, batch_sizes=(1,))
    assert [node.op_type for node in onnx.load(report.path).graph.node] == ["MatMulNBits"] * 2
    assert [node.op_type for node in ir.to_proto(twins[0]).graph.node] == ["MatMul", "Add"]
    assert report.card.totals.model.dense == 64 * 48 + 48
    assert report.card.totals.model.learnable == 16 * (64 + 48) + 48
