import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from panther.export import ExportError


class Eights(Tensor):
    """A weight in eight bits as other libraries make them: a wrapper that only linear and dequantize read."""

    @staticmethod
    def __new__(cls, weight, *, activations=False):
        return Tensor._make_wrapper_subclass(cls, weight.shape, dtype=torch.float32)

    def __init__(self, weight, *, activations=False):
        self.scale = weight.abs().amax() / 127
        self.whole = (weight / self.scale).round().to(torch.int8)
        self.activations = activations

    def dequantize(self):
        return self.whole.float() * self.scale

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            x, weight = args[:2]
            x = (x * 8).round() / 8 if weight.activations else x
            return F.linear(x, weight.dequantize(), *args[2:], **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return args[0]
        raise NotImplementedError(f"{func} of {cls.__name__}")

    def __deepcopy__(self, memo):
        return nn.Parameter(Eights(self.dequantize(), activations=self.activations), requires_grad=False)


class Unreadable(Eights):
    def dequantize(self):
        raise NotImplementedError("no floats here")

    def __deepcopy__(self, memo):
        return self


def half_quantized(kind=Eights, **options):
    model = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8)).eval()
    quantized = kind(model[2].weight.detach(), **options)
    model[2].weight = nn.Parameter(quantized, requires_grad=False)
    return model


def test_weights_in_eight_bits_are_written_as_floats(export, run):
    model, x = half_quantized(), torch.randn(3, 16)
    report = export(model, x)
    assert report.card.notes == ("2.weight was quantized; the file has it as floats",)
    np.testing.assert_allclose(run(report.path, input=x)[0], model(x).detach().numpy(), atol=1e-5)
    assert type(model[2].weight.data) is Eights


def test_quantized_activations_are_refused(export, tmp_path):
    with pytest.raises(ExportError, match=r"it quantizes activations too, .*export the model before it is quantized"):
        export(half_quantized(activations=True), torch.randn(3, 16))
    assert list(tmp_path.iterdir()) == []


def test_weights_that_cannot_be_read_are_refused_by_name(export):
    model = half_quantized()
    model[2].weight.data.__class__ = Unreadable
    model[2]._parameters["weight"].__class__ = Unreadable
    with pytest.raises(ExportError, match=r"parameter '2.weight' is a Unreadable, .*no floats here.*precision='int8'"):
        export(model, torch.randn(3, 16))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_layer_in_quantized_arithmetic_is_refused_by_name(export):
    from torch.ao.nn.quantized.dynamic import Linear

    model = nn.Sequential(nn.Linear(16, 12), Linear(12, 8))
    with pytest.raises(ExportError, match=r"layer '1' \(torch\.ao\.nn\.quantized\.dynamic.*\) computes in quantized"):
        export(model, torch.randn(3, 16))
