"""Whole models with convolutions: converted, reported, saved, restored and distilled."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import panther as pr
from panther.nn import SKConv1d, SKConv2d
from panther.nn.sketched_conv import SketchedConv


def network(norm=True):
    torch.manual_seed(0)
    layers = []
    for c_in, c_out, options in ((8, 32, {}), (32, 48, {"stride": 2}), (48, 64, {"kernel_size": 1})):
        layers += [nn.Conv2d(c_in, c_out, **({"kernel_size": 3, "padding": 1} | options)), nn.ReLU()]
        if norm:
            layers.insert(-1, nn.BatchNorm2d(c_out))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 32)).eval()


def inputs(count=64):
    random = torch.Generator().manual_seed(3)
    mix = torch.randn(8, 3, generator=random)
    return torch.einsum("dc,nchw->ndhw", mix, torch.randn(count, 3, 9, 9, generator=random))


def test_the_report_is_true_of_the_model():
    model, x = network(), inputs()
    original = copy.deepcopy(model)
    report = pr.sketch_(model, ratio=0.5, calibration=x.split(16))
    assert report.ratio <= 0.5
    converted = {name: module for name, module in model.named_modules() if isinstance(module, SketchedConv)}
    assert set(converted) <= set(report.replaced)
    assert len(converted) >= 2
    for layer in report.layers:
        if layer.name in converted:
            module = converted[layer.name]
            assert (layer.in_features, layer.out_features) == (module.in_channels, module.out_channels)
            assert layer.convolution.kernel_size == module.kernel_size
            assert layer.convolution.terms == module.terms
            assert layer.after.stored == sum(t.numel() for t in module.state_dict().values())
            dense = original.get_submodule(layer.name)
            assert layer.before.stored == sum(p.numel() for p in dense.parameters())
    stored = sum(p.numel() for p in model.parameters())
    fixed = sum(b.numel() for name, b in model.named_buffers() if name.endswith(("U1s", "U2s")))
    assert report.model_parameters_after == stored + fixed
    with torch.no_grad():
        y, y_hat = original(x), model(x)
    assert report.output_error == pytest.approx(((y - y_hat).norm() / y.norm()).item(), rel=1e-3)
    text = str(report)
    assert "32 → 48, 3x3" in text
    assert json.loads(json.dumps(report.as_dict()))["layers"][0]["convolution"]["kernel_size"] == [3, 3]
    assert not any("Conv" in group.kind for group in report.unreached)


def test_calibration_is_closer_than_the_weights_alone():
    model, x = network(norm=False), inputs(256)
    plain, original = copy.deepcopy(model), copy.deepcopy(model)
    pr.sketch_(model, ratio=0.4, calibration=x[:128].split(32))
    pr.sketch_(plain, ratio=0.4)
    errors = [float(pr.approximation_quality(original, candidate, x[128:])) for candidate in (model, plain)]
    assert errors[0] < 0.7 * errors[1]


def test_convolutions_in_play_cost_nothing_at_the_same_bytes():
    model, x = network(norm=False), inputs()
    total = sum(p.numel() * 4 for p in model.parameters())
    errors = []
    for filter_fn in (None, lambda module, name: isinstance(module, nn.Linear)):
        candidate = copy.deepcopy(model)
        report = pr.sketch_(candidate, max_bytes=total - 1500, calibration=[x], filter_fn=filter_fn)
        errors.append(report.output_error)
        assert report.model_bytes_after <= total - 1500
    assert errors[0] <= errors[1]


def test_a_budget_of_error_and_of_bytes():
    model, x = network(), inputs()
    report = pr.sketch_(copy.deepcopy(model), max_error=0.2, calibration=[x])
    assert report.output_error <= 0.2
    assert report.ratio < 1
    for layer in pr.sketch_(copy.deepcopy(model), max_error=0.3).layers:
        assert layer.weight_error <= 0.3


def test_saved_restored_and_loaded(tmp_path):
    model, x = network(), inputs()
    fresh = copy.deepcopy(model)
    report = pr.sketch_(model, ratio=0.5, calibration=[x])
    assert {layer.convolution.terms for layer in report.layers if layer.convolution} >= {"both"}
    pr.save(model, tmp_path / "small.safetensors")
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    assert set(pr.restore_(fresh, tmp_path / "small.safetensors")) == set(report.replaced)
    assert torch.equal(fresh(x), model(x))
    assert not fresh.training
    on_meta = network().to("meta")
    pr.restore_(on_meta, tmp_path / "small.safetensors")
    assert torch.equal(on_meta(x), model(x))


@pytest.mark.parametrize("terms", ["both", "output", "input"])
def test_each_kind_of_terms_is_restored(terms, tmp_path):
    conv = nn.Conv1d(16, 32, 3, bias=False)
    model = nn.Sequential(SKConv1d.from_conv(conv, 1, 4, terms=terms))
    pr.save(model, tmp_path / "one.safetensors")
    restored = nn.Sequential(nn.Conv1d(16, 32, 3, bias=False))
    assert pr.restore_(restored, tmp_path / "one.safetensors") == ("0",)
    assert restored[0].terms == terms
    x = torch.randn(2, 16, 9)
    assert torch.equal(restored(x), model(x))


def test_distilled():
    model, x = network(), inputs(128)
    original = copy.deepcopy(model)
    pr.sketch_(model, ratio=0.3, calibration=[x[:64]])
    fixed = {name: b.clone() for name, b in model.named_buffers()}
    result = pr.distill_(model, original, x.split(16), steps=60, progress=False)
    assert result.error < 0.9 * result.error_before
    assert all(torch.equal(b, fixed[name]) for name, b in model.named_buffers())


def test_a_shared_module_stays_one_and_hooks_move_over():
    torch.manual_seed(0)
    conv = nn.Conv2d(32, 32, 3, padding=1)
    calls = []
    conv.register_forward_hook(lambda *_: calls.append(1))
    conv.weight.requires_grad = False
    model = nn.Sequential(conv, nn.ReLU(), conv).train()
    report = pr.sketch_(model, ratio=0.5, calibration=[torch.randn(8, 32, 6, 6)])
    assert model[0] is model[2]
    assert report.replaced == ("0", "2")
    calls.clear()
    model(torch.randn(1, 32, 6, 6))
    assert len(calls) == 2
    assert isinstance(model[0], SKConv2d)
    assert model[0].training
    assert model[0].bias.requires_grad
    assert not any(S.requires_grad for S in (model[0].S1s, model[0].S2s) if S is not None)


def test_on_an_error_the_model_is_as_it_was(monkeypatch):
    model, x = network(), inputs()
    before, modules = model(x), list(model.modules())

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("panther.convert.plan.layer_report", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pr.sketch_(model, ratio=0.5, calibration=[x])
    assert list(model.modules()) == modules
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_types(dtype):
    model, x = network(norm=False).to(dtype), inputs().to(dtype)
    report = pr.sketch_(model, ratio=0.6, calibration=[x])
    assert report.output_error < 0.5
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_images_without_a_batch():
    model, x = network(norm=False), inputs(8)
    unbatched = nn.Sequential(*list(model)[:3])
    report = pr.sketch_(unbatched, ratio=0.6, calibration=[(image,) for image in x], forward=lambda m, b: m(b[0]))
    assert report.replaced
    assert unbatched(x[0]).shape == (48, 5, 5)
