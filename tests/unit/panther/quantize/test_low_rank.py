"""Factors in 8 bits, beside their float product and beside a fit by least squares."""

import pytest
import torch
from helpers.pair_sums import largest_pair_sum
from torch import nn

from panther.convert.layers import find_units
from panther.nn.quantized.grid import PAIR_LIMIT
from panther.quantize.low_rank import Layer, factorize, modules
from panther.quantize.smoothing import Sight, choices

RANK = 16


@pytest.fixture
def case():
    """A linear layer of a falling spectrum, inputs about a mean, and its best factor of a rank."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 40))
    with torch.no_grad():
        U, S, Vh = torch.linalg.svd(model[0].weight, full_matrices=False)
        model[0].weight.copy_(U * (S * 0.8 ** torch.arange(len(S))) @ Vh)
    X = torch.randn(800, 48) @ torch.randn(48, 48) * 0.3 + 0.5
    (unit,) = find_units(model, None, ())
    W = unit.weight.double()
    second = (X.t() @ X).double() / len(X)
    mean = X.double().mean(0)
    sight = Sight(X, X.amin(0), X.amax(0), second, [W], [torch.eye(40, dtype=torch.float64)])
    layer = Layer(unit, sight, 0, choices(sight, (0.5,))[0], second - torch.outer(mean, mean), X[:0])
    left = torch.linalg.svd(W)[2][:RANK].t()
    return model, X, layer, left


def error(layer, expected, X):
    with torch.no_grad():
        return float((layer(X) - expected).norm() / expected.norm())


def test_8_bits_cost_little_beside_the_rank(case):
    model, X, layer, left = case
    expected = model[0](X).detach()
    W, bias = model[0].weight.detach(), model[0].bias.detach()
    ((place, made),) = modules(layer, factorize(layer, left, compensate=True))
    # the best second factor for this first one, in float64
    A = X.double() @ left
    B = torch.linalg.lstsq(torch.cat([A, torch.ones(len(A), 1)], 1), (X @ W.t() + bias).double()).solution
    fitted = torch.cat([A, torch.ones(len(A), 1)], 1) @ B
    best = float((fitted - expected).norm() / expected.norm())
    assert place.names == ["0"]
    assert made.rank == RANK
    assert best < error(made, expected, X) < 1.15 * best + 0.01


def test_the_second_factor_makes_up_for_the_rounding_of_the_first(case):
    model, X, layer, left = case
    expected = model[0](X).detach()
    ((_, made),) = modules(layer, factorize(layer, left, compensate=True))
    # a first factor that is off by a fifth in every entry is refitted to as well
    rough = left * (1 + 0.2 * torch.randn_like(left))
    plain = torch.linalg.pinv(left) @ layer.weight.t()
    ((_, refitted),) = modules(layer, factorize(layer, rough, compensate=True))
    unfitted = float((X.double() @ rough @ plain + model[0].bias.detach() - expected).norm() / expected.norm())
    assert error(made, expected, X) < error(refitted, expected, X) < 0.7 * unfitted


def test_no_factor_saturates_avx2(case):
    _, _, layer, left = case
    ((_, made),) = modules(layer, factorize(layer, left, compensate=True))
    for part in (made.first, made.second):
        assert largest_pair_sum(part.weight_int8) <= PAIR_LIMIT


def test_inputs_that_are_always_zero_give_a_layer_all_the_same(case):
    model, X, layer, left = case
    sight = Sight(X * 0, X[0] * 0, X[0] * 0, layer.sight.second * 0, layer.sight.weights, layer.sight.sensitivities)
    empty = Layer(layer.unit, sight, 0, choices(sight, (0.0,))[0], layer.covariance * 0, X[:0])
    ((_, made),) = modules(empty, factorize(empty, left, compensate=True))
    torch.testing.assert_close(made(torch.zeros(2, 48)), model[0](torch.zeros(2, 48)).detach())
