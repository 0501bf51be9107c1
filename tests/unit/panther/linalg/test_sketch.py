from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from panther.linalg.sketch import SKETCHES, draw_sketches, gaussian_sketch, sign_sketch


def draw(kind: str, features: int, L: int, k: int, seed: int = 0, **options) -> torch.Tensor:
    return draw_sketches(kind, features, L, k, generator=torch.Generator().manual_seed(seed), **options)


@pytest.mark.parametrize("kind", SKETCHES)
@pytest.mark.parametrize(("features", "L", "k"), [(400, 2, 16), (64, 3, 40), (10, 1, 25)])
def test_shape_scale_and_mean(kind, features, L, k):
    U = draw(kind, features, L, k, dtype=torch.float64).numpy()
    assert U.shape == (L, features, k)
    # mean square 1/k: exact for signs and orthonormal columns, within five deviations for normal entries
    deviations = 5 * math.sqrt(2 / U.size) if kind == "gaussian" else 1e-9
    assert abs(k * (U**2).mean() - 1) <= deviations
    assert abs(U.mean()) * math.sqrt(k * U.size) < 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("k", [1, 3, 64])
def test_signs_have_one_magnitude_and_both_signs(dtype, k):
    U = sign_sketch(1000, low_rank=k, generator=torch.Generator().manual_seed(0), dtype=dtype)
    c = torch.tensor(1 / math.sqrt(k), dtype=torch.float64).to(dtype)
    assert set(U.tolist()) == {c.item(), -c.item()}


def test_orthonormal_columns_are_orthogonal_across_all_terms():
    U = draw("orthonormal", 100, 4, 20, dtype=torch.float64)
    columns = U.transpose(0, 1).reshape(100, 80).numpy()
    np.testing.assert_allclose(columns.T @ columns, 100 / 20 * np.eye(80), atol=1e-12)


def test_orthonormal_columns_beyond_the_width_come_in_blocks():
    U = draw("orthonormal", 30, 1, 50, dtype=torch.float64)
    columns = U[0].numpy()
    for block in (columns[:, :30], columns[:, 30:]):
        np.testing.assert_allclose(block.T @ block, 30 / 50 * np.eye(block.shape[1]), atol=1e-12)


def test_normal_entries_are_normal():
    U = gaussian_sketch(40_000, low_rank=4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    # 68.27 % within a deviation, 95.45 % within two
    assert abs((np.abs(U) < 0.5).mean() - 0.6827) < 0.012
    assert abs((np.abs(U) < 1.0).mean() - 0.9545) < 0.006


@pytest.mark.parametrize("kind", SKETCHES)
def test_the_generator_decides_and_the_device_can_be_meta(kind):
    state = torch.random.get_rng_state()
    assert torch.equal(draw(kind, 30, 2, 4, seed=1), draw(kind, 30, 2, 4, seed=1))
    assert not torch.equal(draw(kind, 30, 2, 4, seed=1), draw(kind, 30, 2, 4, seed=2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert draw(kind, 30, 2, 4, device="meta").is_meta


def test_an_unknown_kind():
    with pytest.raises(ValueError, match=r"sketch \('hadamard'\) must be one of 'sign', 'gaussian', 'orthonormal'"):
        draw("hadamard", 3, 1, 1)
