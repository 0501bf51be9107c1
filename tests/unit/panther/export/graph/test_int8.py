"""Layers in 8 bits in an exported file: integer products, the same numbers as in torch, whatever the batch."""

import copy
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

import panther as pr
from panther.export import ExportError, read_card
from panther.export.graph import products
from panther.export.inspection import card_lines
from panther.nn import SKLinear

SCHEMA = json.loads((Path(__file__).parents[5] / "docs" / "model-card.schema.json").read_text())


class Encoder(nn.Module):
    """Two layers that read one tensor, one without a bias, and a sketched one."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(400, 48)
        self.left, self.right = nn.Linear(48, 64), nn.Linear(48, 64, bias=False)
        self.sketched = SKLinear(64, 64, 1, 8)
        self.head = nn.Linear(64, 10)

    def forward(self, tokens):
        h = self.table(tokens)
        return self.head(torch.tanh(self.sketched(torch.relu(self.left(h)) + self.right(h))))


@pytest.fixture
def tokens():
    return torch.randint(0, 400, (32, 6), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def quantized(tokens):
    model = Encoder().eval()
    pr.quantize_(model, calibration=tokens)
    return model


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run(path, x):
    loaded = session(path)
    return loaded.run(None, {loaded.get_inputs()[0].name: x.numpy()})[0]


def test_the_file_computes_what_torch_simulates(quantized, tokens, export):
    report = export(quantized, tokens)
    with torch.no_grad():
        wanted = quantized(tokens).numpy()
    found = run(report.path, tokens)
    # an activation between two steps may fall either way
    assert np.abs(found - wanted).max() < 0.01 * np.abs(wanted).max()
    assert np.abs(found - wanted).mean() < 1e-4 * np.abs(wanted).max()


def test_rows_do_not_depend_on_the_batch(quantized, tokens, export):
    report = export(quantized, tokens)
    alone = np.concatenate([run(report.path, row.unsqueeze(0)) for row in tokens])
    together = run(report.path, tokens)
    assert np.abs(together - alone).max() <= 1e-6 * np.abs(together).max()


def test_one_rounding_serves_all_that_read_a_tensor(quantized, tokens, export):
    nodes = Counter(node.op_type for node in onnx.load(export(quantized, tokens).path).graph.node)
    assert nodes["MatMulIntegerToFloat"] == 3
    assert nodes["QuantizeLinear"] == 2


def test_the_running_graph_multiplies_integers_and_adds_the_bias_in_the_same_kernel(
    quantized, tokens, export, optimized
):
    nodes = Counter(node.op_type for node in optimized(export(quantized, tokens).path).node)
    assert nodes["MatMulIntegerToFloat"] == 3
    assert nodes["DequantizeLinear"] == 0
    assert nodes["Add"] == 2  # left + right, and the bias of the sketched layer


def test_weights_lie_in_the_file_in_eight_bits(quantized, tokens, export):
    report = export(quantized, tokens)
    stored = {tensor.name: tensor for tensor in onnx.load(report.path).graph.initializer}
    weight = onnx.numpy_helper.to_array(stored["head.weight_int8"])
    np.testing.assert_array_equal(weight, quantized.head.weight_int8.numpy().T)
    assert report.file_bytes < 400 * 48 + 400 * 4 + 2 * 48 * 64 + 64 * 10 + 4 * (64 * 16) + 12_000


def test_the_card_counts_bytes_by_kind(quantized, tokens, export):
    report = export(quantized, tokens)
    card = report.card
    jsonschema.Draft202012Validator(SCHEMA).validate(read_card(onnx.load(report.path)))
    assert "in few bits" in "".join(map(str, card_lines(json.loads(card.to_json()))))
    assert "… int8" in str(report)
    assert card.storage.precision == "mixed"
    assert sum(card.storage.bytes_by_type.values()) == card.storage.weight_bytes
    assert card.storage.bytes_by_type["int8"] == pytest.approx(400 * 48 + 2 * 48 * 64 + 640, abs=256)
    layers = {layer.name: layer for layer in card.quantized_layers}
    assert {name: layer.scheme for name, layer in layers.items()} == {
        "table": "int8-rows",
        "left": "int8-static",
        "right": "int8-static",
        "head": "int8-static",
    }
    assert layers["right"].weight_bytes == quantized.right.stored_bytes
    assert card.totals.model.dense == 400 * 48 + (48 * 64 + 64) + 48 * 64 + (64 * 64 + 64) + 650
    assert card.latency.dense_twin_median_us


def test_its_twin_multiplies_floats(quantized, tokens, monkeypatch, export):
    from panther.export.planning import latency

    twins = []
    real = latency.dense_twin
    monkeypatch.setattr(latency, "dense_twin", lambda *a, **k: twins.append(real(*a, **k)) or twins[-1])
    export(quantized, tokens)
    operators = Counter(node.op_type for node in twins[0].graph)
    assert operators["MatMul"] == 4
    assert operators["QuantizeLinear"] == operators["QuantizedLayer"] == 0


def test_a_layer_that_is_the_whole_model_is_exported(tokens, export):
    model = nn.Sequential(nn.Linear(32, 16))
    x = torch.randn(64, 32)
    pr.quantize_(model, calibration=x)
    with torch.no_grad():
        wanted = model[0](x).numpy()
    np.testing.assert_allclose(run(export(model[0], x).path, x), wanted, atol=0.02)


def test_a_layer_used_twice_is_stored_once(export):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(32, 32)

        def forward(self, x):
            return self.layer(torch.tanh(self.layer(x)))

    model, x = Twice().eval(), torch.randn(64, 32)
    pr.quantize_(model, calibration=x)
    path = export(model, x).path
    graph = onnx.load(path).graph
    assert sum(tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 2 for tensor in graph.initializer) == 1
    with torch.no_grad():
        np.testing.assert_allclose(run(path, x), model(x).numpy(), atol=0.05)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"precision": "float16"}, r"precision \('float16'\) must be 'float32' for a model with quantized layers"),
        ({"precision": "int8"}, r"precision \('int8'\) must be 'float32' for a model with quantized layers"),
        ({"target": "cuda"}, r"target \('cuda'\) must be 'cpu' for a model with layers in static int8 \(.*run on CUDA"),
    ],
)
def test_other_precisions_and_targets_are_refused(quantized, tokens, export, changes, match):
    with pytest.raises(ValueError, match=match):
        export(quantized, tokens, **changes)


def test_products_that_do_not_run_in_integers_are_found(quantized, tokens, monkeypatch, export, tmp_path):
    monkeypatch.setattr("panther.export.pipeline.lower_products", products.lower_dense)
    with pytest.raises(ExportError, match=r"graph has 0 products of 8-bit integers, but 3 were planned"):
        export(quantized, tokens)
    assert not (tmp_path / "models" / "m" / "1").exists()


def test_the_model_is_left_as_it_is(quantized, tokens, export):
    before = copy.deepcopy(quantized.state_dict())
    export(quantized, tokens)
    assert all(torch.equal(tensor, before[name]) for name, tensor in quantized.state_dict().items())


def test_an_input_of_one_axis_is_multiplied_too(export):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 32)

        def forward(self, x):
            return self.layer(x.mean(0))

    model, x = Pooled().eval(), torch.randn(20, 64)
    pr.quantize_(model, calibration=[x, x + 1])
    with torch.no_grad():
        np.testing.assert_allclose(run(export(model, x).path, x), model(x).numpy(), atol=0.02)
