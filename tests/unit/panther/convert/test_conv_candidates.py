"""The ways to take a convolution apart: optimal where they say so, against numpy and autograd."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from panther.convert.calibration import collect
from panther.convert.candidates import weigh
from panther.convert.conv_candidates import InputCandidate, OutputCandidate, conv_candidates
from panther.convert.layers import find_units
from panther.convert.plan import layer_report


def convolution(kind=nn.Conv2d, c_in=24, c_out=32, kernel_size=3, **options):
    torch.manual_seed(0)
    return nn.Sequential(kind(c_in, c_out, kernel_size, **options), nn.Tanh(), nn.Flatten(), nn.LazyLinear(6)).eval()


def images(count=12, c_in=24, size=6, axes=2):
    """Channels that are mixtures of few, as those inside a network are."""
    random = torch.Generator().manual_seed(1)
    mix = torch.randn(c_in, c_in, generator=random) * torch.arange(1, c_in + 1) ** -1.0
    x = torch.randn(count, c_in, *[size] * axes, generator=random)
    return torch.einsum("dc,nc...->nd...", mix, x) + 0.3


def prepared(model, x, *, probes):
    with torch.no_grad():
        model(x)
    model.requires_grad_(requires_grad=False)
    unit = find_units(model, None, (), convolutions=True)[0]
    (moments,) = collect(model, [unit], [x], None, probes=probes, generator=torch.Generator().manual_seed(0))
    return unit, weigh(unit, moments)


def patches(conv, x):
    """(n, C_in·positions), by torch's own unfold."""
    unfolded = nn.functional.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride)
    return unfolded.transpose(1, 2).flatten(0, 1).double().numpy()


@pytest.mark.parametrize("rank", [8, 16])
@pytest.mark.parametrize("bias", [True, False])
def test_the_output_way_is_the_best_of_its_rank_on_the_data(rank, bias):
    model, x = convolution(padding=1, bias=bias), images(60)
    unit, weighing = prepared(model, x, probes=0)
    candidate = next(c for c in conv_candidates(unit, weighing) if isinstance(c, OutputCandidate))
    W, X = unit.weight.double().numpy(), patches(model[0], x)
    centred = X - X.mean(0) if bias else X
    s = np.linalg.svd(centred @ W.T, compute_uv=False)
    best = math.sqrt((s[rank:] ** 2).sum() / (s**2).sum())
    weight_error, data_error = candidate.errors(rank)
    assert data_error == pytest.approx(best, rel=0.02)
    by_weight = np.linalg.svd(W, full_matrices=False)
    Wr = (by_weight[0][:, :rank] * by_weight[1][:rank]) @ by_weight[2][:rank]
    assert data_error < 0.9 * np.linalg.norm(centred @ (W - Wr).T) / np.linalg.norm(centred @ W.T)
    layer = candidate.layers(rank)[0]
    expected, y = model[0](x).detach(), layer(x).detach()
    if bias:
        assert (y - expected).mean((0, 2, 3)).abs().max() < 1e-4
        expected = expected - expected.mean((0, 2, 3), keepdim=True)
    measured = ((y - model[0](x)).norm() / expected.norm()).item()
    assert measured == pytest.approx(data_error, rel=1e-3)
    assert weight_error > math.sqrt((by_weight[1][rank:] ** 2).sum() / (by_weight[1] ** 2).sum())


