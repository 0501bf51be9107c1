import numpy as np
import pytest
import torch
from torch import nn

import panther as pr
from panther.linalg.svd import randomized_svd, truncated_svd
from panther.nn import SKLinear


def numpy_truncated(W, rank):
    U, S, Vh = np.linalg.svd(W.detach().double().numpy(), full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ Vh[:rank]


def power_law(d_out, d_in, exponent=0.7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    p = min(d_out, d_in)
    U = torch.linalg.qr(torch.randn(d_out, p, generator=generator, dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(d_in, p, generator=generator, dtype=torch.float64)).Q
    return (U * torch.arange(1, p + 1).double() ** -exponent) @ V.t()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("d_in", "d_out", "L", "k"),
    [(24, 40, 1, 4), (40, 24, 3, 2), (24, 24, 2, 6), (7, 33, 1, 1), (33, 7, 1, 8), (5, 3, 4, 4)],
)
@pytest.mark.filterwarnings("ignore:SKLinear:UserWarning")
def test_equals_the_truncated_svd(d_in, d_out, L, k, bias):
    torch.manual_seed(d_in + k)
    linear = nn.Linear(d_in, d_out, bias=bias)
    layer = SKLinear.from_linear(linear, num_terms=L, low_rank=k)
    best = numpy_truncated(linear.weight, 2 * L * k)
    assert np.linalg.norm(layer.dense_weight().detach().numpy() - best) <= 1e-5 * np.linalg.norm(best)
    assert layer.S1s.shape == (L, d_in, k)
    assert layer.U1s.shape == (L, k, d_out)
    x = torch.randn(3, 5, d_in)
    expected = x.double().numpy() @ best.T + (linear.bias.detach().double().numpy() if bias else 0)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=1e-5)
    torch.testing.assert_close(layer.weight, layer.dense_weight())


@pytest.mark.parametrize(("L", "k", "expected"), [(2, 32, 0.229), (2, 64, 0.151)])
def test_power_law_spectra_lose_what_the_truncated_svd_loses(L, k, expected):
    W = power_law(512, 784)
    linear = nn.Linear(784, 512, bias=False)
    linear.weight.data.copy_(W)
    layer = SKLinear.from_linear(linear, L, k)
    error = ((layer.dense_weight() - W).norm() / W.norm()).item()
    assert error == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_takes_the_attributes_of_the_linear(dtype):
    linear = nn.Linear(32, 24, dtype=dtype).eval()
    linear.weight.requires_grad = False
    layer = SKLinear.from_linear(linear, 1, 4)
    assert {layer.S1s.dtype, layer.U2s.dtype, layer.bias.dtype} == {dtype}
    assert not layer.training
    assert not layer.S1s.requires_grad
    assert not layer.S2s.requires_grad
    assert layer.bias.requires_grad
    assert layer.bias.data_ptr() != linear.bias.data_ptr()
    best = torch.from_numpy(numpy_truncated(linear.weight, 8))
    assert (layer.dense_weight().double() - best).norm() <= 20 * torch.finfo(dtype).eps * best.norm()


def test_u_is_a_scaled_orthonormal_basis_and_s_can_be_trained():
    layer = SKLinear.from_linear(nn.Linear(48, 64), 1, 6)
    U2, U1 = layer.U2s[0], layer.U1s[0].t()
    torch.testing.assert_close(U2.t() @ U2, torch.eye(6) * 48 / 6, atol=1e-4, rtol=0)
    torch.testing.assert_close(U1.t() @ U1, torch.eye(6) * 64 / 6, atol=1e-4, rtol=0)
    layer(torch.randn(4, 48)).square().sum().backward()
    assert layer.S1s.grad.norm() > 0
    assert layer.S2s.grad.norm() > 0


def test_draws_nothing_from_the_global_generator():
    linear = nn.Linear(16, 16)
    state = torch.get_rng_state()
    SKLinear.from_linear(linear, 1, 2)
    assert torch.equal(state, torch.get_rng_state())


def test_survives_the_state_dict():
    layer = SKLinear.from_linear(nn.Linear(16, 24), 2, 2)
    other = SKLinear(16, 24, 2, 2)
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other.dense_weight(), layer.dense_weight())


@pytest.mark.parametrize(
    ("linear", "sizes", "error", "match"),
    [
        (nn.ReLU(), (1, 4), TypeError, r"linear \(ReLU\) must be an nn.Linear"),
        (nn.Linear(8, 8), (0, 4), ValueError, r"num_terms \(0\)"),
        (nn.Linear(8, 8), (1, 0), ValueError, r"low_rank \(0\)"),
        (nn.Linear(8, 8, device="meta"), (1, 1), ValueError, "meta"),
    ],
)
def test_refuses(linear, sizes, error, match):
    with pytest.raises(error, match=match):
        SKLinear.from_linear(linear, *sizes)


def test_refuses_weights_that_are_not_finite():
    linear = nn.Linear(8, 8)
    linear.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        SKLinear.from_linear(linear, 1, 1)


@pytest.mark.parametrize("exponent", [0.3, 0.7, 1.5])
def test_the_randomised_svd_is_within_a_hundredth_of_the_optimum(exponent):
    M = power_law(600, 500, exponent).float()
    svd = randomized_svd(M, 40)
    error = (M - svd.U * svd.S @ svd.Vh).norm().item()
    optimum = np.sqrt((np.linalg.svd(M.double().numpy(), compute_uv=False)[40:] ** 2).sum())
    assert optimum * (1 - 1e-5) <= error <= 1.01 * optimum


def test_large_matrices_take_the_randomised_way_and_agree():
    M = power_law(1100, 1200).float()
    chosen, exact = truncated_svd(M, 32), truncated_svd(M, 32, method="exact")
    torch.testing.assert_close(chosen.S.double(), exact.S, rtol=1e-3, atol=0)
    assert chosen.S.dtype == torch.float32  # the exact one computes in float64


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: truncated_svd(torch.ones(3), 1), "must be a matrix"),
        (lambda: truncated_svd(torch.ones(3, 3), 0), r"rank \(0\)"),
        (lambda: truncated_svd(torch.ones(3, 3), 1, method="fast"), r"method \('fast'\)"),
        (lambda: randomized_svd(torch.ones(3, 3), 0), r"rank \(0\)"),
        (lambda: pr.nn.SKLinear.from_factors(torch.ones(3, 2), torch.ones(3, 3), None, 1, 1), r"left \(3, 2\)"),
        (lambda: pr.nn.SKLinear.from_factors(torch.ones(9, 4), torch.ones(4, 9), None, 1, 1), "4 columns of left"),
    ],
)
def test_checks_of_the_factors(call, match):
    with pytest.raises(ValueError, match=match):
        call()
