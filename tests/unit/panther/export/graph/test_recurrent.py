"""Recurrent layers over a number of steps that varies; the oracle is torch's own layer in float64."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from panther.export import ExportError
from panther.nn import SKLinear

AXES = {"x": {0: "batch", 1: "time"}}


class Over(nn.Module):
    """A recurrent layer between two linear ones, with all that it returns."""

    def __init__(self, kind, **options):
        super().__init__()
        self.before = SKLinear(12, 16, 1, 2)
        self.layer = kind(16, 8, **options)
        self.after = nn.Linear(8 * (2 if options.get("bidirectional") else 1), 5)

    def forward(self, x):
        x = self.before(x)
        y, state = self.layer(x if self.layer.batch_first else x.transpose(0, 1))
        state = state if isinstance(state, tuple) else (state,)
        return self.after(y if self.layer.batch_first else y.transpose(0, 1)), *(part.transpose(0, 1) for part in state)


CASES = [
    (nn.LSTM, {"batch_first": True, "bidirectional": True, "num_layers": 2, "dropout": 0.5}),
    (nn.LSTM, {"bias": False}),
    (nn.GRU, {"batch_first": True}),
    (nn.GRU, {"bidirectional": True, "num_layers": 2}),
    (nn.RNN, {"batch_first": True, "bidirectional": True}),
    (nn.RNN, {"nonlinearity": "relu", "num_layers": 2}),
]


@pytest.mark.parametrize(("kind", "options"), CASES, ids=lambda value: getattr(value, "__name__", None))
def test_any_number_of_steps(kind, options, export, run):
    model = Over(kind, **options).eval()
    report = export(model, torch.randn(3, 7, 12), dynamic_axes=AXES)
    assert report.card.check.max_relative_error < 1e-5
    for shape in ((1, 1), (2, 19)):
        x = torch.randn(*shape, 12)
        expected = model.double()(x.double())
        model.float()
        for ours, theirs in zip(run(report.path, x=x), expected, strict=True):
            assert ours.shape == tuple(theirs.shape)
            np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-5)


class FromState(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer, self.states = kind(6, 4, batch_first=True), 2 if kind is nn.LSTM else 1

    def forward(self, x, start):
        state = start.unsqueeze(0)
        return self.layer(x, (state, 2 * state) if self.states == 2 else state)[0]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_state_to_start_from(kind, export, run):
    model = FromState(kind).eval()
    axes = AXES | {"start": {0: "batch"}}
    report = export(model, (torch.randn(3, 7, 6), torch.randn(3, 4)), dynamic_axes=axes)
    x, start = torch.randn(2, 11, 6), torch.randn(2, 4)
    np.testing.assert_allclose(run(report.path, x=x, start=start)[0], model(x, start).detach().numpy(), atol=1e-5)


def test_one_sequence_without_a_batch(export, run):
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.GRU(6, 4)

        def forward(self, x):
            y, state = self.layer(x)
            return y, state

    model = One().eval()
    report = export(model, torch.randn(7, 6), dynamic_axes={"x": {0: "time"}})
    x = torch.randn(12, 6)
    for ours, theirs in zip(run(report.path, x=x), model(x), strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-5)


def test_the_file_holds_one_operator_for_the_steps(export):
    report = export(Over(nn.LSTM, batch_first=True), torch.randn(3, 40, 12), dynamic_axes=AXES)
    session = onnxruntime.InferenceSession(report.path)
    assert session.get_inputs()[0].shape == ["batch", "time", 12]
    import onnx

    operators = [node.op_type for node in onnx.load(report.path).graph.node]
    assert operators.count("LSTM") == 1
    assert not {"Loop", "Scan", "Sigmoid"} & set(operators)


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 4, batch_first=True)

    def forward(self, x):
        packed = pack_padded_sequence(x, torch.tensor([7, 5, 3]), batch_first=True)
        return pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0]


def test_packed_sequences_are_refused_with_the_way_out(export, tmp_path):
    with pytest.raises(ExportError, match=r"layer 'lstm' \(LSTM\) is called with a packed sequence.*torch\.gather"):
        export(Packed(), torch.randn(3, 7, 6), dynamic_axes=AXES)
    assert list(tmp_path.iterdir()) == []


def test_projections_are_refused_with_the_way_out(export):
    model = nn.LSTM(6, 8, batch_first=True, proj_size=4).eval()
    with pytest.raises(ExportError, match=r"layer 'LSTM' \(LSTM\) has proj_size=4, .*an nn\.Linear behind it"):
        export(model, torch.randn(3, 7, 6))
