import copy

import pytest
import torch
from torch import nn

import panther as pr
from panther.convert import ConversionError
from panther.convert.deviation import Reference
from panther.nn import SKLinear


def output_error(model, original, x):
    with torch.no_grad():
        y = original(x)
        return ((model(x) - y).norm() / y.norm()).item()


def stored(model):
    return sum(
        sum(p.numel() for p in module.parameters(recurse=False)) + sum(b.numel() for b in module.buffers(recurse=False))
        for module in model.modules()
        if isinstance(module, nn.Linear | SKLinear)
    )


def is_as_before(model, original):
    assert repr(model) == repr(original)
    assert [type(module) for module in model.modules()] == [type(module) for module in original.modules()]
    for (name, value), (_, before) in zip(model.state_dict().items(), original.state_dict().items(), strict=True):
        assert torch.equal(value, before), name
    flags = [(p.requires_grad) for p in model.parameters()]
    assert flags == [p.requires_grad for p in original.parameters()]
    assert [m.training for m in model.modules()] == [m.training for m in original.modules()]
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("ratio", [0.75, 0.5, 0.35])
def test_keeps_the_ratio_and_reports_what_is_there(mlp, inputs, ratio, calibrated):
    original = copy.deepcopy(mlp)
    report = pr.sketch_(mlp, ratio=ratio, calibration=inputs if calibrated else None)
    assert stored(mlp) == report.after.stored
    assert stored(original) == report.before.stored
    assert ratio - 0.12 < report.ratio <= ratio
    assert report.replaced == ("0", "2")
    assert set(report.kept) == {"4"}
    assert "too small" in report.kept["4"]
    for layer, module in zip(report.layers, (mlp[0], mlp[2], mlp[4]), strict=True):
        assert layer.converted == isinstance(module, SKLinear)
        if layer.converted:
            assert (layer.num_terms, layer.low_rank) == (module.num_terms, module.low_rank)
            assert layer.low_rank % 8 == 0
            W = original.get_submodule(layer.name).weight
            assert layer.weight_error == pytest.approx(((W - module.dense_weight()).norm() / W.norm()).item(), rel=1e-3)
            assert layer.after.stored == module.parameter_count().stored
            assert layer.after.multiply_adds_per_row < layer.before.multiply_adds_per_row
    if calibrated:
        assert report.output_error == pytest.approx(output_error(mlp, original, inputs), rel=1e-3)
        assert report.output_cosine == pytest.approx(
            nn.functional.cosine_similarity(mlp(inputs), original(inputs)).mean().item(), abs=1e-5
        )


def test_calibration_beats_the_weight_svd_on_held_out_inputs(mlp, inputs):
    by_weight, by_data = copy.deepcopy(mlp), copy.deepcopy(mlp)
    pr.sketch_(by_weight, ratio=0.35)
    pr.sketch_(by_data, ratio=0.35, calibration=inputs[:300])
    assert output_error(by_data, mlp, inputs[300:]) < 0.5 * output_error(by_weight, mlp, inputs[300:])


def test_data_error_is_that_of_the_layers_outputs_about_their_mean(mlp, inputs):
    original = copy.deepcopy(mlp)
    report = pr.sketch_(mlp, ratio=0.5, calibration=inputs)
    y, y_hat = original[0](inputs), mlp[0](inputs)
    centred = (y - y.mean(0)).norm()
    assert report.layers[0].data_error == pytest.approx(((y - y_hat).norm() / centred).item(), rel=1e-3)
    torch.testing.assert_close(y.mean(0), y_hat.mean(0), atol=1e-4, rtol=0)  # the bias takes up the mean


def test_max_bytes_is_of_the_whole_model(mlp, inputs):
    report = pr.sketch_(mlp, max_bytes=60_000, calibration=inputs)
    held = sum(t.numel() * t.element_size() for t in (*mlp.parameters(), *mlp.buffers()))
    assert report.model_bytes_after == held <= 60_000
    assert held > 45_000


def test_max_error_is_kept_on_the_outputs_by_a_smaller_model(mlp, inputs):
    loose, tight = copy.deepcopy(mlp), copy.deepcopy(mlp)
    of_loose = pr.sketch_(loose, max_error=0.2, calibration=inputs)
    of_tight = pr.sketch_(tight, max_error=0.05, calibration=inputs)
    assert output_error(loose, mlp, inputs) <= 0.2
    assert output_error(tight, mlp, inputs) <= 0.05
    assert of_loose.ratio < of_tight.ratio < 1


def test_max_error_without_calibration_is_of_each_weight(mlp):
    report = pr.sketch_(mlp, max_error=0.4)
    assert report.replaced
    assert all(layer.weight_error <= 0.4 for layer in report.layers)


