"""Models with tables, converted: held to the optimum by whitening, to the outputs, and to the original after errors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import panther as pr
from panther.convert.calibration import collect
from panther.convert.embedding_candidates import embedding_candidate, embedding_ranks, weigh_lookups
from panther.convert.embeddings import TABLES
from panther.convert.layers import find_units
from panther.convert.moments import Moments
from panther.linalg.whitening import whitened_svd
from panther.nn import LowRankEmbedding, LowRankEmbeddingBag

SIZES, D, HOT = (300, 500), 16, 3


class Recommender(nn.Module):
    """A small DLRM: bags of tables and a bottom network meet in pairwise products."""

    def __init__(self):
        super().__init__()
        modes = ("sum", "mean")
        self.bags = nn.ModuleList(nn.EmbeddingBag(v, D, mode=mode) for v, mode in zip(SIZES, modes, strict=True))
        self.bottom = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, D), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(D + 3, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, numbers, categories):
        dense = self.bottom(numbers)
        parts = torch.stack([dense, *(bag(categories[:, i]) for i, bag in enumerate(self.bags))], 1)
        pairs = (parts @ parts.mT)[:, *torch.triu_indices(3, 3, 1)]
        return self.top(torch.cat([dense, pairs], 1))


def batch(rows, generator):
    skewed = [(v ** torch.rand(rows, HOT, generator=generator)).long() - 1 for v in SIZES]
    return {"numbers": torch.randn(rows, 5, generator=generator), "categories": torch.stack(skewed, 1)}


@pytest.fixture(scope="module")
def recommender():
    """With tables of falling spectra, as trained ones have; calibration batches; and inputs not among them."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = Recommender().eval()
    with torch.no_grad():
        for bag in model.bags:
            U, S, Vh = torch.linalg.svd(bag.weight, full_matrices=False)
            bag.weight.copy_(U * (S * torch.arange(1, D + 1) ** -0.8) @ Vh)
    return model, [batch(128, generator) for _ in range(3)], batch(500, generator)


def error(model, other, inputs):
    with torch.no_grad():
        y, y_hat = model(**inputs), other(**inputs)
    return ((y - y_hat).norm() / y.norm()).item()


def test_nearly_all_of_a_recommender_is_in_play_and_calibration_halves_its_error(recommender, tmp_path):
    model, calibration, held_out = recommender
    small, blind = copy.deepcopy(model), copy.deepcopy(model)
    report = pr.sketch_(small, ratio=0.5, calibration=calibration, probes=4)
    pr.sketch_(blind, ratio=0.5)
    assert sum(group.share for group in report.unreached) < 0.01
    assert set(report.replaced) >= {"bags.0", "bags.1"}
    assert report.ratio <= 0.5
    assert all(isinstance(bag, LowRankEmbeddingBag) for bag in small.bags)
    assert report.output_error < 0.25
    assert error(model, small, held_out) < min(0.3, 0.75 * error(model, blind, held_out))
    layer = next(layer for layer in report.layers if layer.name == "bags.0")
    assert (layer.in_features, layer.out_features, layer.num_terms) == (300, D, None)
    assert (layer.before.multiply_adds_per_row, layer.after.multiply_adds_per_row) == (0, layer.rank * D)
    assert layer.after.learnable == layer.rank * (300 + D) == sum(p.numel() for p in small.bags[0].parameters())
    assert report.model_parameters_after == sum(p.numel() for p in small.parameters()) + sum(
        b.numel() for name, b in small.named_buffers() if name.endswith(("U1s", "U2s"))
    )

    pr.save(small, tmp_path / "small.safetensors")
    other = Recommender().eval()
    with pytest.raises(pr.CheckpointError, match=r"bags.0.* is sketched in the file and not in the module"):
        pr.load(other, tmp_path / "small.safetensors")
    assert set(pr.restore_(other, tmp_path / "small.safetensors")) == set(report.replaced)
    assert error(small, other, held_out) == 0

    before = [bag.A.detach().clone() for bag in small.bags]
    result = pr.distill_(small, model, calibration * 4, steps=20, lr=0.02, train="sketched", progress=False)
    assert result.error < result.error_before
    assert all(not torch.equal(bag.A, old) for bag, old in zip(small.bags, before, strict=True))
    groups = pr.param_groups(small, sketch_lr=0.1, lr=0.2)
    assert {id(bag.A) for bag in small.bags} <= {id(p) for p in groups[0]["params"]}


