"""Grids: rounding with the gradient of clipping."""

import pytest
import torch

from panther.nn.quantized.grid import PAIR_LIMIT, Grid


def grid(step, low, high, *, paired=False):
    ends = torch.ones(2, 2)
    return Grid(step * ends, low * ends, high * ends, 3, paired=paired)


@pytest.mark.parametrize("paired", [False, True])
def test_the_gradient_is_that_of_clipping_and_the_value_that_of_rounding(paired):
    W = torch.linspace(-1, 1, 12).view(2, 6).requires_grad_()
    of = grid(0.3, -2, 1, paired=paired)
    rounded = of.straight_through(W)
    assert torch.allclose(rounded, of.dense(of.nearest(W.detach())))
    rounded.backward(torch.full_like(W, 2.0))
    inside = (W > -0.6) & (W < 0.3)
    assert inside.any()
    assert not inside.all()
    assert torch.equal(W.grad, torch.where(inside, 2.0, 0.0))


def test_pairs_stay_within_their_limit():
    W = torch.full((1, 6), 100.0)
    W[0, 3] = -100.0
    ends = torch.full((1, 1), 127.0)
    Q = Grid(torch.ones(1, 1), -ends, ends, 6, paired=True).nearest(W)
    assert Q.tolist() == [[100.0, PAIR_LIMIT - 100.0, 100.0, -100.0, 100.0, PAIR_LIMIT - 100.0]]
