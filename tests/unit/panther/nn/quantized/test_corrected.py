"""Layers of several quantized parts beside the dense weights that they stand for."""

import pytest
import torch

from panther.nn.quantized import BlockLinear, CorrectedLinear, FactoredLinear


def part(d_out, d_in, bias=False):
    generator = torch.Generator().manual_seed(d_out * d_in)
    levels = torch.randint(0, 256, (d_out, d_in), generator=generator).to(torch.uint8)
    scale = torch.rand(d_out, 1, generator=generator) * 0.01
    return BlockLinear(levels, scale, bits=8, block_size=32, bias=torch.randn(d_out) if bias else None)


def test_factors_are_their_product():
    layer = FactoredLinear(part(4, 20), part(9, 4, bias=True))
    x = torch.randn(3, 2, 20)
    torch.testing.assert_close(layer(x), x @ (layer.up.weight @ layer.down.weight).t() + layer.bias)
    torch.testing.assert_close(layer(x), x @ layer.weight.t() + layer.bias)
    assert layer.rank == 4
    assert layer.stored_bytes == sum(tensor.nbytes for tensor in layer.state_dict().values())


def test_a_correction_is_added():
    layer = CorrectedLinear(part(9, 20, bias=True), FactoredLinear(part(4, 20), part(9, 4)))
    x = torch.randn(5, 20)
    torch.testing.assert_close(layer(x), layer.base(x) + layer.correction(x))
    torch.testing.assert_close(layer(x), x @ layer.weight.t() + layer.bias)
    assert layer.stored_bytes == sum(tensor.nbytes for tensor in layer.state_dict().values())


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="down has 4 output features and up takes 5"):
        FactoredLinear(part(4, 20), part(9, 5))
    with pytest.raises(ValueError, match=r"correction \(20, 8\) must have the sizes of base \(20, 9\) and no bias"):
        CorrectedLinear(part(9, 20), FactoredLinear(part(4, 20), part(8, 4)))
    with pytest.raises(ValueError, match="and no bias"):
        CorrectedLinear(part(9, 20), FactoredLinear(part(4, 20), part(9, 4, bias=True)))
