"""Names that collide; the oracle is torch, and onnxruntime's own reading of the names."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from panther.export import Input, Output
from panther.nn import SKLinear

ROWS = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


class Calls(nn.Module):
    """A forward whose arguments are called as the operators, and a parameter as an argument."""

    def __init__(self):
        super().__init__()
        self.linear = SKLinear(12, 6, 1, 2)
        self.relu = nn.Parameter(torch.randn(6))

    def forward(self, cat, relu):
        return torch.relu(self.linear(torch.cat([cat, relu], 1)) * self.relu)


def check(report, expected, **feeds):
    session = onnxruntime.InferenceSession(report.path)
    found = session.run(None, {name: tensor.numpy() for name, tensor in feeds.items()})
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-5)
    return [entry.name for entry in session.get_inputs()], [entry.name for entry in session.get_outputs()]


def test_arguments_called_as_operators(export):
    model, other = Calls().eval(), ROWS + 1
    report = export(model, (ROWS, other))
    assert check(report, [model(ROWS, other)], cat=ROWS, relu=other) == (["cat", "relu"], ["output"])


PAIRS = [
    ("relu", "gelu"),
    ("0.A", "0.bias"),
    ("0.bias", "0.matmul0"),
    ("panther.bit_masks", "val_0"),
    ("2.weight", "b"),
]


@pytest.mark.parametrize(("first", "last"), PAIRS)
def test_ends_called_as_what_is_within(first, last, export):
    model = nn.Sequential(SKLinear(6, 6, 1, 1), nn.ReLU(), nn.Linear(6, 6), nn.GELU()).eval()
    for names in ((first, last), (last, first)):
        report = export(model, ROWS, inputs=[Input(names[0])], outputs=[Output(names[1])])
        assert check(report, [model(ROWS)], **{names[0]: ROWS}) == ([names[0]], [names[1]])
        onnx.checker.check_model(onnx.load(report.path), full_check=True)


def test_an_end_called_as_the_dense_weight_or_the_axis(export):
    model = nn.Sequential(SKLinear(6, 6, 1, 1), nn.ReLU()).eval()
    report = export(model, ROWS, plan="dense", inputs=[Input("0.W")], outputs=[Output("batch")])
    assert check(report, [model(ROWS)], **{"0.W": ROWS}) == (["0.W"], ["batch"])


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_other_precisions(precision, export):
    model = nn.Sequential(SKLinear(64, 64, 1, 8), nn.ReLU()).eval()
    report = export(model, torch.randn(3, 64), precision=precision, inputs=[Input("0.A")], outputs=[Output("relu")])
    session = onnxruntime.InferenceSession(report.path)
    assert (session.get_inputs()[0].name, session.get_outputs()[0].name) == ("0.A", "relu")


class Echo(nn.Module):
    """Returns an output called like its input, the same tensor twice, its input, a parameter, and no tensors."""

    def __init__(self):
        super().__init__()
        self.layer = SKLinear(6, 6, 1, 1)

    def forward(self, logits):
        y = self.layer(logits)
        return {"logits": y, "again": y, "given": logits, "bias": self.layer.bias, "rows": 3, "none": None}


def test_an_output_called_like_an_input_gets_another_name(export):
    model = Echo().eval()
    report = export(model, ROWS)
    y = model.layer(ROWS)
    ends = check(report, [y, y, ROWS, model.layer.bias], logits=ROWS)
    assert ends == (["logits"], ["logits_output", "again", "given", "bias"])
    assert report.card.notes == ("['rows'] (int) is not a tensor; the file has no output for it",)


def test_the_callers_own_names_are_not_changed(export, tmp_path):
    names = [Output(name) for name in ("a", "b", "logits", "d")]
    with pytest.raises(ValueError, match=r"output 'logits' has the name of an input, .* choose another name in"):
        export(Echo(), ROWS, outputs=names)
    assert list(tmp_path.iterdir()) == []
