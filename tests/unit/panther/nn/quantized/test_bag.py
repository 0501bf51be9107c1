"""Bags over a table in 8 bits, against nn.EmbeddingBag over the rounded table."""

import pytest
import torch
from torch import nn

from panther.nn.quantized import Int8Embedding
from panther.nn.quantized.bag import QuantizedBag


@pytest.mark.parametrize("options", [{"mode": "sum"}, {"mode": "mean", "padding_idx": 2}], ids=str)
def test_the_same_as_torch_over_the_rounded_table(options):
    torch.manual_seed(0)
    bag = nn.EmbeddingBag(30, 8, **options).eval()
    rows = nn.Embedding.from_pretrained(bag.weight.detach())
    ours = QuantizedBag.like(bag, Int8Embedding.from_embedding(rows))
    with torch.no_grad():
        bag.weight.copy_(ours.table(torch.arange(30)))
        x = torch.randint(0, 30, (4, 6))
        torch.testing.assert_close(ours(x), bag(x))
        torch.testing.assert_close(
            ours(x.flatten(), torch.tensor([0, 5, 5])), bag(x.flatten(), torch.tensor([0, 5, 5]))
        )
    assert not ours.training
    assert f"mode='{options['mode']}'" in repr(ours)


def test_the_maximum_is_refused():
    table = Int8Embedding.from_embedding(nn.Embedding(30, 8))
    with pytest.raises(ValueError, match=r"mode \('max'\) must be 'sum' or 'mean'"):
        QuantizedBag(table, "max")
