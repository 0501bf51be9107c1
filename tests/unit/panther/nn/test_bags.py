"""Bags in plain operations against nn.EmbeddingBag."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from panther.nn.bags import bag_of_each, reduce_bags

FLAT = torch.tensor([3, 1, 4, 1, 3, 9, 2, 6, 5, 3])


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("padding_idx", [None, 3])
@pytest.mark.parametrize(
    ("x", "offsets", "last"),
    [
        (FLAT.view(2, 5), None, False),
        (torch.full((2, 4), 3), None, False),
        (FLAT, torch.tensor([0, 3, 3, 8]), False),
        (FLAT, torch.tensor([0, 3, 3, 8, 10]), True),
    ],
    ids=["rows", "padding alone", "offsets with an empty bag", "last offset"],
)
def test_the_same_as_torch(mode, padding_idx, x, offsets, last):
    torch.manual_seed(0)
    bag = nn.EmbeddingBag(10, 4, mode=mode, padding_idx=padding_idx, include_last_offset=last)
    rows = nn.functional.embedding(x, bag.weight)
    ours = reduce_bags(rows, x, offsets, mode=mode, include_last_offset=last, padding_idx=padding_idx)
    torch.testing.assert_close(ours, bag(x, offsets))
    if mode == "sum":
        weights = torch.rand(x.shape)
        ours = reduce_bags(rows, x, offsets, weights, mode=mode, include_last_offset=last, padding_idx=padding_idx)
        torch.testing.assert_close(ours, bag(x, offsets, weights))


def test_the_bag_of_each_index():
    assert bag_of_each(FLAT, torch.tensor([0, 3, 3, 8])).tolist() == [0, 0, 0, 2, 2, 2, 2, 2, 3, 3]