def test_budgets_of_bytes_and_errors(recommender):
    model, calibration, _ = recommender
    for options in ({"max_bytes": 30_000}, {"max_error": 0.2}):
        small = copy.deepcopy(model)
        report = pr.sketch_(small, **options, calibration=calibration, probes=2)
        assert any(name.startswith("bags") for name in report.replaced)
        assert report.model_bytes_after <= options.get("max_bytes", report.model_bytes_before)
        assert report.output_error <= options.get("max_error", 1)
    blind = copy.deepcopy(model)
    report = pr.sketch_(blind, max_error=0.3)
    assert all(layer.weight_error <= 0.3 for layer in report.layers)


@pytest.mark.parametrize(
    "how", [{"embeddings": False}, {"skip": "bags"}, {"filter_fn": lambda m, _: isinstance(m, nn.Linear)}]
)
def test_tables_are_left_alone_on_request(recommender, how):
    model, *_ = recommender
    report = pr.sketch_(copy.deepcopy(model), ratio=1, **how)
    (group,) = (group for group in report.unreached if group.kind == "EmbeddingBag")
    assert group.names == ("bags.0", "bags.1")
    wanted = "looked up, not multiplied; embeddings=True" if "embeddings" in how else "left out by skip or filter_fn"
    assert wanted in group.reason


