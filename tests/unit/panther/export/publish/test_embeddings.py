"""What the card of a file says of embeddings of low rank."""

import json
from pathlib import Path

import jsonschema
import torch
from torch import nn

from panther.export.publish.embeddings import embedding_count, embedding_entries
from panther.nn import LowRankEmbedding, LowRankEmbeddingBag, SKLinear

SCHEMA = json.loads((Path(__file__).parents[5] / "docs" / "model-card.schema.json").read_text(encoding="utf-8"))


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.same = LowRankEmbedding(50, 16, 4), LowRankEmbedding(50, 16, 4)
        self.same.tie_to(self.one)
        self.bag = LowRankEmbeddingBag(60, 16, 3, mode="sum")
        self.out, self.norm = SKLinear(32, 32, 1, 4), nn.LayerNorm(32)

    def forward(self, x):
        return self.norm(self.out(torch.cat([self.one(x).sum(1) + self.same(x).amax(1), self.bag(x)], 1)))


def test_each_table_once_and_in_the_totals(export):
    model = Both().eval()
    report = export(model, torch.randint(0, 50, (2, 3)))
    card = json.loads(report.card.to_json())
    jsonschema.validate(card, SCHEMA)
    one, bag = card["embeddings"]
    assert (one["name"], one["uses"], one["rank"], one["mode"]) == ("one", ["one", "same"], 4, "lookup")
    assert (bag["name"], bag["mode"], bag["multiply_adds_per_row"]) == ("bag", "sum", {"dense": 0, "planned": 48})
    assert one["parameters"] == {"dense": 800, "learnable": 264, "fixed": 0}
    totals, parameters = card["totals"], sum(parameter.numel() for parameter in model.parameters())
    assert totals["embeddings"] == {"dense": 800 + 960, "learnable": 264 + 228, "fixed": 0}
    assert totals["model"]["learnable"] == parameters
    assert totals["model"]["dense"] == 800 + 960 + 32 * 32 + 32 + 64
    # each factor lies in the file once
    weights = 4 * (264 + 228 + 2 * 4 * 64 + 32 + 64)
    assert weights - 4 * 512 < card["storage"]["weight_bytes"] < weights + 256


def test_a_model_without_them_has_none():
    model = nn.Linear(4, 4)
    assert embedding_entries(model) == ()
    assert embedding_count(model) is None
