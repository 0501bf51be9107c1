"""Learned terms in 8 or 4 bits beside signs of one bit: in torch, in the file, and in the running graph."""

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
from panther.quantize import Blocks


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        SKLinear(128, 96, 2, 12), nn.ReLU(), SKLinear(96, 64, 3, 5), nn.ReLU(), nn.Linear(64, 10)
    ).eval()


@pytest.fixture
def x():
    return torch.rand(300, 128, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def sizes(tmp_path):
    def sizes(model, x, **options):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.onnx"
        export_onnx(model, x[:8], path, name="m", num_threads=1, batch_sizes=(1,), **options)
        stored = sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in onnx.load(path).graph.initializer)
        return path, stored

    return sizes


def run(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


@pytest.mark.parametrize("bits", [8, 4])
def test_the_file_holds_integers_and_bits_and_computes_what_torch_does(model, x, sizes, bits):
    original = copy.deepcopy(model)
    report = pr.quantize_(model, calibration=x, weights=Blocks(bits, 128))
    assert [type(layer) for layer in model] == [SKLinear, nn.ReLU, SKLinear, nn.ReLU, type(model[4])]
    for layer in (0, 2):
        assert torch.equal(model[layer].U1s, original[layer].U1s)
        assert not torch.equal(model[layer].S1s, original[layer].S1s)
    path, stored = sizes(model, x)
    of_report = sum(layer.bytes_after for layer in report.layers)
    assert of_report <= stored < of_report + 300  # masks, shapes and magnitudes of the unpacking
    with torch.no_grad():
        wanted, before = model(x).numpy(), original(x).numpy()
    assert np.abs(run(path, x) - wanted).max() < 0.01 * np.abs(wanted).max()
    assert np.linalg.norm(wanted - before) < 0.05 * np.linalg.norm(before)
    reasons = {layer.name: layer.reason for layer in report.layers}
    assert reasons["0"] == f"learned terms in {bits} bits beside signs of one bit, in the file"
    assert {layer.name: layer.precision for layer in report.layers}["2"] == f"int{bits}"


@pytest.mark.parametrize(("bits", "most"), [(8, 0.005), (4, 0.08)])
def test_terms_cost_little(model, x, bits, most):
    original = copy.deepcopy(model)
    report = pr.quantize_(model, calibration=x, weights=Blocks(bits, 128), skip=["4"])
    with torch.no_grad():
        lost = float((model(x) - original(x)).norm() / original(x).norm())
    predicted = sum(layer.predicted_error**2 for layer in report.layers) ** 0.5
    assert lost < most
    assert lost == pytest.approx(predicted, rel=0.5)


def test_the_running_graph_has_plain_products(model, x, sizes, tmp_path):
    pr.quantize_(model, calibration=x, weights="int4", skip=["4"])
    path, _ = sizes(model, x, plan="two_products")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    operators = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert not operators & {"Cast", "Mul", "BitwiseAnd", "Where", "Concat"}


def test_half_precision_and_dense_plans_read_the_same_bytes(model, x, sizes):
    pr.quantize_(model, calibration=x, weights="int4", skip=["4"])
    with torch.no_grad():
        wanted = model(x).numpy()
    for options in ({"precision": "float16"}, {"plan": "dense"}, {"u_storage": "float"}):
        path, _ = sizes(model, x, **options)
        assert np.abs(run(path, x) - wanted).max() < 0.02 * np.abs(wanted).max()
