"""Layers in 8 bits beside integer arithmetic in numpy."""

import numpy as np
import pytest
import torch

from panther.nn.quantized import Int8Linear


@pytest.fixture
def parts():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (7, 12), generator=generator).to(torch.int8)
    return weight, torch.rand(7, generator=generator) + 0.1, torch.rand(12, generator=generator) + 0.5


@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_it_is_integer_arithmetic(parts, smoothed, with_bias):
    weight, scale, smoothing = parts
    bias = torch.randn(7) if with_bias else None
    layer = Int8Linear(weight, scale, 0.03, 90, smoothing if smoothed else None, bias)
    x = 4 * torch.randn(5, 3, 12, generator=torch.Generator().manual_seed(1))
    factor = smoothing.numpy() if smoothed else np.float32(1)
    q = np.clip(np.rint(x.numpy() * factor / np.float32(0.03)) + 90, 0, 255).astype(np.int64) - 90
    assert q.min() == -90
    assert q.max() == 165  # both ends are reached
    wanted = (q @ weight.numpy().astype(np.int64).T) * np.float64(np.float32(0.03)) * scale.numpy()
    wanted = wanted + (bias.numpy() if with_bias else 0)
    np.testing.assert_allclose(layer(x).numpy(), wanted, rtol=1e-5, atol=1e-4)


def test_its_weight_is_what_it_stands_for(parts):
    weight, scale, smoothing = parts
    layer = Int8Linear(weight, scale, 0.001, 128, smoothing)
    x = torch.rand(20, 12, generator=torch.Generator().manual_seed(0)) * 0.05
    assert (layer(x) - x @ layer.weight.t()).abs().max() < 12 * 127 * 1.1 * 0.001


def test_rows_do_not_depend_on_the_batch(parts):
    weight, scale, smoothing = parts
    layer = Int8Linear(weight, scale, 0.03, 90, smoothing)
    x = torch.randn(6, 12)
    large = torch.cat([x, torch.full((1, 12), 1e4)])
    assert torch.equal(layer(large)[:6], layer(x))


def test_half_precision_inputs_do_not_overflow(parts):
    weight, scale, _ = parts
    layer = Int8Linear(torch.full_like(weight, 127), scale * 0.1, 0.03, 0)
    y = layer(torch.full((1, 12), 7.0, dtype=torch.float16))
    assert y.dtype == torch.float16
    assert y.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_int8": torch.zeros(7, 12)}, r"weight_int8 \(torch.float32, 2 axes\) must be a matrix of torch.int8"),
        ({"weight_scale": torch.ones(8)}, r"weight_scale of shape \(8,\) must have shape \(7,\)"),
        ({"smoothing": torch.ones(7)}, r"smoothing of shape \(7,\) must have shape \(12,\)"),
        ({"input_zero_point": 256}, r"input_zero_point \(256\) must be from 0 to 255"),
        ({"input_scale": 0.0}, r"input_scale \(0.0\) must be positive and finite"),
    ],
)
def test_what_is_wrong_is_named(parts, changes, message):
    given = {"weight_int8": parts[0], "weight_scale": parts[1], "input_scale": 0.1, "input_zero_point": 3} | changes
    with pytest.raises(ValueError, match=message):
        Int8Linear(**given)