class Tokens(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.table = nn.Embedding(120, 24, **options)
        self.out = nn.Linear(24, 3)

    def forward(self, ids):
        return self.out(torch.tanh(self.table(ids)))


def moments_of(model, batches, probes):
    (unit,) = find_units(model, lambda module, _: isinstance(module, nn.Embedding), (), embeddings=TABLES)
    model.requires_grad_(requires_grad=False)
    generator = torch.Generator().manual_seed(0)
    (moments,) = collect(model, [unit], batches, None, probes=probes, generator=generator)
    return unit, moments


def test_moments_and_candidates_are_those_of_a_layer_on_one_hot_rows():
    torch.manual_seed(0)
    model = Tokens().eval()
    batches = [torch.randint(0, 120, (40, 20)) for _ in range(3)]
    unit, moments = moments_of(model, batches, probes=4)
    counts = torch.bincount(torch.cat(batches).flatten(), minlength=120)
    assert torch.equal(moments.counts, counts)
    assert bool(counts.all())
    assert moments.rows == 2400
    W = model.table.weight.double()
    torch.testing.assert_close(moments.second, W.t() @ torch.diag(counts.double()) @ W)
    # nothing is damped here, so that the oracle is exact
    weighing = weigh_lookups(unit, moments)
    torch.testing.assert_close(weighing.covariance, moments.second / 2400)
    candidate = embedding_candidate(unit, moments)
    expected = whitened_svd(W.t(), torch.diag(counts.double() / 2400), weighing.outputs)
    torch.testing.assert_close(candidate.tail()[8], expected.tail()[8], rtol=2e-3, atol=0)
    (layer,) = candidate.layers(8)
    close = expected.left[:, :8] @ expected.right[:8]
    assert (layer.weight - close).norm() < 0.02 * close.norm()
    torch.testing.assert_close(candidate.lost(8), (W - layer.weight).t(), atol=1e-5, rtol=0)
    weight_error, data_error = candidate.errors(8)
    assert weight_error == pytest.approx(((W - layer.weight).norm() / W.norm()).item(), rel=1e-4)
    rows = torch.cat(batches).flatten()
    lost = (model.table(rows) - layer(rows)).norm() / model.table(rows).norm()
    assert data_error == pytest.approx(lost.item(), rel=1e-4)
    assert embedding_ranks(unit) == (4, 8, 12, 16)  # 20 · (120 + 24) is as many as 120 · 24


def test_rows_that_calibration_did_not_see_count_by_good_and_turing():
    model = Tokens().eval()
    # one lookup in ten is of a row that was seen once
    seen = torch.cat([torch.arange(9).repeat(10), torch.arange(10, 20)]).view(1, -1)
    unit, moments = moments_of(model, [seen], probes=0)
    W = model.table.weight.double()
    known = moments.second / 100
    unseen = torch.cat([W[9:10], W[20:]])
    torch.testing.assert_close(weigh_lookups(unit, moments).covariance, 0.9 * known + 0.1 * unseen.t() @ unseen / 101)
    once = Moments(moments.second, moments.total, 100, counts=(moments.counts > 0).long())
    half = weigh_lookups(unit, once).covariance
    torch.testing.assert_close(half, 0.5 * known + 0.5 * unseen.t() @ unseen / 101)


def test_padding_that_moves_nothing_counts_for_nothing():
    class Masked(Tokens):
        def forward(self, ids):
            return (super().forward(ids) * (ids != 0).unsqueeze(-1)).sum(1)

    model = Masked().eval()
    ids = torch.randint(1, 120, (6, 10))
    ids[:, 7:] = 0
    _, moments = moments_of(model, [ids], probes=2)
    assert moments.counts[0] == 0
    assert moments.rows == moments.counts.sum() == 42


def test_reading_the_weight_hooks_dtype_and_shared_tables():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Embedding(200, 16), nn.Embedding(200, 16)
            self.second.weight = self.first.weight

        def forward(self, ids):
            return (self.first(ids) + self.second(ids.flip(1))) @ self.first.weight.t()

    torch.manual_seed(0)
    model = Shared().to(torch.bfloat16).eval()
    calls = []
    model.first.register_forward_hook(lambda *_: calls.append(1))
    report = pr.sketch_(model, ratio=0.7, calibration=torch.randint(0, 200, (16, 8)), embeddings=True)
    assert report.layers[0].names == ("first", "second")
    assert isinstance(model.first, LowRankEmbedding)
    assert model.first.A is model.second.A
    assert model.first.A.dtype == torch.bfloat16
    calls.clear()
    model(torch.randint(0, 200, (2, 8)))
    assert calls == [1]
    assert len(list(model.parameters())) == 2


@pytest.mark.parametrize("first", ["table", "head"])
def test_a_table_that_is_the_head_too_stays(first):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            made = {"table": nn.Embedding(300, 32), "head": nn.Linear(32, 300)}
            made["head"].weight = made["table"].weight
            for name in (first, *(made.keys() - {first})):
                self.add_module(name, made[name])
            self.wide = nn.Linear(32, 128)
            self.narrow = nn.Linear(128, 32)

        def forward(self, ids):
            return self.head(self.narrow(torch.relu(self.wide(self.table(ids)))))

    model = Tied().eval()
    report = pr.sketch_(model, ratio=0.95, calibration=torch.randint(0, 300, (8, 6)), probes=1)
    assert set(report.replaced) <= {"wide", "narrow"}
    assert report.replaced
    assert model.head.weight is model.table.weight
    assert any("its weight is also that of" in reason for reason in report.kept.values())


def test_what_stays_dense_says_why():
    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.normed, self.small = nn.Embedding(90, 16, max_norm=1.0), nn.Embedding(3, 16)
            self.largest, self.unused = nn.EmbeddingBag(90, 16, mode="max"), nn.Embedding(90, 16)
            self.good = nn.Embedding(400, 16)

        def forward(self, ids):
            return self.normed(ids).sum(1) + self.small(ids % 3).sum(1) + self.largest(ids) + self.good(ids).sum(1)

    calibration = torch.randint(0, 90, (16, 8))
    report = pr.sketch_(Many().eval(), ratio=0.9, calibration=calibration, probes=1, embeddings=True)
    assert report.replaced == ("good",)
    for name, reason in (
        ("normed", "max_norm changes the table"), ("small", "no rank that is a multiple of 4 stores fewer"),
        ("largest", "mode='max'"), ("unused", "never called in calibration"),
    ):  # fmt: skip
        assert reason in report.kept[name]


@pytest.mark.parametrize("model", [nn.Embedding(9, 4), nn.EmbeddingBag(9, 4)], ids=lambda m: type(m).__name__)
def test_a_table_by_itself_is_converted_by_hand(model):
    with pytest.raises(ValueError, match=rf"use LowRank{type(model).__name__}\.from_embedding"):
        pr.sketch_(model, ratio=0.5)
