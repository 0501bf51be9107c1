"""Ranges and smoothing: their predicted effect beside the measured one."""

import pytest
import torch

from panther.quantize.rounding import round_nearest
from panther.quantize.smoothing import Sight, affine, choices


def sight(outlier=1.0, d_in=32, d_out=16, rows=800):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(rows, d_in, generator=generator)
    X[:, 3] *= outlier
    W = torch.randn(d_out, d_in, generator=generator).double()
    W[:, 3] /= outlier
    energy = (X.double() @ W.t()).square().sum(1).mean()
    G = torch.eye(d_out, dtype=torch.float64) / energy
    return Sight(X, X.amin(0), X.amax(0), X.double().t() @ X.double() / rows, [W], [G])


def measured(seen, choice):
    """The relative squared error of the layer's outputs, by computing them."""
    X = seen.rows.double() * (1.0 if choice.smoothing is None else choice.smoothing)
    q = (torch.round(X / choice.scale) + choice.zero_point).clamp(0, 255) - choice.zero_point
    W = choice.smoothed(seen.weights[0])
    rounded = round_nearest(W, choice.moment(seen.second)).dense()
    wanted = seen.rows.double() @ seen.weights[0].t()
    return float((q * choice.scale @ rounded.t() - wanted).square().sum() / wanted.square().sum())


@pytest.mark.parametrize("outlier", [1.0, 60.0])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_the_predicted_error_is_the_measured_one(outlier, alpha):
    seen = sight(outlier)
    (choice,) = choices(seen, [alpha])
    assert choice.error == pytest.approx(measured(seen, choice), rel=0.35)


def test_outliers_are_moved_into_the_weight():
    plain, smoothed = choices(sight(outlier=60.0), [0.0, 0.5])
    assert plain.smoothing is None
    assert smoothed.error < 0.05 * plain.error
    assert smoothed.smoothing[3] < 0.2 * smoothed.smoothing.median()


def test_a_rare_large_value_is_clipped():
    seen = sight()
    rows = seen.rows.clone()
    rows[0, 5] = 60.0
    W = seen.weights[0].clone()
    W[:, 5] *= 1e-3  # whose value hardly matters
    (choice,) = choices(Sight(rows, rows.amin(0), rows.amax(0), seen.second, [W], seen.sensitivities), [0.0])
    assert (255 - choice.zero_point) * choice.scale < 40


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.0, 2.5), (-4.0, 0.0), (-0.17, 9.0)])
def test_zero_is_exact_and_the_ends_are_covered(low, high):
    scale, zero_point = affine(low, high)
    assert 0 <= zero_point <= 255
    assert -zero_point * scale == pytest.approx(low, abs=scale)
    assert (255 - zero_point) * scale == pytest.approx(high, abs=scale)


def test_an_input_of_zeros_has_a_scale():
    zeros = torch.zeros(4, 3)
    eye = torch.eye(3, dtype=torch.float64)
    (choice,) = choices(Sight(zeros, zeros[0], zeros[0], 0 * eye, [eye], [eye]), [0.5])
    assert (choice.scale, choice.zero_point) == (1.0, 0)
    assert choice.error < 1e-12
