"""ProjectedRNN computes what torch's recurrent layers do, whether its input weights are dense, watched or sketched."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from panther.nn import SKLinear
from panther.nn.recurrent import ProjectedRNN

KINDS = [
    (nn.LSTM, {}),
    (nn.LSTM, {"batch_first": True, "bidirectional": True, "num_layers": 2}),
    (nn.LSTM, {"bias": False, "bidirectional": True}),
    (nn.GRU, {"batch_first": True, "num_layers": 2}),
    (nn.GRU, {"bidirectional": True}),
    (nn.RNN, {"num_layers": 2, "bidirectional": True}),
    (nn.RNN, {"nonlinearity": "relu", "bias": False}),
]
D_IN, HIDDEN = 10, 8


def pair(kind, options):
    torch.manual_seed(0)
    rnn = kind(D_IN, HIDDEN, **options).eval()
    return rnn, ProjectedRNN(copy.deepcopy(rnn))


def states(rnn, batch):
    shape = (rnn.num_layers * (1 + rnn.bidirectional), *batch, HIDDEN)
    first = torch.randn(shape)
    return (first, torch.randn(shape)) if rnn.mode == "LSTM" else first


def flat(result):
    out, last = result
    return [out, *(last if isinstance(last, tuple) else [last])]


def same(found, expected):
    found, expected = flat(found), flat(expected)
    assert len(found) == len(expected)
    for y, wanted in zip(found, expected, strict=True):
        assert y.shape == wanted.shape
        assert torch.allclose(y, wanted, atol=1e-6)


@pytest.mark.parametrize(("kind", "options"), KINDS, ids=str)
@pytest.mark.parametrize("watched", [False, True])
def test_it_computes_what_torch_does(kind, options, watched):
    rnn, ours = pair(kind, options)
    if watched:
        ours.input_l0.register_forward_hook(lambda *_: None)
    x = torch.randn(5, 3, D_IN)
    batch = 5 if rnn.batch_first else 3
    same(ours(x), rnn(x))
    hx = states(rnn, (batch,))
    same(ours(x, hx), rnn(x, hx))
    alone, start = torch.randn(5, D_IN), states(rnn, ())
    same(ours(alone), rnn(alone))
    same(ours(alone, start), rnn(alone, start))


@pytest.mark.parametrize(("kind", "options"), KINDS, ids=str)
def test_packed_sequences(kind, options):
    rnn, ours = pair(kind, options)
    batch_first = options.get("batch_first", False)
    x = torch.randn(3, 6, D_IN) if batch_first else torch.randn(6, 3, D_IN)
    packed = pack_padded_sequence(x, torch.tensor([4, 6, 2]), batch_first=batch_first, enforce_sorted=False)
    hx = states(rnn, (3,))
    for given in ((packed,), (packed, hx)):
        (y, last), (expected, ends) = ours(*given), rnn(*given)
        padded, wanted = (pad_packed_sequence(each)[0] for each in (y, expected))
        same((padded, last), (wanted, ends))


@pytest.mark.parametrize(("kind", "options"), KINDS, ids=str)
def test_sketched_input_weights_are_those_of_the_dense_layer(kind, options):
    """Of a product of factors, the kernel with the first outside computes what torch's does with the whole weight."""
    rnn, ours = pair(kind, options)
    for layer in range(rnn.num_layers):
        dense = getattr(ours, f"input_l{layer}")
        sketched = SKLinear.from_linear(dense, 1, 2)
        setattr(ours, f"input_l{layer}", sketched)
        W, suffixes = sketched.dense_weight().detach(), ours.suffixes(layer)
        for suffix, part in zip(suffixes, W.chunk(len(suffixes)), strict=True):
            rnn.get_parameter(f"weight_ih_{suffix}").data.copy_(part)
    x = torch.randn(5, 3, D_IN)
    same(ours(x), rnn(x))
    ours(x)[0].square().sum().backward()
    assert all(getattr(ours, f"input_l{layer}").S1s.grad.any() for layer in range(rnn.num_layers))


def test_a_single_direction_keeps_its_parameters():
    rnn = nn.GRU(D_IN, HIDDEN, num_layers=2)
    ours = ProjectedRNN(rnn)
    assert ours.input_l1.weight is rnn.weight_ih_l1
    assert ours.weight_hh_l1 is rnn.weight_hh_l1
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in rnn.parameters())


def test_dropout_between_layers_falls_in_training_alone():
    rnn, ours = pair(nn.LSTM, {"num_layers": 2, "dropout": 0.5})
    x = torch.randn(5, 3, D_IN)
    same(ours(x), rnn(x))
    ours.train()
    assert not torch.equal(ours(x)[0], ours(x)[0])
