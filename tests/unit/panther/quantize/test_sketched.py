"""Sketched layers in few bits: which are taken, what they become, and what the file runs."""

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import panther as pr
from panther.export import export_onnx
from panther.nn import SKLinear
from panther.nn.quantized import BlockLinear, FactoredLinear
from panther.quantize import Blocks
from panther.quantize.sketched import find_sketched


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 96), nn.Tanh(), nn.Linear(96, 10)).eval()


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(300, 20, generator=generator) @ torch.randn(20, 128, generator=generator) / 4


def error(model, other, x):
    with torch.no_grad():
        y, y_hat = model(x), other(x)
    return float((y - y_hat).norm() / y.norm())


def test_factors_and_dense_layers_get_few_bits_together(model, x, tmp_path):
    pr.sketch_(model, ratio=0.5, calibration=x, skip=["4"])
    original = copy.deepcopy(model)
    report = pr.quantize_(model, calibration=x, weights=Blocks(8, 32))
    assert [type(layer) for layer in model] == [FactoredLinear, nn.ReLU, FactoredLinear, nn.Tanh, BlockLinear]
    assert error(original, model, x) < 0.03
    assert report.bytes_after == sum(model[i].stored_bytes for i in (0, 2, 4))
    assert report.bytes_before == 4 * sum(
        sum(t.numel() for t in (layer.S1s, layer.S2s, layer.U1s, layer.U2s, layer.bias)) for layer in original[:3:2]
    ) + 4 * (96 * 10 + 10)
    assert "factors of rank" in str(report)
    found = export_onnx(model, x[:8], tmp_path / "m.onnx", name="m", num_threads=1, batch_sizes=(1,))
    assert sum(node.op_type == "MatMulNBits" for node in onnx.load(found.path).graph.node) == 5
    assert found.card.totals.model.dense == 129 * 128 + 129 * 96 + 97 * 10
    held = sum(layer.numel() for layer in (original[0].S1s, original[0].U1s, original[0].S2s, original[0].U2s))
    assert found.card.totals.model.learnable < held + 128 + 129 * 96 + 97 * 10
    session = onnxruntime.InferenceSession(str(found.path), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        wanted = model(x).numpy()
    assert np.abs(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0] - wanted).max() < 0.03


def test_max_error_leaves_factors_in_float32(model, x):
    pr.sketch_(model, ratio=0.5, calibration=x, skip=["4"])
    original = copy.deepcopy(model)
    every = pr.quantize_(copy.deepcopy(model), calibration=x, weights="int4")
    report = pr.quantize_(model, calibration=x, weights="int4", max_error=0.02 * every.output_error)
    assert error(original, model, x) <= 0.02 * every.output_error * 1.001
    assert "float32" in {layer.precision for layer in report.layers}


def test_skipped_layers_stay():
    learned = nn.ModuleDict({"a": SKLinear.from_factors(torch.randn(64, 8), torch.randn(8, 64), None, 1, 4)})
    assert [unit.reason for unit in find_sketched(learned, None, ())] == [None]
    assert find_sketched(learned, None, ["a"]) == []
    assert find_sketched(learned, lambda *_: False, ()) == []


def test_terms_in_half_precision_beside_signs_stay(x):
    model = nn.Sequential(SKLinear(128, 128, 1, 16, dtype=torch.bfloat16), nn.ReLU(), nn.Linear(128, 10)).eval()
    (unit,) = find_sketched(model, None, ())
    assert unit.reason == "its fixed matrices are signs, which take one bit an entry, beside terms in half precision"


def test_tied_factors_stay(x):
    first = SKLinear.from_factors(torch.randn(128, 8), torch.randn(8, 128), None, 1, 4)
    second = SKLinear.from_factors(torch.randn(128, 8), torch.randn(8, 128), None, 1, 4)
    second.tie_to(first)
    reasons = {unit.reason for unit in find_sketched(nn.Sequential(first, second), None, ())}
    assert reasons == {"it shares its factors with another layer"}
