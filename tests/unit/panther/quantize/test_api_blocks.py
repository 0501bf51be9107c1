"""`quantize_` with weights in blocks: what it does, what it says, and what it leaves alone."""

import copy

import pytest
import torch
from torch import nn

import panther as pr
from panther.nn.quantized import BlockEmbedding, BlockLinear, CorrectedLinear, Int8Embedding
from panther.quantize import Blocks


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(400, 48)
        self.left, self.right = nn.Linear(48, 64), nn.Linear(48, 64)
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, 10)

    def forward(self, tokens):
        h = self.table(tokens)
        return self.head(self.norm(torch.tanh(self.left(h)) + self.right(h)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Encoder().eval()


@pytest.fixture
def tokens():
    return torch.randint(0, 400, (96, 6), generator=torch.Generator().manual_seed(2))


def error(model, other, x):
    with torch.no_grad():
        y, y_hat = model(x), other(x)
    return float((y - y_hat).norm() / y.norm())


def test_four_bits_stay_close_on_held_out_inputs(model, tokens):
    original = copy.deepcopy(model)
    report = pr.quantize_(model, calibration=tokens[:64], weights="int4")
    assert all(isinstance(layer, BlockLinear) and layer.bits == 4 for layer in (model.left, model.right, model.head))
    assert isinstance(model.table, Int8Embedding)
    assert error(original, model, tokens[64:]) < 0.1
    assert report.output_error == pytest.approx(error(original, model, tokens[:64]), rel=1e-4)
    assert report.smoothing is None
    assert "smoothing" not in str(report)


@pytest.mark.parametrize("embedding_bits", [8, 4])
def test_the_report_counts_what_the_layers_hold(model, tokens, embedding_bits):
    report = pr.quantize_(
        model, calibration=tokens, weights=Blocks(4, 32, correction_rank=4), embedding_bits=embedding_bits
    )
    held = {"left": model.left, "right": model.right, "head": model.head, "table": model.table}
    assert {layer.name: layer.bytes_after for layer in report.layers} == {
        name: layer.stored_bytes for name, layer in held.items()
    }
    assert isinstance(model.head, CorrectedLinear)
    assert isinstance(model.table, BlockEmbedding if embedding_bits == 4 else Int8Embedding)
    assert "correction of rank 4" in str(report)
    assert {layer.name: layer.precision for layer in report.layers} == {
        "left": "int4",
        "right": "int4",
        "head": "int4",
        "table": f"int{embedding_bits}",
    }


def test_more_bits_smaller_blocks_and_corrections_are_closer(model, tokens):
    formats = [Blocks(4, 64), Blocks(4, 64, correction_rank=6), Blocks(4, 16, correction_rank=6), Blocks(8, 64)]
    errors = []
    for blocks in formats:
        other = copy.deepcopy(model)
        pr.quantize_(other, calibration=tokens, weights=blocks, embedding_bits=None)
        errors.append(error(model, other, tokens))
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < 0.2 * errors[0]


def test_predicted_errors_add_up_to_the_measured_one(model, tokens):
    report = pr.quantize_(model, calibration=tokens, weights="int4", embedding_bits=None, probes=32)
    predicted = sum(layer.predicted_error**2 for layer in report.quantized) ** 0.5
    assert report.output_error == pytest.approx(predicted, rel=0.4)


def test_a_row_does_not_depend_on_its_batch(model, tokens):
    pr.quantize_(model, calibration=tokens, weights="int4")
    with torch.no_grad():
        together = model(tokens)
        alone = torch.cat([model(row.unsqueeze(0)) for row in tokens])
    assert (together - alone).abs().max() <= 2e-6 * together.abs().max()


def test_max_error_gives_the_costliest_layers_more_bits_and_then_floats(model, tokens):
    every = pr.quantize_(copy.deepcopy(model), calibration=tokens, weights="int4", embedding_bits=None)
    seen = []
    for share in (0.7, 0.3, 0.005):
        other, limit = copy.deepcopy(model), share * every.output_error
        report = pr.quantize_(other, calibration=tokens, weights="int4", embedding_bits=None, max_error=limit)
        assert error(model, other, tokens) <= limit * 1.0001
        seen.append(sorted(layer.precision for layer in report.layers))
        raised = [layer for layer in report.layers if layer.precision != "int4"]
        assert all("to keep max_error" in layer.reason for layer in raised)
        assert report.bytes_after == sum(
            module.stored_bytes if hasattr(module, "stored_bytes") else sum(p.nbytes for p in module.parameters())
            for module in (other.left, other.right, other.head)
        )
    assert "int4" in seen[0]
    assert "int8" in seen[0]
    assert "float32" not in seen[0]
    assert "int8" in seen[1]
    assert "float32" in seen[2]


def test_embeddings_that_cost_too_much_get_more_bits(model, tokens):
    coarse = copy.deepcopy(model)
    alone = pr.quantize_(coarse, calibration=tokens, embedding_bits=4, filter_fn=lambda *_: False)
    report = pr.quantize_(
        model, calibration=tokens, weights="int4", embedding_bits=4, max_error=0.5 * alone.output_error
    )
    (table,) = [layer for layer in report.layers if layer.kind == "embedding"]
    assert table.precision == "int8"
    assert isinstance(model.table, Int8Embedding)


def test_tied_layers_share_their_weight():
    torch.manual_seed(0)
    first, second = nn.Linear(32, 32), nn.Linear(32, 32)
    second.weight = first.weight
    model = nn.Sequential(first, nn.Tanh(), second)
    x = torch.randn(64, 32)
    original = copy.deepcopy(model)
    report = pr.quantize_(model, calibration=x, weights="int4")
    assert model[0].weight_packed is model[2].weight_packed
    assert not torch.equal(model[0].bias, model[2].bias)
    assert error(original, model, x) < 0.2
    assert report.bytes_after == model[0].stored_bytes + 4 * 32


def test_conv1d_and_bfloat16():
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(96, 64), nn.GELU(), nn.Linear(96, 10)).to(torch.bfloat16).eval()
    x, original = torch.randn(100, 64).to(torch.bfloat16), copy.deepcopy(model)
    pr.quantize_(model, calibration=x, weights=Blocks(8))
    assert [type(layer) for layer in model] == [BlockLinear, nn.GELU, BlockLinear]
    assert model(x).dtype == torch.bfloat16
    assert error(original, model, x) < 0.03


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "int2"}, r"weights \('int2'\) must be 'int8', 'int4' or a panther.quantize.Blocks"),
        ({"weights": 4}, r"weights \(4\) must be 'int8', 'int4' or a panther.quantize.Blocks"),
        ({"embedding_bits": 3}, r"embedding_bits \(3\) must be 4, 8 or None"),
    ],
)
def test_what_is_wrong_is_named(model, tokens, changes, message):
    with pytest.raises(ValueError, match=message):
        pr.quantize_(model, calibration=tokens, **changes)
