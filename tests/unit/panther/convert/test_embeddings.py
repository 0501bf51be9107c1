"""Which embeddings can be converted, and what a call of one looks up."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from panther.convert.embeddings import Lookups, is_embedding, lookups_of, reason_of_embedding

FLAT = torch.tensor([3, 1, 4, 1, 3, 9])


def changed():
    module = nn.Embedding(9, 4)
    module.forward = lambda x: x
    return module


class Doubled(nn.EmbeddingBag):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Embedding(9, 4, padding_idx=2, sparse=True, scale_grad_by_freq=True), None),
        (nn.EmbeddingBag(9, 4, mode="sum", include_last_offset=True), None),
        (nn.Embedding(9, 4, max_norm=1.0), "its max_norm changes the table during the lookup"),
        (nn.EmbeddingBag(9, 4, mode="max"), "mode='max': the largest entries of rows are not those of their factors"),
        (changed(), "Embedding does more than nn.Embedding in its forward"),
        (Doubled(9, 4), "Doubled does more than nn.EmbeddingBag in its forward"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_reasons(module, reason):
    assert is_embedding(module)
    assert reason_of_embedding(module) == reason
    assert not is_embedding(nn.Linear(4, 4))


def found(module, *args, **kwargs):
    lookups = lookups_of(module, args, kwargs)
    return lookups.indices.tolist(), None if lookups.rows is None else lookups.rows.tolist()


def test_lookups_of_each_way_to_call():
    assert found(nn.Embedding(9, 4), FLAT.view(2, 3)) == (FLAT.tolist(), None)
    assert found(nn.EmbeddingBag(10, 4), FLAT.view(2, 3)) == (FLAT.tolist(), [0, 0, 0, 1, 1, 1])
    assert found(nn.EmbeddingBag(10, 4), FLAT, torch.tensor([0, 2, 2])) == (FLAT.tolist(), [0, 0, 2, 2, 2, 2])
    bag = nn.EmbeddingBag(10, 4, include_last_offset=True, padding_idx=3)
    assert found(bag, input=FLAT, offsets=torch.tensor([0, 2, 6])) == ([1, 4, 1, 9], [0, 1, 1, 1])


def test_lookups_that_move_an_output():
    lookups = Lookups(FLAT, torch.tensor([0, 0, 1, 1, 2, 2])).moving(torch.tensor([True, False, True]))
    assert (lookups.indices.tolist(), lookups.rows.tolist()) == ([3, 1, 3, 9], [0, 0, 2, 2])
    assert Lookups(FLAT[:2], None).moving(torch.tensor([False, True])).indices.tolist() == [1]
