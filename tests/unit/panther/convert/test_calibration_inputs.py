"""Calibration inputs that are no inputs, quantized parts, and modules that write to their inputs."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import panther as pr


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(128, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 64)).eval()


@pytest.mark.parametrize(
    ("calibration", "match"),
    [
        ([], "calibration holds no batch"),
        (iter([]), "calibration holds no batch"),
        (torch.randn(0, 128), r"batch 0 \(tensor \(0, 128\) float32\) is empty: it has no rows"),
        ([torch.randn(4, 128), (torch.randn(0, 128), torch.zeros(0))], r"batch 1 \(tuple of .*\) is empty"),
        (np.zeros((4, 128), np.float32), r"batch 0 \(ndarray\) is not a tensor; convert it with torch.from_numpy"),
        ("texts", r"batch 0 \(str\) is not an input of a model"),
        ([1, 2, 3], r"batch 0 \(int\) is not an input of a model"),
        ([None], r"batch 0 \(NoneType\) is not an input of a model"),
        ([[]], r"batch 0 \(list of nothing\) is empty"),
        ({"pixels": torch.randn(4, 128)}, r"holds no argument of Sequential.forward, which takes input"),
        (7, r"calibration \(int\) must be a tensor"),
        (torch.randn(4, 99), r"batch 0 \(tensor \(4, 99\) float32\) can't be run by Sequential: RuntimeError: .*"),
        (torch.zeros(4, 128, dtype=torch.long), r"\(tensor \(4, 128\) int64\) can't be run by Sequential"),
        ([["a", "b"]], r"batch 0 \(list of str, str\) can't be run by Sequential: TypeError"),
    ],
    ids=[
        *(
            "no batch",
            "an iterator at its end",
            "no rows",
            "no rows in a part",
            "an array",
            "texts",
            "integers",
            "none",
        ),
        *("an empty list", "an unknown argument", "a number", "a wrong width", "a wrong type", "a list of texts"),
    ],
)
def test_what_is_no_batch_is_refused_by_name(calibration, match):
    model = mlp()
    first = model[0]
    with pytest.raises(pr.ConversionError, match=match):
        pr.sketch_(model, ratio=0.5, calibration=calibration)
    assert model[0] is first


@pytest.mark.filterwarnings(
    "ignore:torch.ao.quantization is deprecated", "ignore:must run observer", "ignore::UserWarning"
)
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_dynamically_quantized_layer_is_left_alone_by_name(place):
    model = mlp()
    part = nn.Sequential(model[place])
    model[place] = torch.ao.quantization.quantize_dynamic(part, {nn.Linear}, dtype=torch.qint8)[0]
    quantized, original, x = model[place], copy.deepcopy(model), torch.randn(64, 128)
    report = pr.sketch_(model, ratio=0.8, calibration=[x])
    assert model[place] is quantized
    assert report.kept[str(place)] == "quantized (qint8), left unchanged"
    assert report.replaced
    with torch.no_grad():
        error = ((model(x) - original(x)).norm() / original(x).norm()).item()
    assert report.output_error == pytest.approx(error, rel=1e-3)
    assert error < 1


class Integers(torch.Tensor):
    """A weight as torchao has it: a subclass of Tensor that knows few operations."""

    @staticmethod
    def __new__(cls, weight):
        found = torch.Tensor._make_wrapper_subclass(cls, weight.shape, dtype=weight.dtype, device=weight.device)
        found.integers = (weight.detach() / 0.01).round().clamp(-127, 127).to(torch.int8)
        return found

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return args[0]
        if func is torch.ops.aten.t.default:
            return args[0].integers.float().t() * 0.01
        raise NotImplementedError(f"{func} of quantized weights")


def test_a_weight_of_a_tensor_subclass_is_left_alone_by_name():
    model = mlp()
    model[2].weight = nn.Parameter(Integers(model[2].weight), requires_grad=False)
    report = pr.sketch_(model, ratio=0.8, calibration=[torch.randn(64, 128)])
    assert "its weight is a Integers of torch.float32" in report.kept["2"]
    assert report.replaced


def test_a_model_that_writes_to_its_input_sees_the_same_rows_each_time():
    class InPlace(nn.Sequential):
        def forward(self, x):
            return super().forward(x.mul_(1.5))

    torch.manual_seed(0)
    model = InPlace(*mlp())
    x = torch.randn(64, 128)
    original, kept = copy.deepcopy(model), x.clone()
    report = pr.sketch_(model, ratio=0.5, calibration=[x])
    assert torch.equal(x, kept)
    with torch.no_grad():
        error = ((model(x.clone()) - original(x.clone())).norm() / original(x.clone()).norm()).item()
    assert report.output_error == pytest.approx(error, rel=1e-3)
