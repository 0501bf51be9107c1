"""Factors in few bits beside the weight that they stand for, and beside factors that are rounded one by one."""

import pytest
import torch

from panther.linalg.whitening import damped, whitened_svd
from panther.quantize.blocks import Blocks, Known, quantize_weight
from panther.quantize.factors import quantize_factors
from panther.quantize.loss import weighed_loss


@pytest.fixture(scope="module")
def problem():
    """A weight, known moments, and the best factors of rank 24."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(3000, 30, generator=generator) @ torch.randn(30, 128, generator=generator) / 5
    X = X + 0.2 * torch.randn(X.shape, generator=generator) + 0.3
    J = torch.randn(40, 96, generator=generator) * torch.linspace(0.1, 1, 96)
    W = torch.randn(96, 128, generator=generator) / 11
    y = X @ W.t() @ J.t()
    known = Known((X.t() @ X / len(X)).double(), (J.t() @ J / y.square().sum(1).mean()).double(), X.mean(0).double())
    spectrum = whitened_svd(W, damped(known.second, 1e-2), damped(known.sensitivity, 1e-1))
    return W, X, J, known, spectrum.left[:, :24], spectrum.right[:24]


def relative(problem, weight):
    W, X, J, *_ = problem
    y, y_hat = X @ W.t() @ J.t(), X @ weight.float().t() @ J.t()
    return float((y - y_hat).square().sum() / y.square().sum())


@pytest.mark.parametrize("bits", [4, 8])
def test_the_predicted_error_is_that_of_the_outputs(problem, bits):
    W, _, _, known, left, right = problem
    made = quantize_factors(left, right, Blocks(bits, 32, 0, None), known, W=W)
    assert made.error == pytest.approx(relative(problem, made.layer.weight), rel=1e-3)
    assert made.weight_bytes == made.layer.stored_bytes


def test_eight_bits_cost_little_beside_the_rank(problem):
    W, _, _, known, left, right = problem
    cut = relative(problem, (left @ right).t())
    assert relative(problem, quantize_factors(left, right, Blocks(8, 32), known, W=W).layer.weight) < 1.02 * cut


def test_the_second_factor_makes_up_for_the_first(problem):
    *_, known, left, right = problem
    blocks, product = Blocks(4, 128, 0, None), (left @ right).t()
    made = quantize_factors(left, right, blocks, known)
    hidden = left.t() @ known.second @ left
    apart = [
        quantize_weight(left.t(), blocks, Known(known.second, right @ known.sensitivity @ right.t())),
        quantize_weight(right.t(), blocks, Known(hidden, known.sensitivity)),
    ]
    lost, of_each = (
        product - made.layer.weight,
        product - apart[1].layer.weight.double() @ apart[0].layer.weight.double(),
    )
    assert weighed_loss(lost, known.sensitivity, known.second) < 0.9 * weighed_loss(
        of_each, known.sensitivity, known.second
    )


def test_the_target_is_the_product_where_none_is_given(problem):
    *_, known, left, right = problem
    made = quantize_factors(left, right, Blocks(8, 32), known)
    product = (left @ right).t()
    assert (made.layer.weight - product).norm() < 0.03 * product.norm()


def test_the_bias_takes_up_the_mean_error(problem):
    W, X, _, known, left, right = problem
    bias = torch.randn(96)
    made = quantize_factors(left, right, Blocks(4, 32, 0, None), known, bias, W)
    with torch.no_grad():
        assert (X @ W.t() + bias - made.layer(X)).mean(0).abs().max() < 1e-4


def test_rank_one_and_inputs_of_zeros():
    known = Known(torch.zeros(5, 5).double(), torch.eye(3).double())
    made = quantize_factors(torch.ones(5, 1), torch.ones(1, 3), Blocks(8, 16), known)
    torch.testing.assert_close(made.layer.weight, torch.ones(3, 5), rtol=0.01, atol=0)
    assert made.layer.rank == 1
