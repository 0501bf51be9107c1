"""Bags of embeddings in a file: a lookup and a sum, without a loop over the bags."""

import re

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from panther.export.graph.bags import is_like_offsets, refuse_wrong_offsets
from panther.nn import LowRankEmbedding, LowRankEmbeddingBag


class Offsets(nn.Module):
    def __init__(self, bag):
        super().__init__()
        self.bag = bag

    def forward(self, indices, offsets):
        return self.bag(indices, offsets)


def bag(kind, **options):
    return kind(60, 16, **(options if kind is nn.EmbeddingBag else {"rank": 4, **options})).eval()


def operators(path):
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize("kind", [nn.EmbeddingBag, LowRankEmbeddingBag])
@pytest.mark.parametrize("options", [{"mode": "sum"}, {"mode": "mean", "padding_idx": 3}], ids=str)
def test_bags_of_one_size(kind, options, export, run):
    model = bag(kind, **options)
    report = export(model, torch.randint(0, 60, (3, 5)))
    x = torch.randint(0, 6, (7, 5))
    np.testing.assert_allclose(
        run(report.path, **{report.card.inputs[0].name: x})[0], model(x).detach().numpy(), atol=1e-5
    )
    found = operators(report.path)
    assert found.count("Gather") == 1
    assert "Loop" not in found
    assert found.count("MatMul") == (kind is LowRankEmbeddingBag)


@pytest.mark.parametrize("kind", [nn.EmbeddingBag, LowRankEmbeddingBag])
@pytest.mark.parametrize("options", [{"mode": "mean"}, {"mode": "sum", "include_last_offset": True}], ids=str)
def test_bags_by_offsets(kind, options, export, run):
    model = Offsets(bag(kind, **options))
    axes = {"indices": {0: "places"}, "offsets": {0: "bags"}}
    report = export(
        model, {"indices": torch.randint(0, 60, (9,)), "offsets": torch.tensor([0, 4, 9])}, dynamic_axes=axes
    )
    x, offsets = torch.randint(0, 60, (11,)), torch.tensor([0, 2, 2, 11])
    expected = model(x, offsets).detach().numpy()
    np.testing.assert_allclose(run(report.path, indices=x, offsets=offsets)[0], expected, atol=1e-5)
    assert "Loop" not in operators(report.path)


@pytest.mark.parametrize("offsets", [[1, 2], [0, 3, 2], [0, 12]], ids=str)
def test_offsets_that_torch_reads_beyond_the_indices_with_are_refused(offsets):
    model = Offsets(bag(nn.EmbeddingBag))
    refuse_wrong_offsets(model)
    assert model(torch.arange(11), torch.tensor([0, 11])).shape == (2, 16)
    with pytest.raises(ValueError, match=rf"offsets \({re.escape(str(offsets))}\) must rise from 0 to at most 11"):
        model(torch.arange(11), torch.tensor(offsets))
    model.bag.include_last_offset = True
    with pytest.raises(ValueError, match="at least two entries"):
        model(torch.arange(11), torch.tensor([0]))


@pytest.mark.parametrize(
    ("values", "like"),
    [([0, 4, 4], True), ([0, 2, 1], False), ([1, 2], False), ([0], False), ([0.0, 1.0], False), ([[0, 1]], False)],
    ids=str,
)
def test_what_may_be_offsets(values, like):
    assert is_like_offsets(torch.tensor(values)) is like


def test_the_maximum_and_a_forward_of_the_users_own_stay_torchs(export, run):
    class Doubled(nn.EmbeddingBag):
        def forward(self, x):
            return 2 * super().forward(x)

    for model in (bag(nn.EmbeddingBag, mode="max"), Doubled(60, 16, mode="sum").eval()):
        report = export(model, torch.randint(0, 60, (3, 5)))
        x = torch.randint(0, 60, (7, 5))
        np.testing.assert_allclose(
            run(report.path, **{report.card.inputs[0].name: x})[0], model(x).detach().numpy(), atol=1e-5
        )


def test_an_embedding_is_a_lookup_and_a_product_that_stay_apart(export, run, optimized):
    model = LowRankEmbedding(600, 16, 4).eval()
    report = export(model, torch.randint(0, 600, (3, 5)), dynamic_axes={"input": {0: "batch", 1: "length"}})
    assert operators(report.path) == ["Gather", "MatMul"]
    kept = {tuple(constant.dims) for constant in optimized(report.path).initializer}
    assert {(600, 4), (4, 16)} <= kept
    assert (600, 16) not in kept
    x = torch.randint(0, 600, (2, 9))
    np.testing.assert_allclose(run(report.path, input=x)[0], model(x).detach().numpy(), atol=1e-5)
