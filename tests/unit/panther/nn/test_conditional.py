from __future__ import annotations

import pytest
import torch
from torch import nn

from panther.nn import ConditionalSKLinear, SKLinear


@pytest.mark.parametrize("lead", [(9,), (3, 3), (10,), (2, 5), (0,), ()], ids=str)
def test_the_number_of_rows_decides(lead):
    layer = ConditionalSKLinear(64, 48, sketch_threshold=10, num_terms=1, low_rank=4)
    x = torch.randn(*lead, 64)
    rows = x.numel() // 64
    branch = layer.sketched_layer if rows >= 10 else layer.standard_layer
    other = layer.standard_layer if rows >= 10 else layer.sketched_layer
    assert torch.equal(layer(x), branch(x))
    if rows:
        assert not torch.allclose(layer(x), other(x), rtol=0.01)


def test_the_threshold_can_be_changed():
    layer = ConditionalSKLinear(64, 48, sketch_threshold=10, num_terms=1, low_rank=4)
    layer.sketch_threshold = 2
    assert torch.equal(layer(x := torch.randn(2, 64)), layer.sketched_layer(x))


@pytest.mark.parametrize("bias", [True, False])
def test_from_linear_stands_for_the_same_weights(bias):
    linear = nn.Linear(64, 48, bias=bias).double().eval()
    # U2s of 64 columns spans the input, so that the sketch reaches any weight
    with pytest.warns(UserWarning, match="nn.Linear stores 3,072"):
        layer = ConditionalSKLinear.from_linear(linear, 1, 64, sketch_threshold=4)
    assert layer.standard_layer is linear
    assert not layer.sketched_layer.training
    few, many = torch.randn(3, 64).double(), torch.randn(4, 64).double()
    assert torch.equal(layer(few), linear(few))
    torch.testing.assert_close(layer(many), linear(many))
    torch.testing.assert_close(layer.as_sketched()(few), linear(few))


def test_from_linear_at_a_low_rank_is_closer_than_zeros():
    linear = nn.Linear(256, 192)
    layer = ConditionalSKLinear.from_linear(linear, 2, 16)
    assert (layer.sketched_layer.dense_weight() - linear.weight).norm() < linear.weight.norm()
    assert torch.equal(layer.sketched_layer.bias, linear.bias)


def test_both_branches_are_saved_and_can_be_exported():
    layer = ConditionalSKLinear(64, 48, num_terms=1, low_rank=4)
    twin = ConditionalSKLinear(64, 48, num_terms=1, low_rank=4)
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(3, 64)
    assert torch.equal(twin(x), layer(x))
    assert type(layer.as_standard()) is nn.Linear
    assert type(layer.as_sketched()) is SKLinear
    assert torch.export.export(layer.as_sketched(), (x,)).module()(x).shape == (3, 48)


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"sketch_threshold \(-1\) must not be negative"):
        ConditionalSKLinear(64, 48, -1, 1, 4)
    with pytest.raises(TypeError, match=r"sketch_threshold \(1.5\) must be an integer"):
        ConditionalSKLinear(64, 48, 1.5, 1, 4)
    with pytest.raises(TypeError, match=r"linear must be an nn\.Linear, not Conv2d"):
        ConditionalSKLinear.from_linear(nn.Conv2d(3, 3, 3))
