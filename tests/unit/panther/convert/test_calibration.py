import numpy as np
import pytest
import torch
from torch import nn

import panther as pr
from panther.convert import ConversionError
from panther.convert.calibration import collect
from panther.convert.forward import evaluating
from panther.convert.layers import find_units


def moments_of(model, batches, probes=4, skip=()):
    units = find_units(model, None, skip)
    with evaluating(model):
        found = collect(model, units, batches, None, probes=probes, generator=torch.Generator().manual_seed(0))
    return {unit.name: moments for unit, moments in zip(units, found, strict=True)}


def test_second_moments_are_those_of_the_inputs_in_float64(mlp, inputs):
    seen = []
    handle = mlp[2].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().double()))
    found = moments_of(mlp, [inputs[:150], inputs[150:]])["2"]
    handle.remove()
    X = torch.cat(seen).numpy()
    np.testing.assert_allclose(found.second.numpy(), X.T @ X, rtol=1e-12)
    np.testing.assert_allclose(found.mean.numpy(), X.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance(centred=True).numpy(), np.cov(X.T, bias=True), atol=1e-10)
    assert found.rows == 400
    assert found.second.dtype == torch.float64


def test_sums_keep_small_variances_beside_large_means():
    """In float32 the variance 1e-4 of values around 1,000 would drown."""
    model = nn.Sequential(nn.Linear(8, 8))
    x = 1000 + 0.01 * torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    found = moments_of(model, list(x.split(100)))["0"]
    variance = found.covariance(centred=True).diagonal()
    np.testing.assert_allclose(variance.numpy(), x.double().numpy().var(0), rtol=1e-4)


def test_sensitivity_is_the_squared_jacobian():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh())
    x = torch.randn(3, 5)
    found = moments_of(model, [x], probes=20_000)["0"].sensitivity
    y = model(x)
    scale = y.square().sum().item() / len(y)
    exact = torch.zeros(6, 6)
    for row in x:
        J = torch.autograd.functional.jacobian(model[1:], model[0](row).detach())
        exact += J.t() @ J / scale
    torch.testing.assert_close(found.float(), exact, atol=0.03 * exact.max().item(), rtol=0)


def test_of_many_outputs_only_the_diagonal_of_the_sensitivity_is_summed(monkeypatch, mlp, inputs):
    whole = moments_of(mlp, [inputs])
    monkeypatch.setattr("panther.convert.moments.MOST_OUTPUTS", 0)
    for name, found in moments_of(mlp, [inputs]).items():
        torch.testing.assert_close(found.sensitivity, whole[name].sensitivity.diagonal(), rtol=1e-5, atol=0)


def test_rows_that_move_no_output_count_for_nothing():
    class FirstRow(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x)[:, 0]

    torch.manual_seed(0)
    x = torch.randn(10, 3, 4)
    found = moments_of(FirstRow(), [x])["fc"]
    first = x[:, 0].double()
    torch.testing.assert_close(found.second, first.t() @ first)
    assert found.rows == 10


def test_padding_by_the_attention_mask_counts_for_nothing():
    class PerToken(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x, attention_mask):
            return self.fc(x)

    torch.manual_seed(0)
    x = torch.randn(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    found = moments_of(PerToken(), [{"x": x, "attention_mask": mask, "labels": torch.zeros(2)}])["fc"]
    rows = x[mask.bool()].double()
    torch.testing.assert_close(found.second, rows.t() @ rows)


def test_in_place_activations_and_shared_modules_are_followed():
    torch.manual_seed(0)
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.ReLU(inplace=True), shared, nn.ReLU(inplace=True), nn.Linear(6, 2))
    found = moments_of(model, [torch.randn(20, 6)])["0"]
    assert found.calls == 2
    assert 20 < found.rows <= 40  # rows whose derivatives are all zero behind the ReLU are left out
    assert found.sensitivity.trace() > 0


def test_models_without_derivatives_still_give_second_moments():
    class Rounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x).detach()

    found = moments_of(Rounded(), [torch.randn(5, 4)])["fc"]
    assert found.sensitivity is None
    assert found.rows == 5


def test_refuses_inputs_that_are_not_finite(mlp, inputs):
    inputs[3, 3] = torch.nan
    with pytest.raises(ConversionError, match="inputs of 0 hold values that are not finite"):
        moments_of(mlp, [inputs])
    assert not mlp[0]._forward_hooks


class TwoHeads(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.body, self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 8), nn.Linear(64, 8)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)
        self.factor = factor

    def forward(self, x):
        hidden = self.body(x)
        return self.factor * self.first(hidden), self.second(hidden)


def test_an_output_of_zeros_alone_weighs_nothing():
    torch.manual_seed(0)
    x = torch.randn(100, 64)
    found = moments_of(TwoHeads(1.0), [x])
    assert found["second"].sensitivity.abs().max() == 0
    assert found["body"].rows == 100
    assert found["body"].sensitivity.trace() > 0


@pytest.mark.parametrize("factor", [1e-25, 1e25])
def test_outputs_of_any_size_weigh_the_same(factor):
    torch.manual_seed(0)
    x, model = torch.randn(100, 64), TwoHeads(1.0)
    expected = moments_of(model, [x])
    model.factor = factor
    found = moments_of(model, [x])
    for name in ("body", "first"):
        assert found[name].rows == 100
        torch.testing.assert_close(found[name].sensitivity, expected[name].sensitivity, rtol=1e-3, atol=1e-6)


def test_layers_that_are_not_initialised_yet_are_by_the_first_batch():
    model = nn.Sequential(nn.Linear(64, 64), nn.LazyLinear(64))
    report = pr.sketch_(model, ratio=0.8, calibration=torch.randn(50, 64))
    assert report.replaced == ("0",)
