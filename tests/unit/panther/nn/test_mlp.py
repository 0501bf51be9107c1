from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from torch import nn

from panther.nn import SKLinear, sketched_mlp


def layers(model: nn.Sequential) -> list[nn.Module]:
    return [module for module in model if isinstance(module, SKLinear | nn.Linear)]


@pytest.mark.parametrize(
    "widths", [(784, [512, 256, 128], 10), (4096, [4096] * 3, 1000), (20, [], 3), (64, [1024], 64)]
)
def test_no_layer_is_larger_than_dense(widths):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = sketched_mlp(*widths)
    for layer in layers(model):
        if isinstance(layer, SKLinear):
            count = layer.parameter_count()
            assert count.stored < count.dense
    sizes = [(layer.in_features, layer.out_features) for layer in layers(model)]
    dims = [widths[0], *widths[1], widths[2]]
    assert sizes == list(itertools.pairwise(dims))
    assert model(torch.randn(2, widths[0])).shape == (2, widths[2])


def test_sizes_follow_the_tutorial_where_they_pay():
    big = layers(sketched_mlp(4096, [4096, 4096], 4096))
    assert [(layer.num_terms, layer.low_rank) for layer in big] == [(8, 64), (7, 56), (2, 16)]


def test_larger_than_dense_only_when_told_to():
    with pytest.warns(UserWarning, match="nn.Linear stores") as caught:
        model = sketched_mlp(784, [512, 256, 128], 10, allow_larger=True)
    assert len(caught) == 4
    assert [(layer.num_terms, layer.low_rank) for layer in layers(model)] == [(8, 64), (7, 56), (6, 48), (2, 16)]


def test_options():
    model = sketched_mlp(256, [256], 256, num_terms=1, low_rank=[16, 8], activation=nn.GELU, dropout=0, bias=False)
    assert [type(module) for module in model] == [SKLinear, nn.GELU, SKLinear]
    assert [layer.low_rank for layer in layers(model)] == [16, 8]
    assert model[0].bias is None


def test_a_generator_draws_every_weight():
    def state(seed: int | None) -> dict[str, torch.Tensor]:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return sketched_mlp(784, [512, 256], 10, generator=generator).state_dict()

    first, again, other = state(1), state(1), state(2)
    assert "6.weight" in first  # the last layer is an nn.Linear
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert all(not torch.equal(value, other[name]) for name, value in first.items())
    bound = 256**-0.5  # as of nn.Linear
    assert 0.99 * bound < first["6.weight"].abs().max() <= bound
    assert first["6.bias"].abs().max() <= bound
    torch.manual_seed(3)
    dense = nn.Linear(256, 10)
    torch.manual_seed(3)
    (without,) = sketched_mlp(256, [], 10)
    assert torch.equal(without.weight, dense.weight)
    assert torch.equal(without.bias, dense.bias)


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"width \(0\) must be at least 1"):
        sketched_mlp(784, [0], 10)
    with pytest.raises(ValueError, match="low_rank has 1 entries and the network 2 layers"):
        sketched_mlp(784, [64], 10, low_rank=[3])
