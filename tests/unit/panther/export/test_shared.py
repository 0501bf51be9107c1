"""Tied layers, and layers whose weight is read as a tensor."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from app.runtime.card import METADATA_KEY, parse_card
from panther.export import export_onnx
from panther.nn import SKLinear

X = torch.randn(3, 96, generator=torch.Generator().manual_seed(0))


def tie(first, *others, bias=False):
    for layer in others:
        layer.S1s, layer.S2s, layer.U1s, layer.U2s = first.S1s, first.S2s, first.U1s, first.U2s
        if bias:
            layer.bias = first.bias


class Thrice(nn.Module):
    def __init__(self, kind=SKLinear, sizes=(1, 8)):
        super().__init__()
        self.a, self.b, self.c = (kind(96, 96, *sizes) for _ in range(3))

    def forward(self, x):
        return self.c(F.gelu(self.b(F.gelu(self.a(x)))))


def shapes(path):
    return sorted(tuple(tensor.dims) for tensor in onnx.load(path).graph.initializer if len(tensor.dims) > 1)


def card_of(path):
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    return parse_card(metadata[METADATA_KEY])


@pytest.mark.parametrize("plan", ["two_products", "dense"])
@pytest.mark.parametrize("bias", [True, False])
def test_tied_layers_are_one_layer_of_the_file(plan, bias, export, run):
    model = Thrice()
    tie(model.a, model.b, model.c, bias=bias)
    report = export(model, X, plan=plan, u_storage="float")
    assert np.allclose(run(report.path, x=X)[0], model(X).detach().numpy(), atol=1e-5)
    assert shapes(report.path) == ([(16, 96), (96, 16)] if plan == "two_products" else [(96, 96)])
    (layer,) = report.card.layers
    biases = 1 if bias else 3
    assert (layer.name, layer.uses, layer.biases) == ("a", ("a", "b", "c"), None if bias else 3)
    assert layer.parameters.dense == 96 * 96 + biases * 96
    assert layer.parameters.learnable == 8 * 192 + biases * 96
    assert report.card.totals.model.learnable == sum(parameter.numel() for parameter in model.parameters())
    assert report.card.totals.sketched_layers.fixed == 8 * 192
    (site,) = report.card.planning.sites
    assert site.weight_bytes == 4 * (96 * 96 if plan == "dense" else 2 * 96 * 16)
    read = card_of(report.path)
    assert read.contradictions() == []
    assert read.layers[0].uses == ["a", "b", "c"]


def test_the_halved_file_is_smaller_than_the_dense_one(export):
    dense, sketched = Thrice(nn.Linear, sizes=()), Thrice(sizes=(1, 12))
    dense.b.weight = dense.c.weight = dense.a.weight
    tie(sketched.a, sketched.b, sketched.c)
    whole, half = export(dense, X, name="dense"), export(sketched, X, name="half")
    assert half.file_bytes < 0.6 * whole.file_bytes
    assert half.card.totals.model.dense == whole.card.totals.model.dense == 96 * 96 + 3 * 96


def test_ties_hold_for_models_of_another_type(tmp_path):
    model = Thrice().to(torch.bfloat16)
    tie(model.a, model.b)
    report = export_onnx(model, X, tmp_path, name="m", plan="two_products", num_threads=1)
    assert [layer.uses for layer in report.card.layers] == [("a", "b"), None]


def test_a_plan_for_one_of_the_tied_is_for_all(export):
    model = Thrice()
    tie(model.a, model.b)
    report = export(model, X, plan={"b": "dense", "c": "two_products"})
    assert [(site.layers, site.plan) for site in report.card.planning.sites] == [
        (["a"], "dense"),
        (["c"], "two_products"),
    ]


def test_a_bias_that_layers_share_without_their_matrices_is_stored_and_counted_once(export):
    model = Thrice()
    model.b.bias = model.c.bias = model.a.bias
    report = export(model, X)
    assert [tensor.name for tensor in onnx.load(report.path).graph.initializer if list(tensor.dims) == [96]] == [
        "a.bias"
    ]
    assert report.card.totals.model.learnable == 3 * 8 * 192 + 96
    assert card_of(report.path).contradictions() == []


def test_tied_layers_that_follow_each_other(export, run):
    class Chain(Thrice):
        def forward(self, x):
            return self.b(self.a(x)) + self.a(x)

    model = Chain()
    tie(model.a, model.b)
    report = export(model, X)
    assert np.allclose(run(report.path, x=X)[0], model(X).detach().numpy(), atol=1e-5)


class Reads(nn.Module):
    """Asks a layer for its device and type, and uses its weight backwards, as tied autoencoders do."""

    def __init__(self, *, use):
        super().__init__()
        self.encode, self.use = SKLinear(96, 96, 1, 8), use

    def forward(self, x):
        x = x.to(device=self.encode.weight.device, dtype=self.encode.weight.dtype)
        h = torch.relu(self.encode(x))
        return F.linear(h, self.encode.weight.t()) if self.use else h


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize("plan", ["two_products", "dense"])
def test_a_weight_that_is_read(plan, precision, export, run):
    model = Reads(use=True)
    report = export(model, X, plan=plan, precision=precision)
    error = np.abs(run(report.path, x=X)[0] - model(X).detach().numpy()).max()
    assert error < {"float32": 1e-5, "float16": 1e-2, "int8": 3e-2}[precision]
    (layer,) = report.card.layers
    assert layer.note == "the model reads its weight as a tensor: 9,216 dense entries are in memory besides"


def test_the_factors_of_a_weight_that_is_read_are_stored_once(export):
    report = export(Reads(use=True), X, u_storage="bits")
    assert report.file_bytes < 96 * 96 * 4
    assert report.card.storage.weight_bytes > 96 * 96 * 4


def test_a_weight_that_is_only_asked_for_its_type_costs_nothing(export):
    report = export(Reads(use=False), X, u_storage="float")
    assert shapes(report.path) == [(16, 96), (96, 16)]
    assert report.card.layers[0].note is None


def test_a_layer_that_is_read_and_never_called(export, run):
    class Read(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = SKLinear(96, 48, 1, 8)

        def forward(self, x):
            return x @ self.layer.weight.t(), self.layer.weight

    model = Read()
    report = export(model, X)
    for ours, theirs in zip(run(report.path, x=X), model(X), strict=True):
        assert np.allclose(ours, theirs.detach().numpy(), atol=1e-5)
    assert "dense entries" in report.card.layers[0].note


def test_a_dense_layer_that_is_used_twice_is_stored_once(export, run):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.last = nn.Linear(96, 96), SKLinear(96, 96, 1, 8)

        def forward(self, x):
            return self.last(torch.relu(self.layer(torch.relu(self.layer(x).unsqueeze(1)))).squeeze(1))

    model = Twice()
    report = export(model, X, u_storage="float")
    assert np.allclose(run(report.path, x=X)[0], model(X).detach().numpy(), atol=1e-5)
    assert shapes(report.path) == [(16, 96), (96, 16), (96, 96)]


def test_a_layer_over_constants_is_folded_and_no_error(export, run):
    """A table of positions that goes through a layer, as in DeBERTa: nothing of it is left to compute at a run."""

    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.layer, self.other = (
                nn.Parameter(torch.randn(5, 96)),
                *(SKLinear(96, 96, 1, 8) for _ in "ab"),
            )

        def forward(self, x):
            return self.other(x) @ self.layer(torch.tanh(self.table)).t()

    model = Positions()
    report = export(model, X)
    assert np.allclose(run(report.path, x=X)[0], model(X).detach().numpy(), atol=1e-4)
    assert [layer.name for layer in report.card.layers] == ["layer", "other"]
