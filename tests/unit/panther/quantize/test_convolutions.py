"""Networks of convolutions in few bits, by what they compute and what the report says."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import panther as pr
from panther.convert.plan import model_size
from panther.export import export_onnx
from panther.nn.quantized import Int8Linear, StoredConv


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    )
    return layers.eval(), torch.randn(40, 3, 10, 10) + torch.randn(40, 3, 1, 1)


@pytest.mark.parametrize(("weights", "most"), [("int8", 0.02), ("int4", 0.15)])
def test_convolutions_are_stored_in_the_bits_of_the_weights(network, weights, most, tmp_path):
    model, x = network
    small = copy.deepcopy(model)
    report = pr.quantize_(small, calibration=x.split(20), weights=weights, probes=2)
    assert [layer.name for layer in report.layers] == ["0", "2", "4", "7"]
    assert [layer.kind for layer in report.layers] == ["convolution", "convolution", "convolution", "linear"]
    assert {layer.precision for layer in report.layers} == {weights}
    assert all(type(small[index]) is StoredConv for index in (0, 2, 4))
    y, y_hat = model(x), small(x)
    error = ((y - y_hat).norm() / y.norm()).item()
    assert error == pytest.approx(report.output_error, rel=0.05)
    assert error < most
    stored = {index: small[index].stored_bytes for index in (0, 2, 4)}
    after = {layer.name: layer.bytes_after for layer in report.layers}
    assert all(after[str(index)] == size for index, size in stored.items())
    assert model_size(small)[1] < (0.45 if weights == "int8" else 0.35) * model_size(model)[1]
    exported = export_onnx(small, x[:3], tmp_path / "m.onnx", name="m", num_threads=1, batch_sizes=(1,))
    assert {entry.name for entry in exported.card.quantized_layers} >= {"0", "2", "4"}


def test_an_error_sends_convolutions_to_more_bits_and_to_float32(network):
    model, x = network
    precisions = []
    for most in (0.5, 0.02, 1e-5):
        small = copy.deepcopy(model)
        report = pr.quantize_(small, calibration=x.split(20), weights="int4", max_error=most, probes=2)
        assert report.output_error <= most
        precisions.append({layer.precision for layer in report.layers})
    assert precisions[0] == {"int4"}
    assert "int8" in precisions[1]
    assert precisions[2] == {"float32"}


def test_convolutions_are_left_out_by_name_and_reasons_are_told(network):
    model, x = network
    small = copy.deepcopy(model)
    small.add_module("unused", nn.Conv2d(3, 4, 3))
    report = pr.quantize_(small, calibration=x.split(20), skip=["0", "2"], forward=lambda m, b: m[:8](b), probes=1)
    assert type(small[0]) is nn.Conv2d
    assert type(small[7]) is Int8Linear
    reasons = {layer.name: layer.reason for layer in report.layers}
    assert "0" not in reasons
    assert "never called in calibration" in reasons["unused"]
