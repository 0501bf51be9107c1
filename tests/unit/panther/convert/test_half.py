"""float16 and bfloat16: factors in the range of the type, overflow found before a layer is replaced."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import panther as pr
from panther.linalg.terms import terms_of_factors
from panther.nn import linear as linear_module


def outlier_model(kind, shape, dtype):
    """A layer of falling spectrum with an outlier near the end of float16's range, and inputs that it takes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(*shape))
    x = torch.randn(64, shape[0])
    with torch.no_grad():
        U, S, Vh = torch.linalg.svd(model[0].weight, full_matrices=False)
        S[20:] *= 0.02
        model[0].weight.copy_(U * S @ Vh)
        if kind == "input":
            model[0].weight[:, 7] = 0.15 * torch.randn(shape[1])
            x[3, 7] = 6e4
        else:
            model[0].weight[5, 5] = 6e4
            x[:, 5] *= 0.1
    return model.to(dtype).eval(), x.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["input", "weight"])
@pytest.mark.parametrize("shape", [(64, 1024), (256, 256), (1024, 64)])
@pytest.mark.parametrize("calibrated", [True, False])
def test_an_outlier_does_not_overflow(dtype, kind, shape, calibrated):
    model, x = outlier_model(kind, shape, dtype)
    original = copy.deepcopy(model)
    report = pr.sketch_(model, ratio=0.9, calibration=[x] if calibrated else None)
    assert report.replaced == ("0",)
    with torch.no_grad():
        y, y_hat = original(x).double(), model(x).double()
    assert bool(y.isfinite().all())
    error = ((y - y_hat).norm() / y.norm()).item()
    assert error < (0.002 if dtype == torch.float16 else 0.02)
    if calibrated:
        assert report.output_error == pytest.approx(error, rel=1e-3)


def two_layers():
    model, x = outlier_model("input", (256, 256), torch.float16)
    return model.append(nn.Tanh()).append(nn.Linear(256, 256, dtype=torch.float16)), x


def test_a_layer_that_overflows_stays_dense_with_the_reason(monkeypatch):
    monkeypatch.setattr(linear_module, "_WIDE_RANGE", 0.0)
    model, x = two_layers()
    dense = model[0]
    report = pr.sketch_(model, ratio=0.9, calibration=[x])
    assert model[0] is dense
    assert report.kept["0"].startswith("overflows as a sketched layer in float16")
    assert report.replaced == ("2",)
    assert bool(model(x).isfinite().all())
    model, x = two_layers()
    with pytest.raises(ValueError, match=r"can't be met: .* take 0\.\d+.*; these stay dense: 0 .*overflows"):
        pr.sketch_(model, ratio=0.5, calibration=[x])


def test_scaled_terms_are_the_same_product():
    torch.manual_seed(0)
    left, right = torch.randn(40, 12, dtype=torch.float64), torch.randn(12, 30, dtype=torch.float64) * 100
    x = torch.full((40,), 1e3, dtype=torch.float64)
    for largest_input in (None, x):
        terms = terms_of_factors(left, right, 1, 6, largest=65504.0, largest_input=largest_input)
        product = (terms.S1s[0] @ terms.U1s[0] + terms.U2s[0] @ terms.S2s[0]) / 2
        torch.testing.assert_close(product, left @ right)
        assert max(term.abs().max().item() for term in terms) < 65504
        A = torch.cat([terms.S1s[0], terms.U2s[0]], 1).abs()
        assert largest_input is None or (x @ A).max().item() <= 65504
