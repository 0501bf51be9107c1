"""Weights in blocks: the layer that is made, its bytes, and its error on inputs of its moments."""

import pytest
import torch

from panther.nn.quantized import BlockLinear, CorrectedLinear
from panther.quantize.blocks import Blocks, Known, estimate, quantize_weight


@pytest.fixture(scope="module")
def layer():
    """A weight, inputs of few directions, and a sensitivity."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(2000, 20, generator=generator) @ torch.randn(20, 144, generator=generator)
    X = X + 0.3 * torch.randn(X.shape, generator=generator) + 0.5
    J = torch.randn(30, 96, generator=generator) * torch.linspace(0.1, 1, 96)
    W = torch.randn(96, 144, generator=generator) / 12
    y = X @ W.t() @ J.t()
    sensitivity = (J.t() @ J / y.square().sum(1).mean()).double()
    return W, X, J, Known((X.t() @ X / len(X)).double(), sensitivity, X.mean(0).double(), X[:500])


def relative(layer, module):
    W, X, J, _ = layer
    with torch.no_grad():
        y, y_hat = X @ W.t() @ J.t(), module(X) @ J.t()
    return float((y - y_hat).square().sum() / y.square().sum())


@pytest.mark.parametrize(
    "blocks",
    [
        Blocks(),
        Blocks(activation_bits=None),
        Blocks(8, activation_bits=None),
        Blocks(8),
        Blocks(4, 32, correction_rank=8),
        Blocks(4, 64, correction_rank=8, activation_bits=None),
    ],
    ids=str,
)
def test_the_predicted_error_is_that_of_the_outputs(layer, blocks):
    W, _, _, known = layer
    made = quantize_weight(W, blocks, known)
    assert made.error == pytest.approx(relative(layer, made.layer), rel=0.25)
    assert made.error < 1.5 * estimate(W, blocks, known)


def test_moments_lose_less_than_rounding_to_the_nearest(layer):
    W, _, _, known = layer
    blocks = Blocks(activation_bits=None)
    assert quantize_weight(W, blocks, known).error < 0.3 * estimate(W, blocks, known)


def test_smaller_blocks_more_bits_and_corrections_lose_less_and_take_more(layer):
    W, _, _, known = layer
    formats = [Blocks(4, 32, 0, None), Blocks(4, 32, 8, None), Blocks(4, 16, 8, None), Blocks(8, 32, 0, None)]
    made = [quantize_weight(W, blocks, known) for blocks in formats]
    errors, sizes = [each.error for each in made], [each.weight_bytes for each in made]
    assert errors == sorted(errors, reverse=True)
    assert sizes == sorted(sizes)
    assert [type(each.layer) for each in made] == [BlockLinear, CorrectedLinear, CorrectedLinear, BlockLinear]


@pytest.mark.parametrize("blocks", [Blocks(), Blocks(8, 32), Blocks(4, 64, correction_rank=20)], ids=str)
def test_bytes_are_those_of_the_layer(layer, blocks):
    W, _, _, known = layer
    made = quantize_weight(W, blocks, known)
    assert made.weight_bytes == made.layer.stored_bytes == blocks.weight_bytes(96, 144)


def test_the_bias_takes_up_the_mean_error(layer):
    W, X, _, known = layer
    bias = torch.randn(96)
    made = quantize_weight(W, Blocks(correction_rank=4, activation_bits=None), known, bias)
    with torch.no_grad():
        lost = (X @ W.t() + bias - made.layer(X)).mean(0)
    assert lost.abs().max() < 1e-4
    assert not torch.equal(made.layer.bias, bias)


@pytest.mark.parametrize(("d_out", "d_in"), [(1, 1), (3, 10), (2, 129)])
def test_odd_and_small_weights(d_out, d_in):
    W = torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(0))
    known = Known(torch.eye(d_in).double(), torch.eye(d_out).double())
    made = quantize_weight(W, Blocks(correction_rank=4), known)
    assert isinstance(made.layer, BlockLinear)  # no rank below both sizes is worth a correction
    assert (made.layer.weight - W).abs().max() < 0.15 * W.abs().max()
    assert made.layer.block_size == {1: 16, 10: 16, 129: 32}[d_in]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 2}, r"bits \(2\) must be one of \[4, 8\]"),
        ({"block_size": 100}, r"block_size \(100\) must be one of \[16, 32, 64, 128, 256\]"),
        ({"activation_bits": 16}, r"activation_bits \(16\) must be one of \[8, None\]"),
        ({"correction_rank": -1}, r"correction_rank \(-1\) must be an integer of at least 0"),
    ],
)
def test_what_is_wrong_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Blocks(**changes)
