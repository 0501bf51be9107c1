"""Recurrent eligible layers: their input weights are converted, those of the state stay and are named."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import panther as pr
from panther.convert.recurrent import is_plain_recurrent
from panther.nn import SKLinear
from panther.nn.recurrent import ProjectedRNN


class Tagger(nn.Module):
    def __init__(self, kind=nn.LSTM, **options):
        super().__init__()
        self.rnn = kind(64, 48, batch_first=True, **options)
        self.out = nn.Linear(48 * (1 + self.rnn.bidirectional), 4)

    def forward(self, x):
        return self.out(self.rnn(x)[0])


def sequences():
    random = torch.Generator().manual_seed(1)
    return torch.randn(32, 6, 12, generator=random) @ torch.randn(12, 64, generator=random)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(nn.LSTM, {"bidirectional": True}), (nn.GRU, {"num_layers": 2}), (nn.RNN, {})],
    ids=["LSTM", "GRU", "RNN"],
)
def test_input_weights_are_converted_and_the_file_restores_them(kind, options, tmp_path):
    torch.manual_seed(0)
    model, x = Tagger(kind, **options).eval(), sequences()
    original = copy.deepcopy(model)
    report = pr.sketch_(model, ratio=0.7, calibration=x)
    assert "rnn.input_l0" in report.replaced
    assert isinstance(model.rnn, ProjectedRNN)
    assert isinstance(model.rnn.input_l0, SKLinear)
    (group,) = report.unreached
    assert group.kind == kind.__name__
    assert "state weights" in group.reason
    assert group.parameters == sum(p.numel() for name, p in original.rnn.named_parameters() if "_hh_" in name)
    with torch.no_grad():
        y, expected = model(x), original(x)
    measured = ((y - expected).norm() / expected.norm()).item()
    assert report.output_error == pytest.approx(measured, rel=1e-3)
    assert measured < 0.1
    assert report.model_parameters_after == sum(t.numel() for t in (*model.parameters(), *model.buffers()))
    pr.save(model, tmp_path / "small.safetensors")
    fresh = copy.deepcopy(original)
    assert set(pr.restore_(fresh, tmp_path / "small.safetensors")) == set(report.replaced)
    assert torch.equal(fresh(x), model(x))


def test_where_nothing_is_converted_the_layer_is_torchs():
    torch.manual_seed(0)
    model = Tagger().eval()
    rnn = model.rnn
    report = pr.sketch_(model, max_error=0.0, calibration=sequences())
    assert not any(name.startswith("rnn") for name in report.replaced)
    assert model.rnn is rnn


def test_distillation_trains_the_factors():
    torch.manual_seed(0)
    model, x = Tagger(nn.GRU).eval(), sequences()
    original = copy.deepcopy(model)
    pr.sketch_(model, ratio=0.5)
    result = pr.distill_(model, original, x.split(8), steps=10, progress=False)
    assert result.error < result.error_before


def test_quantization_leaves_recurrent_layers_alone():
    torch.manual_seed(0)
    model = Tagger().eval()
    rnn = model.rnn
    pr.quantize_(model, calibration=sequences())
    assert model.rnn is rnn


def with_forward():
    rnn = nn.GRU(4, 4)
    rnn.forward = rnn.forward
    return rnn


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.LSTM(4, 8, proj_size=2),
        lambda: nn.LSTMCell(4, 4),
        lambda: type("Own", (nn.GRU,), {})(4, 4),
        lambda: parametrizations.weight_norm(nn.GRU(4, 4), "weight_ih_l0"),
        with_forward,
    ],
    ids=["projection", "cell", "subclass", "parametrised", "own forward"],
)
def test_layers_of_another_kind_are_left(make):
    assert not is_plain_recurrent(make())
    assert is_plain_recurrent(nn.GRU(4, 4))
