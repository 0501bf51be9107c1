"""Recurrent layers with sketched input weights in a file: a product before torch's operator."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from panther.export import ExportError
from panther.export.graph.projected import lower_recurrent
from panther.nn import SKLinear
from panther.nn.recurrent import ProjectedRNN

KINDS = [
    (nn.LSTM, {"bidirectional": True, "num_layers": 2}),
    (nn.LSTM, {"bias": False}),
    (nn.GRU, {"num_layers": 2}),
    (nn.RNN, {"nonlinearity": "relu", "bidirectional": True}),
]


def projected(kind=nn.LSTM, *, sketched=True, **options):
    torch.manual_seed(0)
    made = ProjectedRNN(kind(32, 24, batch_first=True, **options)).eval()
    if sketched:
        made.input_l0 = SKLinear.from_linear(made.input_l0, 1, 4)
    return made


class States(nn.Module):
    """The output and the last states, from given first ones."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x, first):
        out, last = self.rnn(x, (first, first) if self.rnn.mode == "LSTM" else first)
        return out, last[0] if isinstance(last, tuple) else last


@pytest.mark.parametrize(("kind", "options"), KINDS, ids=str)
@pytest.mark.parametrize("sketched", [True, False])
def test_lowered_layers_compute_the_same(kind, options, sketched):
    model = projected(kind, sketched=sketched, **options)
    x = torch.randn(3, 5, 32)
    first = torch.randn(model.num_layers * (1 + model.bidirectional), 3, 24)
    hx = (first, first) if kind is nn.LSTM else first
    expected, alone = model(x, hx), model(x[0])
    lowered, notes = lower_recurrent(model)
    assert len(notes) == sketched
    found = lowered(x, hx)
    assert torch.allclose(found[0], expected[0], atol=1e-6)
    assert torch.allclose(torch.cat(list(found[1])), torch.cat(list(expected[1])), atol=1e-6)
    assert torch.allclose(lowered(x[0])[0], alone[0], atol=1e-6)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_file_runs_any_number_of_steps_and_says_what_was_factored(kind, export, run):
    model = States(projected(kind, num_layers=2)).eval()
    axes = {"x": {0: "batch", 1: "time"}, "first": {1: "batch"}}
    report = export(model, [torch.randn(3, 5, 32), torch.randn(2, 3, 24)], dynamic_axes=axes)
    assert report.card.notes[0].startswith("rnn: input weights of low rank (input_l0 8), as a product before")
    operators = [node.op_type for node in onnx.load(report.path).graph.node]
    assert operators.count(kind.__name__) == 2
    for batch, steps in ((1, 1), (2, 9)):
        x, first = torch.randn(batch, steps, 32), torch.randn(2, batch, 24)
        with torch.no_grad():
            expected = model(x, first)
        for y, wanted in zip(run(report.path, x=x, first=first), expected, strict=True):
            assert np.abs(y - wanted.numpy()).max() < 1e-5


def test_a_packed_sequence_is_refused_with_the_way_out(export):
    class Packing(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = projected()

        def forward(self, x):
            packed = nn.utils.rnn.pack_padded_sequence(x, torch.full((len(x),), 3), batch_first=True)
            return nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0])[0]

    with pytest.raises(ExportError, match=r"packed sequence.*torch\.gather"):
        export(Packing().eval(), torch.randn(2, 5, 32))
