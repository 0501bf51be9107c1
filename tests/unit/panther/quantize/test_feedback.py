"""Rounding with feedback on both sides beside a loop over entries in float64."""

import pytest
import torch

from panther.linalg.whitening import damped
from panther.nn.quantized.grid import PAIR_LIMIT, Grid
from panther.quantize.feedback import INPUT_DAMPING, OUTPUT_DAMPING, compensated
from panther.quantize.grid import block_grid


def moment(size, seed):
    mix = torch.randn(size, 2 * size, generator=torch.Generator().manual_seed(seed)).double()
    return mix @ mix.t() / size * torch.linspace(0.2, 2, size).double().outer(torch.linspace(0.2, 2, size).double())


def weight(d_out, d_in):
    return torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(0)).double()


def loss(W, grid, Q, C, G):
    E = W - grid.dense(Q.double())
    return float(((G @ E) * (E @ C)).sum())


def unit_factor(M, order):
    """M of an order, the last entry first: L of L D Lᵀ, read backwards."""
    L = torch.linalg.cholesky(M[order][:, order].flip(0, 1))
    return (L / L.diagonal()).flip(0, 1)


def entry_by_entry(W, grid, C, G):
    d_out, d_in = W.shape
    columns, rows = C.diagonal().argsort(descending=True), G.diagonal().argsort(descending=True)
    L, M = unit_factor(damped(C, INPUT_DAMPING), columns), unit_factor(damped(G, OUTPUT_DAMPING), rows)
    step, low, high = (grid.each(t, d_in)[rows][:, columns] for t in (grid.step, grid.low, grid.high))
    V, E, Q = W[rows][:, columns], torch.zeros_like(W), torch.zeros_like(W)
    for i in range(d_out):
        for j in range(d_in):
            target = V[i, j] + M[: i + 1, i] @ E[: i + 1, : j + 1] @ L[: j + 1, j]
            Q[i, j] = torch.round(target / step[i, j]).clamp(low[i, j], high[i, j])
            E[i, j] = V[i, j] - Q[i, j] * step[i, j]
    found = torch.empty_like(Q)
    found[rows.unsqueeze(1), columns] = Q
    return found


@pytest.mark.parametrize(("d_out", "d_in"), [(70, 130), (130, 66), (64, 64), (3, 5), (1, 1)])
def test_it_is_the_loop_over_entries(d_out, d_in):
    W, C, G = weight(d_out, d_in), moment(d_in, 1), moment(d_out, 2)
    grid = block_grid(W, C.diagonal(), bits=4, block_size=32)
    assert torch.equal(compensated(W, grid, C, G).double(), entry_by_entry(W, grid, C, G))


def test_both_sides_lose_less_than_one_and_one_less_than_none():
    W, C, G = weight(96, 160), moment(160, 1), moment(96, 2)
    grid = block_grid(W, C.diagonal(), bits=4, block_size=32)
    none, one, both = (
        loss(W, grid, Q, C, G) for Q in (grid.nearest(W), compensated(W, grid, C), compensated(W, grid, C, G))
    )
    assert one < 0.85 * none
    assert both < 0.85 * one


@pytest.mark.parametrize("d_in", [33, 64, 101])
def test_pairs_keep_their_limit_whatever_the_order(d_in):
    W, C, G = 3 * weight(70, d_in).sign(), moment(d_in, 1), moment(70, 2)
    ends = torch.full((70, 1), 127.0).double()
    Q = compensated(W, Grid(ends / 127 / 42, -ends, ends, d_in, paired=True), C, G)
    first, second = Q[:, 0 : d_in - d_in % 2 : 2], Q[:, 1::2]
    same = first.sign() == second.sign()
    assert (first + second).abs()[same].max() <= PAIR_LIMIT
    assert Q.abs().max() > 100


def test_moments_of_zeros_round_to_the_nearest():
    W = weight(5, 7)
    grid = block_grid(W, torch.ones(7), bits=4, block_size=16)
    found = compensated(W, grid, torch.zeros(7, 7), torch.zeros(5, 5))
    assert torch.equal(found.double(), grid.nearest(W))


@pytest.mark.parametrize(("d_out", "d_in"), [(70, 130), (130, 66), (64, 64), (3, 5), (1, 1)])
def test_without_weights_of_outputs_it_is_the_loop_over_entries(d_out, d_in):
    W, C = weight(d_out, d_in), moment(d_in, 1)
    grid = block_grid(W, C.diagonal(), bits=4, block_size=32)
    expected = entry_by_entry(W, grid, C, torch.eye(d_out).double())
    assert torch.equal(compensated(W, grid, C).double(), expected)
    # rows that don't depend on each other weigh nothing
    assert torch.equal(compensated(W, grid, C, moment(d_out, 2).diagonal()).double(), expected)


def test_pairs_keep_their_limit_without_weights_of_outputs():
    W, C = 3 * weight(70, 101).sign(), moment(101, 1)
    ends = torch.full((70, 1), 127.0).double()
    Q = compensated(W, Grid(ends / 127 / 42, -ends, ends, 101, paired=True), C)
    first, second = Q[:, 0:100:2], Q[:, 1::2]
    assert (first + second).abs()[first.sign() == second.sign()].max() <= PAIR_LIMIT
    assert Q.abs().max() > 100
