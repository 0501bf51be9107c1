"""Layers whose terms are apart in memory, on the CPU, since the device is not part of the computation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from panther.nn import SKLinear, functional
from panther.nn.kernels import apart

NAMES = ("S1s", "S2s", "bias")


@pytest.fixture
def layer():
    """A layer in float64 whose parameters were moved to memory of their own."""
    layer = SKLinear(40, 30, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for name in NAMES:
        setattr(layer, name, nn.Parameter(getattr(layer, name).detach().clone()))
    return layer


@pytest.fixture
def x():
    return torch.randn(7, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def definition(layer: SKLinear, x: torch.Tensor) -> torch.Tensor:
    return functional.two_products(x, *layer.factors(), layer.num_terms, layer.bias)


def apply(layer: SKLinear, x: torch.Tensor) -> torch.Tensor:
    return apart.linear(x, layer.S1s, layer.U1s, layer.U2s, layer.S2s, layer.bias, torch.float64)


def without_storage(tensor: torch.Tensor) -> None:
    """Free a tensor's memory, as FSDP does between the passes."""
    with torch.autograd._unsafe_preserve_version_counter(tensor):
        tensor.untyped_storage().resize_(0)


def with_storage(tensor: torch.Tensor, values: torch.Tensor) -> None:
    with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(tensor):
        tensor.untyped_storage().resize_(values.nbytes)
        tensor.copy_(values)


def test_it_is_the_definition(layer, x):
    torch.testing.assert_close(apply(layer, x), definition(layer, x))
    with torch.no_grad():
        torch.testing.assert_close(apply(layer, x), definition(layer, x))
    torch.testing.assert_close(apply(layer, x.view(7, 1, 40)), definition(layer, x).view(7, 1, 30))


@pytest.mark.parametrize("learns", ["all", "x", *NAMES])
def test_derivatives(layer, x, learns):
    x.requires_grad_(learns in ("all", "x"))
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(learns in ("all", name))
    learning = [tensor for tensor in (x, *layer.parameters()) if tensor.requires_grad]
    assert torch.autograd.gradcheck(lambda *_: apply(layer, x), learning, check_forward_ad=False)
    assert torch.autograd.gradgradcheck(lambda *_: apply(layer, x), learning)


def test_gradients_after_the_parameters_were_freed_and_gathered_again(layer, x):
    expected = torch.autograd.grad(definition(layer, x).square().sum(), list(layer.parameters()))
    values = {name: getattr(layer, name).detach().clone() for name in NAMES}
    loss = apply(layer, x).square().sum()
    for name in NAMES:
        without_storage(getattr(layer, name))
    for name, value in values.items():
        with_storage(getattr(layer, name), value)
    torch.testing.assert_close(torch.autograd.grad(loss, list(layer.parameters())), expected)


def test_a_parameter_changed_between_the_passes_is_reported(layer, x):
    loss = apply(layer, x).sum()
    with torch.no_grad():
        layer.S1s.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_it_is_for_one_device_and_a_fixed_U(layer, x):
    terms = (layer.S1s, layer.U1s, layer.U2s, layer.S2s)
    assert not apart.applicable(x, *terms)
