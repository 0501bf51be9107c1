"""Heads on the factors of an embedding, held to a dense linear layer with the table for its weight."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import panther as pr
from panther.nn import LowRankEmbedding, LowRankHead

V, D, R = 40, 12, 4
X = torch.randn(5, 3, D, generator=torch.Generator().manual_seed(2))


def make(**options) -> LowRankHead:
    layer = LowRankHead(D, V, R, generator=torch.Generator().manual_seed(0), **options)
    if layer.bias is not None:
        nn.init.normal_(layer.bias, generator=torch.Generator().manual_seed(1))
    return layer


class Tied(nn.Module):
    def __init__(self, *, bias=False):
        super().__init__()
        self.table, self.head = LowRankEmbedding(V, D, R, generator=torch.Generator().manual_seed(0)), make(bias=bias)
        self.head.tie_to(self.table)

    def forward(self, ids):
        return self.head(torch.tanh(self.table(ids)))


@pytest.mark.parametrize("bias", [False, True])
def test_head_and_its_gradients_are_those_of_a_dense_layer(bias):
    layer = make(bias=bias).double()
    W = (layer.A @ layer.B).detach().requires_grad_()
    x = X.double().requires_grad_()
    y, expected = layer(x), nn.functional.linear(x, W, layer.bias)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(layer.weight, W)
    (ours,) = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
    (dense,) = torch.autograd.grad(expected.square().sum(), x, retain_graph=True)
    torch.testing.assert_close(ours, dense)
    of_weight, *of_factors = (
        torch.autograd.grad(expected.square().sum(), W),
        *torch.autograd.grad(y.square().sum(), (layer.A, layer.B)),
    )
    torch.testing.assert_close(of_factors[0], of_weight[0] @ layer.B.t())
    torch.testing.assert_close(of_factors[1], layer.A.t() @ of_weight[0])


def test_tied_to_an_embedding_both_learn_as_one_and_count_once(tmp_path):
    model = Tied(bias=True)
    assert {name for name, _ in model.named_parameters()} == {"table.A", "table.B", "head.bias"}
    count = model.head.parameter_count()
    assert (count.dense, count.learnable, count.fixed) == (V * D + V, R * (V + D) + V, 0)
    assert model.head.multiply_adds_per_row() == (R * (V + D), V * D)
    total = pr.analyze(model, batch_size=None).total
    assert total.parameters.learnable == sum(p.numel() for p in model.parameters())
    assert total.parameters.dense == V * D + V
    assert total.multiply_adds_per_row == R * D + R * (V + D)
    groups = pr.param_groups(model, sketch_lr=0.1, lr=0.2)
    assert [len(group["params"]) for group in groups] == [2, 1]

    size = pr.save(model, tmp_path / "m.safetensors")
    assert size < 4 * (R * (V + D) + V) + 1200
    other = Tied(bias=True)
    with torch.no_grad():
        other.table.A.zero_()
    pr.load(other, tmp_path / "m.safetensors")
    ids = torch.arange(V)
    assert torch.equal(other(ids), model(ids))
    assert other.head.A is other.table.A
    assert copy.deepcopy(model).head.A is not model.table.A
    assert "rank=4, bias=True" in repr(model.head)


def test_compile_export_and_autocast():
    model, ids = Tied().eval(), torch.arange(6).view(2, 3)
    expected = model(ids)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(ids), expected)
    exported = torch.export.export(model, (ids,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.testing.assert_close(exported.module()(torch.cat([ids, ids])), torch.cat([expected, expected]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(ids)
    assert y.dtype == torch.bfloat16
    assert (y.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_like_takes_sizes_type_and_mode():
    dense = nn.Linear(D, V, dtype=torch.bfloat16).requires_grad_(requires_grad=False).eval()
    layer = LowRankHead.like(dense, R)
    assert (layer.in_features, layer.out_features, layer.rank, layer.A.dtype) == (D, V, R, torch.bfloat16)
    assert not layer.training
    assert not layer.A.requires_grad
    assert LowRankHead.like(nn.Linear(D, V, bias=False), R, device="meta").bias is None


@pytest.mark.parametrize(
    ("sizes", "error", "match"),
    [
        ((D, 0, R), ValueError, r"num_embeddings \(0\) must be at least 1"),
        ((D, V, 13), ValueError, r"rank \(13\) must be at most embedding_dim \(12\)"),
        ((D, V, "4"), TypeError, r"rank \('4'\) must be an integer"),
    ],
)
def test_wrong_sizes(sizes, error, match):
    with pytest.raises(error, match=match):
        LowRankHead(*sizes)
