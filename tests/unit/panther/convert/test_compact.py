from contextlib import nullcontext

import pytest
import torch
from torch import nn

from panther.convert import calibration
from panther.convert.allocate import possible_ranks
from panther.convert.calibration import collect
from panther.convert.candidates import Candidate, weigh, weighed_spectrum
from panther.convert.forward import evaluating
from panther.convert.groups import calibrate
from panther.convert.layers import find_units


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Derivatives by products of float32 alone, so that both ways see the same ones on every CPU."""
    monkeypatch.setattr(calibration, "rounded_products", lambda _: nullcontext())


def network(d_in, d_out, *, bias, dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(d_in, d_out, bias=bias), nn.Tanh(), nn.Linear(d_out, 24))
    return model.to(dtype)


def both(model, batches, probes):
    """The first layer as full moments say, and as compact statistics do."""
    units = find_units(model, None, ())
    with evaluating(model):
        moments = collect(model, units, batches, None, probes=probes, generator=torch.Generator().manual_seed(0))
        unit = units[0]
        weighing = weigh(unit, moments[0])
        ranks = possible_ranks(unit.in_features, unit.out_features)
        full = Candidate(unit, weighing, weighed_spectrum(unit, weighing), ranks)
        found = calibrate(
            model,
            units,
            batches,
            None,
            probes=probes,
            generator=torch.Generator().manual_seed(0),
            memory=None,
            step=lambda *_: None,
        )
    return full, found.candidates[0]


@pytest.mark.parametrize("probes", [0, 2])
@pytest.mark.parametrize(("d_in", "d_out"), [(64, 64), (160, 64), (64, 160), (64, 80)])
def test_inputs_that_are_all_zero_leave_the_truncated_weight(d_in, d_out, probes):
    """As those of the class token of an untrained vision transformer."""
    model = network(d_in, d_out, bias=True)
    full, compact = both(model, [torch.zeros(50, d_in), torch.zeros(50, d_in)], probes)
    W = compact.unit.weight.double()
    for rank in full.ranks:
        left, right = compact.factors(rank)
        expected = full.factors(rank)
        torch.testing.assert_close(left @ right, expected[0] @ expected[1], rtol=0, atol=1e-4 * W.abs().max().item())
        assert compact.errors(rank) == pytest.approx(full.errors(rank), rel=1e-4)
        assert compact.bias(model[0].bias, rank).isfinite().all()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("probes", [0, 2])
@pytest.mark.parametrize(("d_in", "d_out"), [(64, 64), (160, 64), (64, 160), (64, 80), (80, 64)])
def test_compact_statistics_give_the_candidate_of_the_full_moments(d_in, d_out, probes, bias):
    x = torch.randn(300, d_in, generator=torch.Generator().manual_seed(1)) * torch.arange(1, d_in + 1) ** -0.5 + 0.3
    model = network(d_in, d_out, bias=bias)
    full, compact = both(model, list(x.split(100)), probes)
    energies = full.spectrum.energies
    torch.testing.assert_close(compact.spectrum.energies, energies, rtol=1e-5, atol=1e-9 * energies[0].item())
    assert compact.ranks == full.ranks
    W = compact.unit.weight.double()
    for rank in full.ranks:
        left, right = full.factors(rank)
        ours = compact.factors(rank)
        assert ours[0].dtype == torch.float64
        torch.testing.assert_close(ours[0] @ ours[1], left @ right, rtol=0, atol=1e-4 * W.abs().max().item())
        assert compact.errors(rank) == pytest.approx(full.errors(rank), rel=1e-4)
        if bias:
            old = model[0].bias
            torch.testing.assert_close(compact.bias(old, rank), full.bias(old, rank))
    assert torch.equal(compact.weighing.extreme, full.weighing.extreme)


def test_a_wide_layer_is_taken_apart_by_few_rows():
    """As vgg's first classifier, of which calibration has fewer rows than inputs."""
    x = torch.randn(20, 600, generator=torch.Generator().manual_seed(1))
    full, compact = both(network(600, 48, bias=True), [x], probes=2)
    rank = full.ranks[1]
    left, right = full.factors(rank)
    ours = compact.factors(rank)
    torch.testing.assert_close(ours[0] @ ours[1], left @ right, rtol=0, atol=1e-6)
    assert compact.errors(rank) == pytest.approx(full.errors(rank), rel=1e-4)


def test_factors_of_a_float64_layer_are_float64():
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    full, compact = both(network(64, 64, bias=True, dtype=torch.float64), [x], probes=2)
    left, right = full.factors(16)
    ours = compact.factors(16)
    torch.testing.assert_close(ours[0] @ ours[1], left @ right, rtol=0, atol=1e-9)


def test_only_the_factors_of_ranks_that_pay_are_kept():
    x = torch.randn(100, 64, generator=torch.Generator().manual_seed(1))
    _, compact = both(network(64, 64, bias=True), [x], probes=1)
    most = compact.ranks[-1]
    assert most < 64
    for factor in (compact.spectrum.left, compact.spectrum.right):
        assert factor.numel() == 64 * most
        assert factor.untyped_storage().nbytes() == 4 * 64 * most
    assert len(compact.tail()) == 65


@pytest.mark.parametrize(("d_in", "d_out"), [(160, 64), (64, 80)])
def test_of_constant_inputs_a_layer_loses_nothing(d_in, d_out):
    """Their variance about the mean is rounding, and so would an error relative to it be."""
    x = torch.randn(1, d_in, generator=torch.Generator().manual_seed(0)).repeat(50, 1)
    _, compact = both(network(d_in, d_out, bias=True), [x], probes=2)
    assert compact.errors(16)[1] == 0


def test_small_variances_beside_large_means_are_kept_in_a_wide_layer():
    """Products with the inputs are in float32, whose rounding may not grow with the mean."""
    x = 100 + 0.01 * torch.randn(300, 160, generator=torch.Generator().manual_seed(0))
    full, compact = both(network(160, 64, bias=True), [x], probes=2)
    assert compact.errors(16) == pytest.approx(full.errors(16), rel=1e-2)
