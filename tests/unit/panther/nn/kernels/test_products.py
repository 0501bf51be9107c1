"""The library's products against the definition, on the CPU: the device is no part of the computation."""

from __future__ import annotations

import copy

import pytest
import torch

from panther.nn import SKLinear, functional
from panther.nn.kernels import launch, products

ALL = (True, True, True, True)


def make(L: int = 2, **options) -> SKLinear:
    generator = torch.Generator().manual_seed(1)
    return SKLinear(24, 20, L, 3, generator=generator, **{"dtype": torch.float64, **options})


def gradients_of_the_definition(layer: SKLinear, x: torch.Tensor, grad: torch.Tensor) -> list[torch.Tensor]:
    y = functional.two_products(x, *layer.factors(), layer.num_terms, layer.bias)
    learned = [x, layer.S1s, layer.S2s, *([] if layer.bias is None else [layer.bias])]
    return [y, *torch.autograd.grad(y, learned, grad)]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("L", [1, 3])
def test_output_and_gradients_are_those_of_the_definition(L, bias):
    layer = make(L, bias=bias)
    x, grad = torch.randn(7, 24, dtype=torch.float64, requires_grad=True), torch.randn(7, 20, dtype=torch.float64)
    expected = gradients_of_the_definition(layer, x, grad)
    packed, rows = layer._packed, x.detach()
    y, H, kept = products.forward(rows, layer.bias, packed.A, packed.B, torch.float64)
    found = products.backward(grad, rows, H, kept, L, (True, True, True, bias))
    assert found[1].is_contiguous(), "the gradient of a parameter is taken over without a copy"
    for value, wanted in zip([y, *found], [*expected, None][:5], strict=True):
        assert (value is None) is (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(value, wanted)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, products.FEW_ROWS, products.FEW_ROWS + 1])
@pytest.mark.parametrize("low_rank", [8, 16])
def test_forward_alone_takes_factors_as_they_are_where_that_is_faster(monkeypatch, low_rank, rows, bias):
    monkeypatch.setitem(products.LARGE_RANK, "half", 16)
    layer = SKLinear(40, 24, 3, low_rank, bias=bias, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(1))
    packed = layer._packed
    x = torch.randn(rows, 40, generator=torch.Generator().manual_seed(2)).bfloat16()
    y, _, kept = products.forward(x, layer.bias, packed.A, packed.B, torch.bfloat16, learning=False)
    as_they_are = rows <= products.FEW_ROWS and low_rank == 16
    assert (kept.A is packed.A and kept.B is packed.B) is as_they_are
    expected = copy.deepcopy(layer).double()(x.double())
    assert ((y.double() - expected).norm() / expected.norm()).item() < 1e-2
    _, _, kept = products.forward(x, layer.bias, packed.A, packed.B, torch.bfloat16)
    assert kept.A is not packed.A, "the backward pass takes factors side by side"


@pytest.mark.parametrize(
    ("dtype", "computed", "precision", "k", "expected"),
    [
        (torch.float16, torch.float16, "ieee", 32, True),
        (torch.float16, torch.float16, "ieee", 36, False),
        (torch.float16, torch.float16, "ieee", 16, False),
        (torch.float32, torch.float16, "ieee", 32, False),
        (torch.float32, torch.float32, "ieee", 128, False),
        (torch.float32, torch.float32, "tf32", 128, True),
        (torch.float32, torch.float32, "tf32", 64, False),
        (torch.float64, torch.float64, "tf32", 128, False),
    ],
)
def test_factors_are_taken_as_they_are_by_type_precision_and_rank(monkeypatch, dtype, computed, precision, k, expected):
    monkeypatch.setattr(products.private_names, "fp32_precision", lambda *_: precision)
    assert products.reads_terms(8, torch.zeros(2, 4, k, dtype=dtype), computed) is expected


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("rows", [products.LONG - 1, products.LONG])
def test_both_ways_to_the_gradient_of_S1s_agree(rows):
    layer = make(2, dtype=torch.float32)
    x, grad = torch.randn(rows, 24, requires_grad=True), torch.randn(rows, 20)
    expected = gradients_of_the_definition(layer, x, grad)
    packed = layer._packed
    _, H, kept = products.forward(x.detach(), layer.bias, packed.A, packed.B, torch.float32)
    found = products.backward(grad, x.detach(), H, kept, 2, ALL)
    assert found[1].is_contiguous()
    torch.testing.assert_close(found[1], expected[2], rtol=1e-4, atol=1e-3)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_rows_of_any_strides_and_a_gradient_without_x():
    layer = make(2)
    x = torch.randn(24, 14, dtype=torch.float64).t()[::2].requires_grad_()
    grad = torch.randn(7, 20, dtype=torch.float64)
    expected = gradients_of_the_definition(layer, x, grad)
    packed = layer._packed
    _, H, kept = products.forward(x.detach(), layer.bias, packed.A, packed.B, torch.float64)
    dx, dS1, dS2, dbias = products.backward(grad, x.detach(), H, kept, 2, (False, True, False, False))
    assert dx is dS2 is dbias is None
    torch.testing.assert_close(dS1, expected[2])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_parameters_of_another_type_are_cast_and_their_gradients_cast_back():
    layer = make(2, dtype=torch.float32)
    packed = layer._packed
    x, grad = torch.randn(7, 24, dtype=torch.bfloat16), torch.randn(7, 20, dtype=torch.bfloat16)
    y, H, kept = products.forward(x, layer.bias, packed.A, packed.B, torch.bfloat16)
    assert y.dtype == H.dtype == kept.A.dtype == kept.B.dtype == torch.bfloat16
    dx, *others = products.backward(grad, x, H, kept, 2, ALL)
    assert dx.dtype == torch.bfloat16
    assert [gradient.dtype for gradient in others] == [torch.float32] * 3


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_only_factors_on_a_device_are_laid_out_by_a_kernel():
    packed = make()._packed
    assert launch.factor_layout(packed.A, packed.B, None, torch.float64) is None
