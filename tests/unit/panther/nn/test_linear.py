"""What SKLinear computes, how it starts, and what it refuses, against numpy in float64 and nn.Linear."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from panther.linalg.sign_bits import sign_magnitude
from panther.nn import SKLinear, functional

SIZES = [(784, 512, 2, 64), (40, 56, 3, 2), (33, 17, 1, 5), (16, 16, 1, 1)]
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


def make(*sizes: int, **options) -> SKLinear:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return SKLinear(*sizes, generator=torch.Generator().manual_seed(1), **options)


def formula(layer: SKLinear, x: torch.Tensor) -> np.ndarray:
    """The definition, term by term, in numpy and float64."""
    S1s, U1s, U2s, S2s = (tensor.detach().double().numpy() for tensor in (layer.S1s, layer.U1s, layer.U2s, layer.S2s))
    x64 = x.detach().double().numpy()
    total = sum(x64 @ S1s[i] @ U1s[i] + x64 @ U2s[i] @ S2s[i] for i in range(layer.num_terms))
    y = total / (2 * layer.num_terms)
    return y if layer.bias is None else y + layer.bias.detach().double().numpy()


def relative_error(y: torch.Tensor, reference: np.ndarray) -> float:
    return float(np.abs(y.detach().double().numpy() - reference).max() / np.abs(reference).max())


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_computes_the_formula(sizes, bias, dtype):
    layer = make(*sizes, bias=bias, dtype=dtype)
    x = torch.randn(5, sizes[0], generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = formula(layer, x)
    for requires_grad in (True, False):
        y = layer.requires_grad_(requires_grad)(x)
        assert y.dtype == dtype
        assert relative_error(y, expected) < ROUNDING[dtype]


@pytest.mark.parametrize("lead", [(), (1,), (4,), (0,), (2, 3), (2, 0, 3), (2, 1, 3, 2)], ids=str)
@pytest.mark.parametrize("grad", [True, False])
def test_any_leading_shape(lead, grad):
    layer = make(40, 30, 2, 3, dtype=torch.float64)
    x = torch.randn(*lead, 40, dtype=torch.float64, requires_grad=grad)
    y = layer(x)
    assert y.shape == (*lead, 30)
    if y.numel():
        assert relative_error(y, formula(layer, x)) < 1e-12
    y.sum().backward()
    assert layer.S1s.grad.shape == layer.S1s.shape
    assert x.grad is None or x.grad.shape == x.shape


def test_non_contiguous_input():
    layer = make(40, 30, 2, 3, dtype=torch.float64)
    for x in (
        torch.randn(40, 6, dtype=torch.float64).t(),
        torch.randn(3, 6, 40, dtype=torch.float64).transpose(0, 1),
        torch.randn(6, 80, dtype=torch.float64)[:, ::2],
        torch.randn(1, 40, dtype=torch.float64).expand(5, 40),
        torch.randn(80, dtype=torch.float64)[::2],
    ):
        assert not x.is_contiguous()
        y = layer(x)
        y.square().sum().backward()
        assert relative_error(y, formula(layer, x)) < 1e-12


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("learns", ["all", "S1s", "S2s", "bias", "x"])
@pytest.mark.parametrize("rows", [1, 3])
def test_gradients(rows, learns, bias):
    if learns == "bias" and not bias:
        pytest.skip("no bias to learn")
    layer = make(6, 5, 2, 2, bias=bias, dtype=torch.float64)
    x = torch.randn(rows, 6, dtype=torch.float64, requires_grad=learns in ("all", "x"))
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(learns in ("all", name))
    learning = [tensor for tensor in (x, *layer.parameters()) if tensor.requires_grad]
    assert torch.autograd.gradcheck(lambda *_: layer(x), learning, check_forward_ad=False)
    assert torch.autograd.gradgradcheck(lambda *_: layer(x), learning)


def test_gradients_of_plain_operations_agree_with_the_fast_way():
    layer = make(40, 30, 3, 4, dtype=torch.float64)
    x = torch.randn(7, 40, dtype=torch.float64, requires_grad=True)
    wanted = [x, *layer.parameters()]
    plain = functional.sketched_linear(x, layer.S1s, layer.U1s, layer.U2s, layer.S2s, layer.bias)
    definition = functional.two_products(x, *layer.factors(), layer.num_terms, layer.bias)
    for other in (plain, definition):
        for ours, theirs in zip(
            torch.autograd.grad(layer(x).square().sum(), wanted),
            torch.autograd.grad(other.square().sum(), wanted),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_gradients_flow_into_u_where_a_user_makes_it_learn():
    layer = make(40, 30, 2, 3, dtype=torch.float64)
    layer.U1s.requires_grad_()
    layer(torch.randn(4, 40, dtype=torch.float64)).sum().backward()
    assert layer.U1s.grad is not None
    assert layer.U1s.grad.abs().sum() > 0


def test_a_change_of_what_backward_needs_is_noticed():
    layer = make(40, 30, 2, 3)
    x = torch.randn(4, 40, requires_grad=True)
    y = layer(x)
    with torch.no_grad():
        layer.S2s.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_step_between_forward_and_backward_is_no_obstacle_where_s_is_not_needed():
    layer = make(40, 30, 2, 3)
    y = layer(torch.randn(4, 40))
    with torch.no_grad():
        layer.S1s.zero_()
        layer.S2s.zero_()
    y.sum().backward()


@pytest.mark.parametrize("sizes", [(784, 512, 2, 64), (4096, 4096, 4, 128), (8192, 8192, 1, 16)], ids=str)
@pytest.mark.parametrize("sketch", ["sign", "gaussian", "orthonormal"])
def test_starts_with_the_mean_and_deviation_of_a_fresh_linear(sizes, sketch):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1024, sizes[0], generator=generator)
    layer = SKLinear(*sizes, sketch=sketch, generator=generator)
    # of a fresh nn.Linear: weights and bias uniform within ±1/√d_in, so on standard normal rows the variance is
    # d_in / (3 d_in) + 1 / (3 d_in)
    expected = math.sqrt((1 + 1 / sizes[0]) / 3)
    with torch.no_grad():
        y = layer(x)
    assert 0.95 < y.std().item() / expected < 1.05
    # rank 2Lk: the rows' means over the outputs are what is independent
    noise = expected / math.sqrt(1024)
    assert abs(y.mean().item()) < 5 * noise


def test_reset_parameters_is_that_of_nn_linear():
    layer = make(784, 512, 2, 64)
    U1s, S1s = layer.U1s.clone(), layer.S1s.clone()
    layer.reset_parameters(torch.Generator().manual_seed(5))
    first = layer.S1s.clone()
    assert not torch.equal(first, S1s)
    assert torch.equal(layer.U1s, U1s)
    layer.reset_parameters(torch.Generator().manual_seed(5))
    assert torch.equal(layer.S1s, first)
    assert layer.bias.abs().max() <= 1 / math.sqrt(784)


@pytest.mark.parametrize("sketch", ["sign", "gaussian", "orthonormal"])
@pytest.mark.parametrize("sizes", [(24, 20, 1, 4), (24, 20, 2, 3), (24, 20, 2, 16)], ids=str)
def test_w_init_is_the_best_that_u_allows(sizes, sketch):
    W = torch.randn(sizes[1], sizes[0], dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    layer = make(*sizes, W_init=W, dtype=torch.float64, sketch=sketch)
    residual = layer.dense_weight().detach() - W
    # brute force: least squares over all entries of S1 and S2 at once
    S1s, S2s = torch.zeros_like(layer.S1s), torch.zeros_like(layer.S2s)

    def weight(S1s, S2s):
        A, B = functional.factors(S1s, layer.U1s, layer.U2s, S2s)
        return (A @ B / (2 * layer.num_terms)).t()

    base = weight(S1s, S2s)
    jacobian = torch.autograd.functional.jacobian(weight, (S1s, S2s))
    columns = torch.cat([part.reshape(W.numel(), -1) for part in jacobian], dim=1)
    solution = torch.linalg.lstsq(columns, (W - base).reshape(-1, 1), driver="gelsd").solution
    best = (columns @ solution).reshape(W.shape) - W
    assert residual.norm() <= best.norm() + 1e-9
    assert residual.norm() <= W.norm()


def test_w_init_reaches_any_weight_where_u_spans_a_side():
    W = torch.randn(20, 24, dtype=torch.float64)
    torch.testing.assert_close(make(24, 20, 2, 12, W_init=W, dtype=torch.float64).dense_weight().detach(), W)


def test_w_init_takes_a_parameter_and_leaves_the_bias_of_nn_linear():
    linear = nn.Linear(64, 48)
    layer = make(64, 48, 1, 8, W_init=linear.weight)
    assert layer.bias.abs().max() <= 1 / 8
    assert (layer.dense_weight() - linear.weight).norm() < linear.weight.norm()
    assert linear.weight.grad is None


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_signs_are_exact(dtype):
    layer = make(784, 512, 2, 3, dtype=dtype)
    expected = torch.tensor(1 / math.sqrt(3), dtype=torch.float64).to(dtype).item()
    for U in (layer.U1s, layer.U2s):
        assert sign_magnitude(U) == expected
        # a share of ones within five deviations of a half
        assert abs((U > 0).double().mean().item() - 0.5) < 2.5 / math.sqrt(U.numel())


def test_the_generator_decides():
    def draw():
        return SKLinear(64, 48, 1, 8, generator=torch.Generator().manual_seed(3)).state_dict()

    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = draw()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1)
    for key, value in draw().items():
        assert torch.equal(value, first[key]), key


def test_dense_equivalents():
    layer = make(784, 512, 2, 64)
    x = torch.randn(9, 784)
    A, B = layer.factors()
    assert A.shape == (784, 256)
    assert B.shape == (256, 512)
    expected = formula(layer, x)
    assert relative_error(x @ A @ B / 4 + layer.bias, expected) < 1e-5
    assert relative_error(x @ layer.dense_weight().t() + layer.bias, expected) < 1e-5
    linear = layer.eval().to_linear()
    assert type(linear) is nn.Linear
    assert not linear.training
    assert relative_error(linear(x), expected) < 1e-5
    assert make(40, 30, 1, 2, bias=False, dtype=torch.float64).to_linear().bias is None


def test_repr_is_that_of_nn_linear():
    assert repr(make(64, 48, 1, 8)) == ("SKLinear(in_features=64, out_features=48, num_terms=1, low_rank=8, bias=True)")
    assert "sketch='gaussian'" in repr(make(64, 48, 1, 8, sketch="gaussian"))


def test_positional_call_of_the_public_package():
    W = torch.randn(48, 64, dtype=torch.float64)
    layer = SKLinear(64, 48, 1, 8, W, False, torch.float64, "cpu")  # noqa: FBT003
    assert layer.bias is None
    assert layer.S1s.dtype == torch.float64
    assert (layer.dense_weight() - W).norm() < W.norm()


@pytest.mark.parametrize("name", ["in_features", "out_features", "num_terms", "low_rank"])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, r"\(0\) must be at least 1"),
        (-3, ValueError, r"\(-3\) must be at least 1"),
        (2.0, TypeError, r"\(2.0\) must be an integer, not float"),
        (True, TypeError, r"\(True\) must be an integer, not bool"),
        ("4", TypeError, r"\('4'\) must be an integer, not str"),
    ],
)
def test_wrong_sizes(name, value, error, message):
    sizes = {"in_features": 64, "out_features": 48, "num_terms": 1, "low_rank": 8, name: value}
    with pytest.raises(error, match=name + " " + message):
        SKLinear(**sizes)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"W_init": torch.zeros(64, 48)}, ValueError, r"W_init of shape \(64, 48\) must be .* \(48, 64\)"),
        ({"W_init": np.zeros((48, 64))}, TypeError, "W_init must be a Tensor or None, not ndarray"),
        ({"W_init": torch.zeros(48, 64, dtype=torch.int64)}, TypeError, r"W_init \(torch.int64\)"),
        ({"W_init": torch.full((48, 64), math.nan)}, ValueError, "W_init holds values that are not finite"),
        ({"bias": 1}, TypeError, r"bias \(1\) must be True or False"),
        ({"dtype": torch.int32}, TypeError, r"dtype \(torch.int32\) must be a floating-point"),
        ({"dtype": "float32"}, TypeError, r"dtype \('float32'\)"),
        ({"sketch": "srht"}, ValueError, r"sketch \('srht'\) must be one of 'sign', 'gaussian', 'orthonormal'"),
        ({"generator": 3}, TypeError, r"generator \(3\) must be a torch.Generator"),
        ({"device": "nowhere"}, RuntimeError, "nowhere"),
    ],
    ids=str,
)
def test_wrong_options(options, error, message):
    with pytest.raises(error, match=message):
        SKLinear(64, 48, 1, 8, **options)


@pytest.mark.parametrize("shape", [(3, 65), (64, 3), (63,), (0, 65), (2, 64, 1)], ids=str)
def test_a_wrong_width_names_both_numbers(shape):
    with pytest.raises(ValueError, match=rf"in_features \(64\).*has {shape[-1]} entries"):
        SKLinear(64, 48, 1, 8)(torch.zeros(shape))


def test_a_scalar_is_refused():
    with pytest.raises(ValueError, match=r"in_features \(64\).*no entries"):
        SKLinear(64, 48, 1, 8)(torch.tensor(1.0))


def test_warns_once_with_the_numbers_where_dense_is_smaller():
    with pytest.warns(UserWarning, match=r"stores 196,608 weights.*nn.Linear stores 131,072") as caught:
        SKLinear(512, 256, 2, 64)
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_does_not_warn_at_equality():
    # 2·1·4·(16 + 16) = 16·16
    SKLinear(16, 16, 1, 4)