@pytest.mark.parametrize("probes", [0, 4])
def test_the_input_way_predicts_its_error_and_is_stationary(probes):
    model, x = convolution(padding=1, stride=2), images(40)
    unit, weighing = prepared(model, x, probes=probes)
    candidate = next(c for c in conv_candidates(unit, weighing) if isinstance(c, InputCandidate))
    W, C = unit.weight.double(), weighing.inputs
    C_out = torch.eye(len(W), dtype=torch.float64) if weighing.outputs is None else weighing.outputs
    whole = torch.trace(C_out @ W @ C @ W.t()).item()
    tail = candidate.tail()
    for rank in candidate.ranks:
        lost = candidate.lost(rank)
        energy = torch.trace(C_out @ lost @ C @ lost.t()).item()
        assert tail[rank].item() == pytest.approx(energy if probes else energy / whole, rel=1e-6, abs=1e-9)
        # no other convolution behind the same channels is closer
        A = candidate.spectrum.left[:, :rank]
        slope = torch.einsum("ocp,cr->orp", (lost @ C).reshape(len(W), 24, 9), A)
        assert slope.abs().max() < 1e-8 * (W @ C).abs().max() * A.abs().max() * 24
    assert (tail.diff() <= 1e-9).all()
    assert tail[0].item() == pytest.approx(whole if probes else 1.0)


def test_the_input_way_is_closer_on_the_data_than_the_truncated_weight():
    model, x = convolution(padding=1, c_out=12), images(60)
    unit, weighing = prepared(model, x, probes=0)
    candidate = next(c for c in conv_candidates(unit, weighing) if isinstance(c, InputCandidate))
    plain = next(c for c in conv_candidates(unit, None) if isinstance(c, InputCandidate))
    C, W = weighing.covariance, unit.weight.double()
    rank = candidate.ranks[-1]

    def error(lost):
        return math.sqrt(torch.trace(lost @ C @ lost.t()) / torch.trace(W @ C @ W.t()))

    assert candidate.errors(rank)[1] == pytest.approx(error(candidate.lost(rank)))
    assert error(candidate.lost(rank)) < 0.7 * error(plain.lost(rank))
    s = np.linalg.svd(model[0].weight.detach().double().transpose(0, 1).flatten(1).numpy(), compute_uv=False)
    assert plain.errors(rank)[0] == pytest.approx(math.sqrt((s[rank:] ** 2).sum() / (s**2).sum()))
    assert plain.tail()[rank].item() == pytest.approx(plain.errors(rank)[0] ** 2)


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize(
    ("kind", "options"),
    [(nn.Conv2d, {}), (nn.Conv2d, {"kernel_size": 1, "stride": 2}), (nn.Conv1d, {"kernel_size": 5})],
)
def test_the_layers_hold_what_is_counted_and_lose_what_is_said(kind, options, calibrated):
    axes = 2 if kind is nn.Conv2d else 1
    model, x = convolution(kind, c_in=32, **options), images(20, 32, axes=axes)
    unit, weighing = prepared(model, x, probes=2)
    found = conv_candidates(unit, weighing if calibrated else None)
    assert [type(c) for c in found] == [OutputCandidate, InputCandidate][: 1 if options.get("kernel_size") == 1 else 2]
    for candidate in found:
        for rank in candidate.ranks[::2]:
            (layer,) = candidate.layers(rank)
            count = layer.parameter_count()
            assert (count.learnable - layer.out_channels, count.fixed) == candidate.stored(rank)
            assert layer.multiply_adds_per_position()[0] == candidate.multiply_adds(rank)
            assert count.stored < count.dense
            left = unit.weight.double() - layer.dense_weight().detach().flatten(1).double()
            torch.testing.assert_close(left, candidate.lost(rank), rtol=0, atol=1e-5)
            report = layer_report(unit, candidate, rank)
            assert report.convolution.terms == layer.terms
            assert report.after.stored == count.stored
            assert report.before.multiply_adds_per_row == layer.multiply_adds_per_position()[1]


def test_half_precision_that_overflows_is_noticed():
    model = nn.Sequential(nn.Conv2d(16, 16, 3)).half()
    with torch.no_grad():
        model[0].weight.mul_(1000)
    unit = find_units(model, None, (), convolutions=True)[0]
    (output, *_) = conv_candidates(unit, None)
    assert not output.overflows(8)
    with torch.no_grad():
        model[0].weight.fill_(6e4)
    assert conv_candidates(unit, None)[0].overflows(8)
