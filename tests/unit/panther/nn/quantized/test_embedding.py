"""Embeddings in few bits beside the table that they were made from."""

import numpy as np
import pytest
import torch
from torch import nn

from panther.nn.quantized import BlockEmbedding, Int8Embedding


def test_an_embedding_is_off_by_half_a_step_at_most():
    embedding = nn.Embedding(50, 8, padding_idx=0)
    small = Int8Embedding.from_embedding(embedding)
    indices = torch.randint(0, 50, (4, 6))
    step = embedding.weight.abs().amax(1) / 127
    assert ((small(indices) - embedding(indices)).abs() <= 0.501 * step[indices].unsqueeze(-1) + 1e-9).all()
    assert (small(torch.tensor([0])) == 0).all()
    assert small.stored_bytes == 50 * 8 + 50 * 4


def block_embedding(rows=20, width=70, block_size=32):
    generator = torch.Generator().manual_seed(0)
    blocks = -(-width // block_size)
    levels, zeros = (torch.randint(0, 16, (rows, n), generator=generator).to(torch.uint8) for n in (width, blocks))
    return levels, torch.rand(rows, blocks, generator=generator), zeros


def test_four_bits_are_levels_less_zero_points_times_scales():
    levels, scale, zeros = block_embedding()
    embedding = BlockEmbedding(levels, scale, zeros, block_size=32)
    expand = [0] * 32 + [1] * 32 + [2] * 6
    wanted = (levels.numpy().astype(float) - zeros.numpy()[:, expand]) * scale.numpy()[:, expand]
    np.testing.assert_allclose(embedding.weight.numpy(), wanted, rtol=1e-6)
    indices = torch.tensor([[3, 0], [19, 3]])
    np.testing.assert_allclose(embedding(indices).numpy(), wanted[indices.numpy()], rtol=1e-6)
    assert embedding.stored_bytes == 20 * (35 + 3 * 4 + 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_size": 20}, r"block_size \(20\) must be one of"),
        ({"levels": torch.zeros(20, 69, dtype=torch.uint8)}, r"width of levels \(69\) must be even: two"),
        ({"scale": torch.ones(20, 2)}, r"scale of shape \(20, 2\) must have shape \(20, 3\)"),
        ({"zero_point": torch.zeros(20, 1, dtype=torch.uint8)}, r"zero_point of shape \(20, 1\) must have shape"),
    ],
)
def test_what_is_wrong_is_named(changes, message):
    levels, scale, zeros = block_embedding()
    with pytest.raises(ValueError, match=message):
        BlockEmbedding(**({"levels": levels, "scale": scale, "zero_point": zeros, "block_size": 32} | changes))
