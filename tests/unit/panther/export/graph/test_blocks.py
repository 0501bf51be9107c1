"""Layers in blocks of few bits in an exported file: MatMulNBits, the same numbers as in torch, whatever the batch."""

import json
from collections import Counter
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from panther.export import ExportError, read_card
from panther.export.graph import products
from panther.export.inspection import card_lines
from panther.nn import SKLinear
from panther.quantize import Blocks, Known, quantize_weight

SCHEMA = json.loads((Path(__file__).parents[5] / "docs" / "model-card.schema.json").read_text())


def in_blocks(linear, blocks):
    d_out, d_in = linear.weight.shape
    known = Known(torch.eye(d_in).double(), torch.eye(d_out).double())
    return quantize_weight(linear.weight.detach(), blocks, known, linear.bias).layer


class Network(nn.Module):
    """Layers of odd sizes, one corrected, one without a bias, and a sketched one of the same shape as one in blocks."""

    def __init__(self, activation_bits):
        super().__init__()
        torch.manual_seed(0)
        self.first = in_blocks(nn.Linear(45, 64), Blocks(4, 32, 0, activation_bits))
        self.second = in_blocks(nn.Linear(64, 64, bias=False), Blocks(8, 64, 0, activation_bits))
        self.sketched = SKLinear(64, 64, 1, 8)
        self.third = in_blocks(nn.Linear(64, 33), Blocks(4, 64, 6, activation_bits))
        self.last = in_blocks(nn.Linear(33, 1), Blocks(4, 16, 0, activation_bits))

    def forward(self, x):
        h = torch.tanh(self.second(torch.relu(self.first(x))))
        return self.last(torch.tanh(self.third(self.sketched(h))))


@pytest.fixture
def x():
    return torch.randn(12, 5, 45, generator=torch.Generator().manual_seed(1))


def run(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


@pytest.mark.parametrize(("activation_bits", "tolerance"), [(None, 1e-5), (8, 1e-2)])
def test_the_file_computes_what_torch_simulates(x, export, activation_bits, tolerance):
    model = Network(activation_bits).eval()
    path = export(model, x).path
    onnx.checker.check_model(onnx.load(path))
    with torch.no_grad():
        wanted = model(x).numpy()
    found = run(path, x)
    assert np.abs(found - wanted).max() < tolerance * np.abs(wanted).max()
    assert np.abs(found - wanted).mean() < 0.1 * tolerance * np.abs(wanted).max()


@pytest.mark.parametrize("activation_bits", [None, 8])
def test_rows_do_not_depend_on_the_batch(x, export, activation_bits):
    path = export(Network(activation_bits).eval(), x).path
    alone = np.concatenate([run(path, row.unsqueeze(0)) for row in x])
    together = run(path, torch.cat([x, 100 * x]))[: len(x)]
    assert np.abs(together - alone).max() <= 2e-6 * np.abs(together).max()


def test_the_running_graph_has_the_planned_products_and_their_biases_in_the_kernel(x, export, optimized):
    graph = optimized(export(Network(8).eval(), x).path)
    found = Counter()
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            values = {attribute.name: attribute.i for attribute in node.attribute}
            found[values["K"], values["N"], values["bits"], values["block_size"], values["accuracy_level"]] += 1
    assert found == {
        (45, 64, 4, 16, 4): 1,
        (64, 64, 8, 64, 4): 1,
        (64, 33, 4, 64, 4): 1,
        (64, 6, 8, 64, 1): 1,
        (6, 33, 8, 16, 1): 1,
        (33, 1, 4, 16, 4): 1,
    }
    # of the sketched layer's bias, and of the correction
    assert sum(node.op_type == "Add" for node in graph.node) == 2


def test_the_card_tells_bits_and_bytes(x, export):
    model = Network(8).eval()
    report = export(model, x)
    jsonschema.Draft202012Validator(SCHEMA).validate(read_card(onnx.load(report.path)))
    entries = {entry.name: entry for entry in report.card.quantized_layers}
    assert {name: (entry.scheme, entry.block_size) for name, entry in entries.items()} == {
        "first": ("int4-blocks", 16),
        "second": ("int8-blocks", 64),
        "third.base": ("int4-blocks", 64),
        "third.correction.down": ("int8-blocks", 64),
        "third.correction.up": ("int8-blocks", 16),
        "last": ("int4-blocks", 16),
    }
    assert entries["second"].weight_bytes == model.second.stored_bytes
    by_type = report.card.storage.bytes_by_type
    of_four_bits = [model.first, model.third.base, model.last]
    assert by_type["int4"] == sum(layer.weight_packed.nbytes + layer.weight_zero_point.nbytes for layer in of_four_bits)
    of_eight = [model.second, model.third.correction.down, model.third.correction.up]
    assert by_type["uint8"] == sum(layer.weight_packed.nbytes + layer.weight_zero_point.nbytes for layer in of_eight)
    assert sum(by_type.values()) == report.card.storage.weight_bytes
    assert report.card.totals.model.dense == 46 * 64 + 64 * 64 + 65 * 64 + 65 * 33 + 34
    assert report.card.totals.model.learnable == report.card.totals.model.dense - 64 * 64 + 128 * 8 + 6 * (64 + 33)
    assert "third.base (int4-blocks)" in "".join(map(str, card_lines(json.loads(report.card.to_json()))))


def test_a_weight_used_twice_is_stored_once(export):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.left = in_blocks(nn.Linear(64, 64), Blocks(4, 32))
            self.right = self.left.with_bias(torch.ones(64))

        def forward(self, x):
            return self.left(torch.tanh(self.right(torch.tanh(self.left(x)))))

    model, x = Tied().eval(), torch.randn(8, 64)
    path = export(model, x).path
    stored = [tensor for tensor in onnx.load(path).graph.initializer if len(tensor.dims) == 3]
    assert len(stored) == 1
    with torch.no_grad():
        np.testing.assert_allclose(run(path, x), model(x).numpy(), atol=0.02)


def test_an_input_of_one_axis_and_a_layer_that_is_the_whole_model(export):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = in_blocks(nn.Linear(64, 32), Blocks(4, 32, 0, None))

        def forward(self, x):
            return self.layer(x.mean(0))

    x = torch.randn(20, 64)
    for model in (Pooled().eval(), Pooled().eval().layer):
        with torch.no_grad():
            np.testing.assert_allclose(run(export(model, x).path, x), model(x).numpy(), rtol=1e-4, atol=1e-5)


def test_products_that_are_not_there_are_found(x, monkeypatch, export, tmp_path):
    monkeypatch.setattr("panther.export.pipeline.lower_products", products.lower_dense)
    with pytest.raises(ExportError, match=r"has 0 products 45x64 of 4 bits in blocks, but 1 were planned"):
        export(Network(8).eval(), x)
    assert not (tmp_path / "models" / "m" / "1").exists()


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_other_precisions_are_refused(x, export, precision):
    with pytest.raises(ValueError, match=rf"precision \('{precision}'\) must be 'float32' for a model with quantized"):
        export(Network(8).eval(), x, precision=precision)


def test_cuda_is_a_target(x, export):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("tests/gpu has the export itself")
    with pytest.raises(ExportError, match="this onnxruntime has no CUDA"):
        export(Network(8).eval(), x, target="cuda")