@pytest.mark.parametrize(
    "calibration",
    [
        lambda x: x,
        lambda x: [x[:200], x[200:]],
        lambda x: iter([x]),
        lambda x: [(x, torch.zeros(len(x), dtype=torch.long))],
        lambda x: {"input": x, "labels": torch.zeros(len(x))},
        lambda x: torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.zeros(len(x))), batch_size=100),
    ],
    ids=["tensor", "list", "iterator", "with labels", "dict", "loader"],
)
def test_takes_calibration_in_every_form(mlp, inputs, calibration):
    expected = pr.sketch_(copy.deepcopy(mlp), ratio=0.5, calibration=inputs, probes=0)
    report = pr.sketch_(mlp, ratio=0.5, calibration=calibration(inputs), probes=0)
    assert [layer.rank for layer in report.layers] == [layer.rank for layer in expected.layers]
    assert report.output_error == pytest.approx(expected.output_error, rel=1e-3)


def test_forward_calls_the_model_in_another_way(mlp, inputs):
    report = pr.sketch_(
        mlp, ratio=0.5, calibration=[{"rows": inputs}], forward=lambda model, batch: model(batch["rows"])
    )
    assert report.output_error < 0.2


@pytest.mark.parametrize(("rows", "at_most"), [(1, 1.5), (3, 1.0), (30, 0.6)])
def test_few_rows_do_no_harm(mlp, inputs, rows, at_most):
    """Compared on inputs that calibration did not see, with the truncated SVD that needs none."""
    by_weight, by_data = copy.deepcopy(mlp), copy.deepcopy(mlp)
    pr.sketch_(by_weight, ratio=0.75)
    pr.sketch_(by_data, ratio=0.75, calibration=inputs[:rows])
    assert output_error(by_data, mlp, inputs[100:]) < at_most * output_error(by_weight, mlp, inputs[100:])


def test_constant_inputs_do_no_harm(mlp):
    pr.sketch_(mlp, ratio=0.5, calibration=torch.zeros(50, 96))
    assert all(bool(value.isfinite().all()) for value in mlp.state_dict().values())


def test_keeps_training_mode_and_requires_grad(mlp, inputs):
    mlp.train()
    mlp[2].eval()
    mlp[0].weight.requires_grad = False
    pr.sketch_(mlp, ratio=0.5, calibration=inputs)
    assert mlp[0].training
    assert not mlp[2].training
    assert [mlp[0].S1s.requires_grad, mlp[0].S2s.requires_grad, mlp[0].bias.requires_grad] == [False, False, True]
    assert mlp[2].S1s.requires_grad


def test_is_the_same_each_time_and_leaves_the_global_generator(mlp, inputs):
    other = copy.deepcopy(mlp)
    state = torch.get_rng_state()
    pr.sketch_(mlp, ratio=0.5, calibration=inputs)
    assert torch.equal(state, torch.get_rng_state())
    pr.sketch_(other, ratio=0.5, calibration=inputs)
    for mine, theirs in zip(mlp.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_keeps_the_dtype(mlp, inputs, dtype):
    original = copy.deepcopy(mlp)
    mlp.to(dtype)
    report = pr.sketch_(mlp, ratio=0.5, calibration=inputs.to(dtype))
    assert mlp[0].S1s.dtype == mlp[0].U1s.dtype == dtype
    assert report.before.bytes == report.before.stored * dtype.itemsize
    assert output_error(mlp.float(), original, inputs) < 0.25


def test_skip_and_filter(mlp, inputs):
    by_skip, by_filter = copy.deepcopy(mlp), copy.deepcopy(mlp)
    assert pr.sketch_(by_skip, ratio=0.5, skip=["0", "4"]).replaced == ("2",)
    assert pr.sketch_(by_filter, ratio=0.5, filter_fn=lambda module, name: module.in_features == 128).replaced == ("2",)
    assert isinstance(by_skip[0], nn.Linear)
    nested = nn.ModuleDict({"encoder": copy.deepcopy(mlp), "head": nn.Linear(64, 64)})
    assert pr.sketch_(nested, ratio=0.6, skip="encoder").replaced == ("head",)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({}, ValueError, "give one of ratio, max_bytes and max_error; given: none"),
        ({"ratio": 0.5, "max_bytes": 3}, ValueError, "given: ratio, max_bytes"),
        ({"ratio": 0}, ValueError, r"ratio \(0\)"),
        ({"ratio": 1.5}, ValueError, r"ratio \(1.5\)"),
        ({"ratio": 0.01}, ValueError, r"ratio \(0.01\) can't be met: .* take 0\.\d+"),
        ({"max_bytes": 100}, ValueError, r"max_bytes \(100\) can't be met: .* take \d+"),
        ({"max_error": -1}, ValueError, r"max_error \(-1\)"),
        ({"ratio": 0.5, "skip": ["3"]}, ValueError, "skip pattern '3' matches no linear layer"),
        ({"ratio": 0.5, "probes": -1}, ValueError, r"probes \(-1\)"),
        (
            {"ratio": 0.5, "filter_fn": lambda *_: False},
            ConversionError,
            "convolution or embedding to convert that filter_fn",
        ),
        ({"ratio": 0.5, "calibration": []}, ConversionError, "calibration holds no batch"),
        ({"ratio": 0.5, "calibration": 5}, ConversionError, r"calibration \(int\)"),
        ({"ratio": 0.5, "calibration": torch.full((3, 96), torch.inf)}, ConversionError, "not finite"),
        ({"ratio": 0.5, "calibration": torch.ones(3, 95)}, ConversionError, "mat1 and mat2"),
        ({"ratio": 0.5, "filter_fn": lambda *_: 1 / 0}, ZeroDivisionError, "division"),
    ],
)
def test_on_any_error_the_model_is_as_it_was(mlp, arguments, error, match):
    mlp[0].train()
    mlp[2].eval()
    original = copy.deepcopy(mlp)
    with pytest.raises(error, match=match):
        pr.sketch_(mlp, **arguments)
    is_as_before(mlp, original)


