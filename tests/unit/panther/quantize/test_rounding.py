"""Rounding of weights, and the 16-bit sums of AVX2 by an oracle in numpy."""

import numpy as np
import pytest
import torch
from helpers.pair_sums import largest_pair_sum

from panther.nn.quantized.grid import PAIR_LIMIT
from panther.quantize.rounding import round_nearest, round_weight


def weight(kind, d_out=24, d_in=33):
    generator = torch.Generator().manual_seed(0)
    if kind == "normal":
        return torch.randn(d_out, d_in, generator=generator)
    if kind == "uniform":
        return 2 * torch.rand(d_out, d_in, generator=generator) - 1
    return torch.ones(d_out, d_in)


def moment(d_in=33):
    mix = torch.randn(d_in, d_in, generator=torch.Generator().manual_seed(1)).double()
    return mix @ mix.t() / d_in + 0.05 * torch.eye(d_in, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["normal", "uniform", "ones"])
@pytest.mark.parametrize("rounding", [round_nearest, round_weight])
def test_pairs_of_products_fit_into_16_bits(kind, rounding):
    """As vpmaddubsw adds them: every activation of 0 or 255 that makes a sum largest, and random ones."""
    rounded = rounding(weight(kind), moment())
    q = np.pad(rounded.weight.numpy().astype(np.int32), ((0, 0), (0, 1))).reshape(24, -1, 2)
    activations = np.random.default_rng(0).integers(0, 256, (50, 1, q.shape[1], 2))
    extremes = [255 * (q > 0), 255 * (q < 0), np.full_like(q, 255)]
    for x in (*activations, *extremes):
        sums = (x * q).sum(-1)
        assert sums.max() <= 32767
        assert sums.min() >= -32768
    assert largest_pair_sum(rounded.weight) <= PAIR_LIMIT


def test_the_oracle_sees_weights_that_saturate():
    assert largest_pair_sum(torch.tensor([[127, 2, 0]], dtype=torch.int8)) == 129
    assert largest_pair_sum(torch.tensor([[-127, -3], [127, -127]], dtype=torch.int8)) == 130


def loss(W, rounded, C):
    lost = W.double() - rounded.dense()
    return float(((lost @ C) * lost).sum())


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_making_up_for_errors_loses_less_than_rounding_to_the_nearest(kind):
    W, C = weight(kind), moment()
    assert loss(W, round_weight(W, C), C) < 0.8 * loss(W, round_nearest(W, C), C)


def test_trained_weights_keep_more_than_seven_bits():
    """A bell of weights loses less than with 7 bits of the full range."""
    W, C = weight("normal", 64, 256), torch.eye(256, dtype=torch.float64)
    step = W.abs().amax(1, keepdim=True) / 63
    seven = float((W - torch.round(W / step) * step).double().square().sum())
    assert loss(W, round_nearest(W, C), C) < 0.6 * seven


def test_a_weight_of_zeros_and_inputs_of_zeros_are_rounded():
    rounded = round_weight(torch.zeros(3, 4), torch.zeros(4, 4))
    assert (rounded.weight == 0).all()
    assert rounded.scale.isfinite().all()
