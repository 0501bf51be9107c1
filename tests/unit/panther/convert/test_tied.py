"""Language models whose head has the table for its weight, converted to shared factors."""

from __future__ import annotations

import copy

import onnx
import pytest
import torch
from torch import nn

import panther as pr
from panther.convert.calibration import collect
from panther.convert.embedding_candidates import embedding_candidate
from panther.convert.embeddings import TABLES
from panther.convert.layers import find_units
from panther.convert.moments import HeadMoments
from panther.convert.tied import table_candidate
from panther.export import export_onnx
from panther.nn import LowRankEmbedding, LowRankHead

V, D = 1600, 24


class Language(nn.Module):
    """A table whose spectrum falls, a layer, and a head of the same weight."""

    def __init__(self, *, bias=False):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.layer = nn.Embedding(V, D), nn.Linear(D, D)
        self.head = nn.Linear(D, V, bias=bias)
        with torch.no_grad():
            U, S, Vh = torch.linalg.svd(self.table.weight, full_matrices=False)
            self.table.weight.copy_(U * (S * torch.arange(1, D + 1) ** -0.7) @ Vh)
        self.head.weight = self.table.weight

    def forward(self, ids):
        return self.head(torch.tanh(self.layer(self.table(ids))))


def tokens(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [(V ** torch.rand(32, 10, generator=generator)).long() - 1 for _ in range(count)]


def converted(model, **options):
    small = copy.deepcopy(model)
    return small, pr.sketch_(small, calibration=tokens(3), probes=2, **{"ratio": 0.6, "embeddings": True} | options)


@pytest.mark.parametrize("bias", [False, True])
def test_both_stay_tied_from_the_conversion_to_the_file(bias, tmp_path):
    model, (ids,) = Language(bias=bias).eval(), tokens(1, seed=2)
    small, report = converted(model, skip=["layer"])
    (layer,) = report.layers
    assert layer.names == ("table", "head")
    assert (type(small.table), type(small.head)) == (LowRankEmbedding, LowRankHead)
    assert small.head.A is small.table.A
    assert small.head.B is small.table.B
    stored = sum(parameter.numel() for parameter in small.parameters())
    assert report.model_parameters_after == stored
    assert layer.after.stored == layer.rank * (V + D) + V * bias <= 0.6 * layer.before.stored
    assert (layer.before.multiply_adds_per_row, layer.after.multiply_adds_per_row) == (
        V * D,
        layer.rank * D + layer.rank * (V + D),
    )
    y = model(ids)
    assert (small(ids) - y).norm() < 0.35 * y.norm()

    pr.save(small, tmp_path / "m.safetensors")
    other = Language(bias=bias).eval()
    assert pr.restore_(other, tmp_path / "m.safetensors") == ("table", "head")
    assert other.head.A is other.table.A
    assert torch.equal(other(ids), small(ids))

    card = export_onnx(small, ids, tmp_path / "m.onnx", name="m", num_threads=1, batch_sizes=(1,)).card
    (entry,) = card.embeddings
    assert (entry.uses, entry.heads, entry.mode) == (("table", "head"), ("head",), "lookup")
    assert entry.multiply_adds_per_row.dense == V * D
    assert entry.parameters.learnable == card.totals.embeddings.learnable == layer.rank * (V + D)
    assert card.totals.model.learnable == stored
    assert card.totals.model.dense == sum(parameter.numel() for parameter in model.parameters())
    sizes = [tuple(tensor.dims) for tensor in onnx.load(tmp_path / "m.onnx").graph.initializer]
    assert [size for size in sizes if V in size and len(size) > 1] == [(V, layer.rank)]


def test_distillation_trains_the_shared_factors_and_stages_keep_them_shared():
    model = Language(bias=True).eval()
    small, _ = converted(model)
    result = pr.distill_(small, model, tokens(6), steps=10, lr=0.01, progress=False)
    assert result.error < result.error_before
    assert small.head.A is small.table.A
    from panther.convert.gradual import densify_

    factors = small.table.weight.detach().clone()
    densify_(small, model)
    assert small.head.weight is small.table.weight
    torch.testing.assert_close(small.table.weight.detach(), factors)


def test_calibration_of_both_uses_beats_that_of_one_and_of_none():
    model, (ids,) = Language().eval(), tokens(1, seed=2)
    model.requires_grad_(requires_grad=False)
    (unit,) = find_units(model, None, ["layer"], embeddings=TABLES)
    (moments,) = collect(model, [unit], tokens(4), None, probes=4, generator=torch.Generator().manual_seed(0))
    assert isinstance(moments.head, HeadMoments)
    assert moments.head.rows == moments.rows == 4 * 320

    def error(candidate):
        small = copy.deepcopy(model)
        small.table, small.head = candidate.layers(8)
        return ((small(ids) - model(ids)).norm() / model(ids).norm()).item()

    of_both, of_lookups = table_candidate(unit, moments), embedding_candidate(unit, moments)
    assert error(of_both) < 0.98 * min(error(of_lookups), error(table_candidate(unit, None)))
    predicted = (of_both.tail()[8] / (4 * 32)).sqrt().item()
    assert 0.5 < error(of_both) / predicted < 2


def test_without_derivatives_each_use_counts_by_its_relative_error():
    model = Language().eval().requires_grad_(requires_grad=False)
    (unit,) = find_units(model, None, ["layer"], embeddings=TABLES)
    (moments,) = collect(model, [unit], tokens(3), None, probes=0, generator=torch.Generator())
    found = table_candidate(unit, moments)
    assert found.tail()[0].item() == pytest.approx(2)
    assert found.errors(D)[1] == pytest.approx(0, abs=1e-6)
    assert found.tail()[8].item() == pytest.approx(2 * found.errors(8)[1] ** 2, rel=0.15)


def test_head_moments_are_those_of_a_linear_layer():
    model, batches = Language().eval(), tokens(2)
    model.requires_grad_(requires_grad=False)
    (unit,) = find_units(model, None, ["layer"], embeddings=TABLES)
    (moments,) = collect(model, [unit], batches, None, probes=3, generator=torch.Generator().manual_seed(0))
    alone = copy.deepcopy(model)
    alone.head.weight = nn.Parameter(alone.table.weight.clone(), requires_grad=False)
    (linear,) = find_units(alone, lambda _, name: name == "head", ())
    (expected,) = collect(alone, [linear], batches, None, probes=3, generator=torch.Generator().manual_seed(0))
    W = model.table.weight.double()
    torch.testing.assert_close(moments.head.second, expected.second)
    torch.testing.assert_close(moments.head.sensitivity, W.t() @ expected.sensitivity @ W, rtol=1e-4, atol=1e-6)
    assert moments.head.squares == pytest.approx(expected.sensitivity.trace().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "name", "reason"),
    [
        ({"ratio": 1, "embeddings": None}, "head", "converted with that embedding, where embeddings are eligible"),
        ({"ratio": 1, "skip": ["head"]}, "table", "its weight is also that of head"),
        ({"ratio": 1, "filter_fn": lambda _, name: name != "table"}, "head", "its weight is also that of table"),
    ],
)
def test_one_without_the_other_stays_and_says_why(options, name, reason):
    small, report = converted(Language().eval(), **options)
    assert reason in report.kept[name]
    assert small.head.weight is small.table.weight


def test_a_head_that_is_never_called_keeps_both():
    class Reads(Language):
        def forward(self, ids):
            return self.layer(self.table(ids)) @ self.head.weight.t()

    model = Reads().eval()
    report = pr.sketch_(model, ratio=1, calibration=tokens(2), embeddings=True)
    assert "never called in calibration: its weight may be read as a tensor" in report.kept["head"]
    assert model.head.weight is model.table.weight
