"""What a conversion does not reach is named, with its share and the reason."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import panther as pr


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 64)
        self.conv = nn.ConvTranspose1d(64, 64, 3, padding=1)
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.rnn = nn.GRU(64, 64, batch_first=True)
        self.norm = nn.LayerNorm(64)
        self.experts = nn.Parameter(torch.randn(4, 64, 64) / 8)
        self.fc, self.out = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, ids):
        x = self.conv(self.embed(ids).mT).mT
        x = self.norm(self.rnn(self.attention(x, x, x, need_weights=False)[0])[0])
        return self.out(torch.einsum("btd,edf->btf", torch.tanh(self.fc(x)), self.experts))


def test_what_is_not_in_play_is_listed_with_its_share():
    torch.manual_seed(0)
    model = Mixed().eval()
    sizes = {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
    whole = sum(parameter.numel() for parameter in model.parameters())
    report = pr.sketch_(model, ratio=0.9, calibration=torch.randint(0, 50, (8, 10)), skip=["out"], embeddings=False)
    found = {name: group for group in report.unreached for name in group.names}
    assert set(found) == {"embed", "conv", "rnn", "norm", "the model", "out"}
    # of the recurrent layer the input weights are eligible
    sizes["rnn"] //= 2
    for name, size in (sizes | {"the model": 4 * 64 * 64}).items():
        if name not in ("fc", "attention"):
            assert found[name].parameters == size
            assert found[name].share == pytest.approx(size / whole)
    assert sum(group.share for group in report.unreached) == pytest.approx(
        1 - (sizes["fc"] + sizes["attention"] + sizes["rnn"]) / whole
    )
    for name, reason in (
        ("embed", "looked up"), ("rnn", "recurrent"), ("conv", "transposed"),
        ("norm", "normalization"), ("the model", "experts"), ("out", "left out by skip or filter_fn"),
    ):  # fmt: skip
        assert reason in found[name].reason
    text = str(report)
    assert re.search(r"not eligible: \d\d\.\d% of the model's parameters", text)
    assert re.search(r"\d+\.\d% GRU \(rnn\): state weights of a recurrent layer", text)
    assert report.as_dict()["unreached"][0]["names"] == list(report.unreached[0].names)


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(128, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 64)).eval()


def zero_head():
    model = mlp()
    nn.init.zeros_(model[4].weight)
    return model, ("2", "0"), r"no output depends on it.*the weight of 4 is zero"


def weight_normed():
    model = mlp()
    nn.utils.parametrizations.weight_norm(model[2])
    return model, ("2",), "computed from other parameters"


def own_forward():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = mlp()
    model[2] = Doubled(256, 256)
    return model, ("2",), "does more than nn.Linear in its forward"


@pytest.mark.parametrize("make", [zero_head, weight_normed, own_forward])
@pytest.mark.parametrize("budget", ["ratio", "max_bytes"])
def test_a_budget_out_of_reach_names_the_layers_in_the_way_and_the_best(make, budget):
    model, blocking, reason = make()
    x = torch.randn(64, 128)
    with pytest.raises(ValueError, match=r"can't be met: .* give at least that; these stay dense: ") as error:
        pr.sketch_(model, **{budget: 0.01 if budget == "ratio" else 1000}, calibration=[x])
    for name in blocking:
        assert re.search(rf"\b{name} \([\d,]+ parameters\): .*{reason}", str(error.value))
    best = float(re.search(r"take ([\d.]+); give at least that", str(error.value)).group(1))
    report = pr.sketch_(model, **{budget: best + 0.0001 if budget == "ratio" else int(best)}, calibration=[x])
    reached = report.ratio if budget == "ratio" else report.model_bytes_after
    assert reached == pytest.approx(best, abs=1e-4)


def test_a_model_without_linear_layers_says_what_it_is_made_of():
    model = nn.Sequential(nn.Conv3d(8, 8, 3), nn.BatchNorm3d(8))
    match = (
        r"no linear layer, convolution or embedding to convert; .* Conv3d 9\d% \(a transposed or three-dimensional conv"
    )
    with pytest.raises(pr.ConversionError, match=match):
        pr.sketch_(model, ratio=0.5)
