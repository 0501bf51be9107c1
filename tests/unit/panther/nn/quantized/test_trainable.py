"""Quantized layers in training: they compute as the layers do, and give the integers back."""

import pytest
import torch
from torch import nn

from panther.nn.quantized import BlockLinear, Int4Kernel, Int8Kernel, Int8Linear, StoredConv
from panther.nn.quantized.grid import PAIR_LIMIT
from panther.nn.quantized.trainable import TrainableWeight, trainable


def random_blocks(*, bits=4, zero_points=True, activation_bits=None, d_in=40):
    generator = torch.Generator().manual_seed(bits)
    levels = torch.randint(0, 2**bits, (6, d_in), dtype=torch.uint8, generator=generator)
    shape = (6, -(-d_in // 32))
    scale = torch.rand(shape, generator=generator) + 0.1
    zero_point = torch.randint(0, 2**bits, shape, dtype=torch.uint8, generator=generator) if zero_points else None
    return BlockLinear(
        levels,
        scale,
        zero_point,
        bits=bits,
        block_size=32,
        bias=torch.rand(6, generator=generator),
        activation_bits=activation_bits,
    )


def random_int8(smoothing=None):
    generator = torch.Generator().manual_seed(3)
    weight = torch.randint(-60, 61, (6, 40), dtype=torch.int8, generator=generator)
    return Int8Linear(weight, torch.rand(6, generator=generator) + 0.1, 0.02, 100, smoothing, torch.ones(6))


LAYERS = {
    "4 bits": random_blocks,
    "8 bits": lambda: random_blocks(bits=8),
    "no zero points": lambda: random_blocks(zero_points=False),
    "8-bit activations": lambda: random_blocks(activation_bits=8, d_in=64),
    "int8": random_int8,
    "int8, smoothed": lambda: random_int8(torch.linspace(0.5, 2, 40)),
}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_computes_what_the_layer_does_and_gives_its_integers_back(make):
    layer, again = make(), make()
    x = torch.randn(9, layer.in_features, generator=torch.Generator().manual_seed(0))
    trained = trainable(layer)
    expected = layer(x)
    assert torch.allclose(trained(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max())
    trained.write_to(layer)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_learns_and_the_layer_computes_what_was_learned(make):
    layer = make()
    trained = trainable(layer)
    weights = {name for name, _ in trained.named_parameters()}
    assert weights == {"kernel.weight", "bias"}
    x = torch.randn(200, layer.in_features, generator=torch.Generator().manual_seed(1))
    target = layer(x) * 0.7
    before = layer.weight.clone()
    trained.bias.requires_grad_()
    sizes = [(parameter, parameter.detach().square().mean().sqrt().item()) for parameter in trained.parameters()]
    optimizer = torch.optim.Adam([{"params": [parameter], "lr": 0.01 * size} for parameter, size in sizes])
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = (trained(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    with torch.no_grad():
        expected = trained(x)
        trained.write_to(layer)
        assert torch.allclose(layer(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max())
    assert not torch.equal(layer.weight, before)


def test_clipped_inputs_and_weights_get_no_gradient():
    layer = random_int8()
    trained = trainable(layer)
    x = torch.tensor([[0.5] * 39 + [9.0]], requires_grad=True)
    trained(x).sum().backward()
    assert x.grad[0, -1] == 0
    assert (x.grad[0, :-1] != 0).all()


def test_trained_8_bit_weights_keep_the_limit_of_pairs():
    layer = random_int8()
    trained = trainable(layer)
    with torch.no_grad():
        trained.kernel.weight.fill_(1000.0)
    trained.write_to(layer)
    first, second = layer.weight_int8.int()[:, 0::2], layer.weight_int8.int()[:, 1::2]
    assert (first + second).max() <= PAIR_LIMIT
    assert first.max() == 127


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (6, 8, 5)])
def test_kernels_of_convolutions(bits, shape):
    generator = torch.Generator().manual_seed(bits)
    if bits == 8:
        kernel = Int8Kernel(torch.randint(-127, 128, shape, dtype=torch.int8, generator=generator), torch.rand(6) + 0.1)
    else:
        integers = torch.randint(-7, 8, shape, dtype=torch.int8, generator=generator)
        kernel = Int4Kernel(integers, torch.rand(6, 2, generator=generator) + 0.1)
    trained, before = trainable(kernel), kernel.weight
    assert torch.allclose(trained.weight, before)
    conv = nn.Conv2d(4, 6, 3) if len(shape) == 4 else nn.Conv1d(8, 6, 5)
    layer = StoredConv(conv, trained)
    x = torch.randn(2, *conv.weight.shape[1:2], *(9,) * (len(shape) - 2), generator=generator)
    assert torch.allclose(layer(x), StoredConv(conv, kernel)(x), atol=1e-4)
    with torch.no_grad():
        trained.kernel.weight.mul_(-1)
    trained.write_to(kernel)
    assert torch.allclose(kernel.weight, -before)


def test_other_modules_have_none():
    assert trainable(nn.Linear(3, 4)) is None


def test_weights_are_copied():
    layer = random_blocks()
    weight = trainable(layer).kernel
    assert isinstance(weight, TrainableWeight)
    before = layer.levels
    with torch.no_grad():
        weight.weight.zero_()
    assert torch.equal(layer.levels, before)
