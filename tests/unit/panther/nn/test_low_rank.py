import numpy as np
import pytest
import torch

from panther.nn.low_rank import Int8LowRank
from panther.nn.quantized import Int8Linear


def factor(d_out, d_in, seed, bias=None):
    random = torch.Generator().manual_seed(seed)
    weight = torch.randint(-60, 60, (d_out, d_in), generator=random, dtype=torch.int8)
    return Int8Linear(weight, torch.rand(d_out, generator=random) * 0.01 + 0.001, 0.05, 128, bias=bias)


def test_it_computes_one_factor_after_the_other_in_integers():
    bias = torch.randn(9)
    first, second = factor(4, 12, 0), factor(9, 4, 1, bias)
    x = torch.randn(7, 12)

    def product(x, layer):
        q = np.clip(np.round(x / 0.05) + 128, 0, 255).astype(np.int64) - 128
        y = q @ layer.weight_int8.numpy().astype(np.int64).T
        return y * 0.05 * layer.weight_scale.numpy()

    expected = product(product(x.numpy().astype(np.float64), first), second) + bias.numpy()
    torch.testing.assert_close(Int8LowRank(first, second)(x).double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-4)


def test_its_weight_and_bytes_are_those_of_the_factors():
    layer = Int8LowRank(factor(4, 12, 0), factor(9, 4, 1, torch.ones(9)))
    torch.testing.assert_close(layer.weight, layer.second.weight @ layer.first.weight)
    assert (layer.in_features, layer.rank, layer.out_features) == (12, 4, 9)
    assert layer.stored_bytes == 4 * 12 + 9 * 4 + 4 * (4 + 9 + 9) + 2 * 5
    assert torch.equal(layer.bias, torch.ones(9))
    assert "rank=4" in repr(layer)


def test_factors_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="first has 5 output features and second takes 4"):
        Int8LowRank(factor(5, 12, 0), factor(9, 4, 1))
