import copy
from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import panther as pr
from panther.convert import ConversionError

Rows = namedtuple("Rows", "x y")


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x, y):
        return self.a(x) + self.b(y)


class OfSequences(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.gru = nn.Linear(64, 64), nn.GRU(64, 16)

    def forward(self, sequences):
        out, _ = self.gru(sequences._replace(data=self.fc(sequences.data)))
        return out


class OfState(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 64)

    def forward(self, x, state):
        assert isinstance(state, tuple)
        return self.fc(x) + state[0]


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, torch.optim.swa_utils.AveragedModel, lambda model: torch.compile(model, backend="eager")],
    ids=["DataParallel", "AveragedModel", "compiled"],
)
@pytest.mark.parametrize("named", [False, True])
def test_a_wrapped_model_gets_what_the_wrapped_one_takes(wrap, named):
    torch.manual_seed(0)
    x, y = torch.randn(50, 64), torch.randn(50, 64)
    batch = {"x": x, "y": y, "index": torch.arange(50)} if named else (x, y, torch.arange(50))
    report = pr.sketch_(wrap(TwoInputs()), ratio=0.6, calibration=[batch])
    assert [name.split(".")[-1] for name in report.replaced] == ["a", "b"]


def test_batches_keep_their_kind():
    torch.manual_seed(0)
    x = torch.randn(50, 64)
    report = pr.sketch_(
        TwoInputs(), ratio=0.6, calibration=[Rows(x, -x)], forward=lambda model, batch: model(batch.x, batch.y)
    )
    assert report.replaced == ("a", "b")
    assert pr.sketch_(OfState(), ratio=0.6, calibration=[(x, (x, x))]).replaced == ("fc",)


@pytest.mark.parametrize("in_list", [False, True])
def test_packed_sequences_go_in_as_they_are(in_list):
    torch.manual_seed(0)
    packed = pack_sequence([torch.randn(length, 64) for length in (9, 7, 2)])
    model = OfSequences()
    teacher = copy.deepcopy(model)
    assert pr.sketch_(model, ratio=0.6, calibration=[packed] if in_list else packed).replaced == (
        "fc",
        "gru.input_l0",
    )
    assert pr.distill_(model, teacher, [packed], steps=2, progress=False).steps == 2
    assert isinstance(packed, PackedSequence)


def test_inputs_with_a_graph_of_their_own_get_no_gradients(mlp, inputs):
    leaf = inputs.requires_grad_()
    teacher = copy.deepcopy(mlp)
    batches = [leaf[:200], 2 * leaf[200:]]
    pr.sketch_(mlp, ratio=0.5, calibration=batches)
    pr.distill_(mlp, teacher, batches, steps=6, progress=False)
    assert leaf.grad is None


def test_another_default_device_changes_nothing(mlp, inputs):
    teacher = copy.deepcopy(mlp)
    expected = pr.sketch_(copy.deepcopy(mlp), ratio=0.5, calibration=inputs)
    with torch.device("meta"):
        report = pr.sketch_(mlp, ratio=0.5, calibration=inputs)
        pr.distill_(mlp, teacher, [inputs], steps=2, progress=False)
    assert report.output_error == pytest.approx(expected.output_error)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("calibrated", [False, True])
def test_a_caller_without_derivatives_gets_the_same_model_to_train_on(mlp, inputs, context, calibrated):
    teacher = copy.deepcopy(mlp)
    expected = pr.sketch_(copy.deepcopy(mlp), ratio=0.5, calibration=inputs if calibrated else None)
    with context():
        rows = inputs.clone()
        report = pr.sketch_(mlp, ratio=0.5, calibration=rows if calibrated else None)
        pr.distill_(mlp, teacher, [rows], steps=2, progress=False)
    assert report.as_dict() == expected.as_dict()
    # inputs made in inference mode are good for a caller outside of it too
    pr.distill_(mlp, teacher, [rows], steps=2, progress=False)
    mlp(inputs).sum().backward()
    assert mlp[0].S1s.grad is not None


def test_a_model_made_in_inference_mode_is_refused_as_it_was(inputs):
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(96, 96))
    with pytest.raises(ConversionError, match=r"0\.weight was created under torch\.inference_mode"):
        pr.sketch_(model, ratio=0.5, calibration=inputs)
    assert model[0].weight.requires_grad
    student = nn.Sequential(nn.Linear(96, 96))
    pr.sketch_(student, ratio=0.5)
    assert pr.distill_(student, model, [inputs], steps=2, progress=False).steps == 2


@pytest.mark.parametrize("budget", [{"ratio": 0.5}, {"max_error": 0.1}])
def test_calibration_without_rows_is_refused(mlp, inputs, budget):
    with pytest.raises(ConversionError, match="is empty: it has no rows"):
        pr.sketch_(mlp, calibration=inputs[:0], **budget)
    assert isinstance(mlp[0], nn.Linear)
    with pytest.raises(ConversionError, match=r"batch 1 .* is empty"):
        pr.sketch_(mlp, calibration=[inputs, inputs[:0]], **budget)


class Masked(nn.Module):
    """Scores of which some are ruled out, as in attention, pointer networks or beam search."""

    def __init__(self, body, value):
        super().__init__()
        self.body, self.value = body, value

    def forward(self, x):
        scores = self.body(x)
        return scores.masked_fill(torch.arange(scores.shape[-1]) % 3 == 1, self.value)


def test_infinite_outputs_are_left_out_of_every_comparison(mlp, inputs):
    zeros, masked = Masked(copy.deepcopy(mlp), 0.0), Masked(mlp, -torch.inf)
    teacher = copy.deepcopy(masked)
    # zeros in the same places are as well met by every model
    expected = pr.sketch_(zeros, ratio=0.5, calibration=inputs)
    report = pr.sketch_(masked, ratio=0.5, calibration=inputs)
    assert [layer.rank for layer in report.layers] == [layer.rank for layer in expected.layers]
    assert report.output_error == pytest.approx(expected.output_error, rel=1e-4)
    assert report.output_cosine == pytest.approx(expected.output_cosine, rel=1e-4)
    assert not expected.notes
    assert "infinite" in report.notes[0]
    result = pr.distill_(masked, teacher, [inputs], steps=20, progress=False)
    assert 0 < result.error < result.error_before


def test_a_model_that_overflows_where_the_original_does_not_is_never_within_the_error(mlp, inputs):
    def forward(model, batch):
        y = model(batch)
        return y if isinstance(model[2], nn.Linear) else y + torch.inf

    report = pr.sketch_(mlp, max_error=0.5, calibration=inputs, filter_fn=lambda _, name: name == "2", forward=forward)
    assert report.replaced == ()
    assert report.output_error == 0


class FrozenEncoder(nn.Module):
    def __init__(self, context):
        super().__init__()
        self.encoder, self.head = nn.Linear(96, 96), nn.Linear(96, 96)
        self.context = context

    def forward(self, x):
        with self.context():
            hidden = self.encoder(x)
        return self.head(hidden.clone())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_part_that_runs_without_derivatives_is_fitted_to_its_own_outputs(inputs, context):
    torch.manual_seed(0)
    model = FrozenEncoder(context)
    report = pr.sketch_(model, ratio=0.5, calibration=inputs)
    assert report.replaced == ("encoder", "head")
    assert report.notes == ("fitted to their own outputs, which run without derivatives: encoder",)
    assert report.output_error < 0.7
