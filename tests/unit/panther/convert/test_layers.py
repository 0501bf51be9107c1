"""Tied weights and shared biases, before and after a conversion."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import panther as pr
from panther.convert.layers import find_units
from panther.nn import SKLinear

TERMS = ("S1s", "S2s", "U1s", "U2s")


class Tied(nn.Module):
    def __init__(self, width=96):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(width, width) for _ in range(3))
        self.b.weight = self.c.weight = self.a.weight
        self.c.bias = self.a.bias

    def forward(self, x):
        return self.c(F.gelu(self.b(F.gelu(self.a(x)))))


def held(model):
    """Entries that the model keeps, each piece of memory once."""
    return sum({t.data_ptr(): t.numel() for t in (*model.parameters(), *model.buffers())}.values())


@pytest.mark.parametrize("calibrated", [True, False])
def test_tied_layers_are_one_set_of_factors_and_count_once(calibrated):
    torch.manual_seed(0)
    model = Tied().eval()
    report = pr.sketch_(model, ratio=0.5, calibration=[torch.randn(64, 96)] if calibrated else None)
    for term in TERMS:
        assert getattr(model.a, term) is getattr(model.b, term) is getattr(model.c, term)
    assert model.c.bias is model.a.bias
    assert model.b.bias is not model.a.bias
    assert [layer.names for layer in report.layers] == [("a", "b", "c")]
    assert report.before.stored == report.model_parameters_before == 96 * 96 + 2 * 96
    assert report.after.stored == report.model_parameters_after == held(model) <= 0.5 * report.before.stored


@pytest.mark.parametrize(
    "move",
    [
        lambda m: m.double(),
        lambda m: m.bfloat16(),
        lambda m: (m.c.double(), m.b.double(), m.a.double()) and m,
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
        lambda m: m.share_memory(),
    ],
    ids=["double", "bfloat16", "in reverse", "deepcopy", "pickle", "shared memory"],
)
def test_tied_layers_stay_tied_when_they_move(move):
    torch.manual_seed(0)
    model, x = Tied().eval(), torch.randn(5, 96)
    pr.sketch_(model, ratio=0.5)
    size = held(model)
    moved = move(model)
    assert held(moved) == size
    for term in TERMS:
        assert getattr(moved.a, term) is getattr(moved.b, term) is getattr(moved.c, term)
    assert all(
        layer._packed.holds(*(getattr(layer, t) for t in ("S1s", "U1s", "U2s", "S2s"))) for layer in (moved.a, moved.b)
    )
    dtype = moved.a.S1s.dtype
    expected = F.linear(x.to(dtype), moved.a.dense_weight(), moved.b.bias)
    torch.testing.assert_close(moved.b(x.to(dtype)), expected, rtol=0.05, atol=0.05)


def test_ties_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(64, 64, 1, 8\) must be those of the other layer, \(64, 64, 1, 16\)"):
        SKLinear(64, 64, 1, 8).tie_to(SKLinear(64, 64, 1, 16))


class SharedBias(nn.Module):
    """Three layers of different weights with one bias, which a norm holds too."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.small = nn.Linear(96, 96), nn.Linear(96, 96), nn.Linear(8, 96)
        self.norm = nn.LayerNorm(96)
        self.a.bias = self.b.bias = self.small.bias = self.norm.bias
        nn.init.normal_(self.norm.bias)

    def forward(self, x):
        return self.small(self.norm(self.b(F.gelu(self.a(x))))[..., :8])


def test_a_bias_that_several_weights_share_stays_one_parameter_of_the_same_value():
    torch.manual_seed(0)
    model = SharedBias().eval()
    value, x = model.norm.bias.detach().clone(), torch.randn(200, 96) + 1
    original = copy.deepcopy(model)
    report = pr.sketch_(model, ratio=0.6, calibration=[x])
    assert {"a", "b"} <= set(report.replaced)
    assert model.a.bias is model.b.bias is model.norm.bias is model.small.bias
    assert torch.equal(model.norm.bias, value)
    assert held(model) == report.model_parameters_after
    with torch.no_grad():
        error = ((model(x) - original(x)).norm() / original(x).norm()).item()
    assert report.output_error == pytest.approx(error, rel=1e-3)


def test_a_failed_conversion_leaves_shared_biases_alone():
    model = SharedBias().eval()
    before = {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}
    with pytest.raises(ZeroDivisionError):
        pr.sketch_(model, ratio=0.8, calibration=torch.randn(9, 96), on_step=lambda what, *_: 1 / (what != "comparing"))
    assert before == {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}


def test_layers_that_accelerate_runs_are_left_and_say_how_to_convert_them():
    hooks = pytest.importorskip("accelerate.hooks")
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    hooks.add_hook_to_module(model[0], hooks.AlignDevicesHook("cpu"))
    first, second = find_units(model, None, ())
    assert "accelerate" in first.reason
    assert "remove_hook_from_module" in first.reason
    assert second.reason is None
    hooks.remove_hook_from_module(model, recurse=True)
    assert all(unit.reason is None for unit in find_units(model, None, ()))
