"""Grids: what they cover, and which is chosen."""

import pytest
import torch

from panther.nn.quantized.grid import Grid
from panther.quantize.grid import best, block_grid


@pytest.mark.parametrize("bits", [4, 8])
def test_a_block_is_off_by_half_a_step_at_most_where_all_of_it_is_covered(bits):
    W = torch.rand(6, 70, generator=torch.Generator().manual_seed(0)).double() * 2 - 0.5
    grid = block_grid(W, torch.ones(70), bits=bits, block_size=32)
    Q = grid.nearest(W)
    levels = Q - grid.each(grid.low, 70)
    assert levels.min() >= 0
    assert levels.max() <= 2**bits - 1
    inside = (grid.each(grid.low, 70) < Q) & (grid.each(grid.high, 70) > Q)
    lost = (W - grid.dense(Q)).abs() / grid.each(grid.step, 70)
    assert lost[inside].max() <= 0.5 + 1e-9
    assert inside.double().mean() > 0.7


def test_zero_is_exact_and_blocks_of_one_sign_use_all_levels():
    W = torch.cat([torch.linspace(1, 2, 31), torch.zeros(1)]).double().unsqueeze(0)
    grid = block_grid(W, torch.ones(32), bits=4, block_size=32)
    assert grid.low.item() == 0
    assert grid.dense(grid.nearest(W))[0, -1] == 0


def test_an_outlier_that_no_input_reaches_is_cut():
    W = torch.cat([torch.linspace(-1, 1, 31), torch.tensor([3.0])]).double().unsqueeze(0)
    variance = torch.ones(32)
    variance[-1] = 0
    seen = block_grid(W, torch.ones(32), bits=4, block_size=32)
    unseen = block_grid(W, variance, bits=4, block_size=32)
    assert unseen.step.item() < seen.step.item()


def test_each_block_gets_the_grid_that_loses_least():
    W = torch.tensor([[1.0, 2.0, 10.0, 20.0]]).double()
    ends = torch.ones(1, 2).double()
    grids = [Grid(step * ends, -2 * ends, 2 * ends, 2) for step in (1.0, 10.0)]
    assert best(W, grids, torch.ones(4)).step.tolist() == [[1.0, 10.0]]
    with pytest.raises(ValueError, match="grids must hold at least one grid"):
        best(W, [], torch.ones(4))
