"""What embeddings and bags of embeddings become under a budget."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import panther as pr
from panther.compression.tables import find_lookups
from panther.convert.plan import model_size
from panther.nn import LowRankEmbeddingBag
from panther.nn.quantized.bag import QuantizedBag


class Bags(nn.Module):
    """Two tables of low rank but for some noise, one that is too small, and one of the maximum."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.wide, self.other = nn.EmbeddingBag(900, 32, mode="sum"), nn.EmbeddingBag(700, 32, padding_idx=0)
        self.small, self.largest = nn.EmbeddingBag(3, 32), nn.EmbeddingBag(900, 32, mode="max")
        self.top = nn.Linear(32, 4)
        with torch.no_grad():
            for bag, rank in ((self.wide, 4), (self.other, 8)):
                narrow = torch.randn(len(bag.weight), rank, generator=generator)
                noise = torch.randn(bag.weight.shape, generator=generator)
                bag.weight.copy_(narrow @ torch.randn(rank, 32, generator=generator) + 0.03 * noise)

    def forward(self, places):
        found = self.wide(places) + self.other(places) + self.small(places % 3) + self.largest(places)
        return self.top(torch.tanh(found))


@pytest.fixture(scope="module")
def bags():
    torch.manual_seed(0)
    return Bags().eval(), torch.randint(0, 700, (64, 5))


def compress(model, places, **options):
    options = {"max_error": 0.1, "probes": 2} | options
    return pr.compress(model, calibration=places.split(32), **options)


@pytest.mark.parametrize(
    ("kind", "expected", "error"),
    [("low_rank", LowRankEmbeddingBag, 0.1), ("int8", QuantizedBag, 0.1), ("int4", QuantizedBag, 0.5)],
)
def test_bags_take_each_kind(bags, kind, expected, error, tmp_path):
    model, places = bags
    compressed = compress(model, places, kinds=[kind], max_error=error)
    layers = {layer.name: layer for layer in compressed.report.layers}
    assert type(compressed.model.wide) is expected
    assert layers["wide"].kind == kind
    assert layers["largest"].kind == layers["small"].kind == "float"
    assert "mode='max'" in layers["largest"].reason
    assert compressed.report.bytes_after == model_size(compressed.model)[1]
    assert compressed.report.output_error <= error
    report = pr.export.export_onnx(
        compressed.model, places[:3], tmp_path / "m.onnx", name="m", num_threads=1, batch_sizes=(1,)
    )
    assert report.card.check.max_relative_error < 1e-4
    entries = report.card.embeddings if kind == "low_rank" else report.card.quantized_layers
    assert "wide" in {entry.name.removesuffix(".table") for entry in entries}


def test_all_kinds_together_do_no_worse_than_one(bags):
    model, places = bags
    size = model_size(model)[1]
    both = compress(model, places, max_error=None, max_bytes=int(0.55 * size))
    one = compress(model, places, max_error=None, max_bytes=int(0.55 * size), kinds=["low_rank"])
    assert both.report.output_error <= one.report.output_error + 1e-6


def test_what_bags_in_few_bits_compute(bags):
    model, places = bags
    other = compress(model, places, kinds=["int8"]).model.other
    assert isinstance(other, QuantizedBag)
    twin = copy.deepcopy(model.other)
    with torch.no_grad():
        twin.weight.copy_(other.table(torch.arange(700)))
        np.testing.assert_allclose(other(places), twin(places), atol=1e-5)
        flat, offsets = places.flatten(), torch.tensor([0, 7, 7, 30])
        np.testing.assert_allclose(other(flat, offsets), twin(flat, offsets), atol=1e-5)


def test_lookups_with_their_reasons(bags):
    reasons = {unit.name: unit.reason for unit in find_lookups(bags[0])}
    assert reasons["wide"] is reasons["other"] is None
    assert "no rank that is a multiple of 4" in reasons["small"]
    assert "mode='max'" in reasons["largest"]