@pytest.mark.parametrize("at", range(1, 6))
def test_an_error_at_any_forward_pass_leaves_the_model_as_it_was(mlp, inputs, at):
    class Failing(nn.Module):
        calls = 0

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            self.calls += 1
            if self.calls == at:
                raise RuntimeError("out of memory")
            return self.inner(x)

    model = Failing(mlp)
    original = copy.deepcopy(model)
    with pytest.raises((RuntimeError, ConversionError), match="out of memory"):
        pr.sketch_(model, max_error=0.3, calibration=[inputs[:200], inputs[200:]])
    is_as_before(model, original)


def test_an_interruption_between_swaps_takes_all_back(mlp, inputs, monkeypatch):
    original = copy.deepcopy(mlp)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("panther.convert.plan.layer_report", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pr.sketch_(mlp, ratio=0.5, calibration=inputs)
    is_as_before(mlp, original)


@pytest.mark.parametrize(
    ("model", "error", "match"),
    [
        (nn.Linear(8, 8), ValueError, "use SKLinear.from_linear"),
        (nn.ReLU(), ConversionError, "no linear layer, convolution or embedding to convert"),
        ("model", TypeError, r"model \(str\) must be an nn.Module"),
    ],
)
def test_refuses_what_holds_no_layers(model, error, match):
    with pytest.raises(error, match=match):
        pr.sketch_(model, ratio=0.5)


def test_the_report_shows_itself(mlp, inputs):
    report = pr.sketch_(mlp, ratio=0.5, calibration=inputs)
    text = str(report)
    for expected in (
        "96 → 128",
        "too small",
        "together",
        "relative error",
        "whole model",
        "Frobenius",
        "parameters and bytes with U",
    ):
        assert expected in text
    assert text.splitlines()[0] in report._repr_html_()
    values = report.as_dict()
    assert values["ratio"] == report.ratio
    assert values["layers"][0]["names"] == ["0"]
    assert values["layers"][0]["after"]["fixed"] > 0
    import json

    assert json.loads(json.dumps(values)) == values


def test_outputs_without_derivatives_are_noted_and_the_layers_still_fitted(mlp, inputs):
    def forward(model, batch):
        with torch.no_grad():
            return model(batch)

    by_weight = copy.deepcopy(mlp)
    of_weight = pr.sketch_(by_weight, ratio=0.5)
    assert "truncated SVD" in of_weight.notes[0]
    original = copy.deepcopy(mlp)
    report = pr.sketch_(mlp, ratio=0.5, calibration=inputs[:300], forward=forward)
    assert "no derivatives" in report.notes[0]
    assert output_error(mlp, original, inputs[300:]) < output_error(by_weight, original, inputs[300:])


def test_plans_are_compared_on_a_sample_spread_over_the_batches():
    batches = list(torch.arange(1200.0).view(1200, 1).split(100))
    reference = Reference(nn.Identity(), batches, None)
    sample = reference.sample()
    assert (reference.batches, sample.batches) == (12, 3)
    assert [float(outputs[0][0]) for _, outputs in sample._batches] == [0.0, 400.0, 800.0]
    # too few rows for a quarter
    assert Reference(nn.Identity(), batches[:4], None).sample().batches == 3
    assert Reference(nn.Identity(), batches[:1], None).sample().batches == 1


def test_the_error_on_all_batches_is_reported_where_plans_were_compared_on_a_sample():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 96), nn.Tanh(), nn.Linear(96, 96)).eval()
    batches = list(torch.randn(1200, 96).split(100))
    reference = Reference(model, batches, None)
    report = pr.sketch_(model, ratio=0.5, calibration=batches)
    assert report.output_error == pytest.approx(reference.deviation(model).error)
    assert "12 calibration batches, 1,200 output rows" in report.measured_on
