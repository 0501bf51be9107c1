"""`randomized_svd` and `cqrrpt` beside numpy's and scipy's decompositions in float64."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

import panther as pr


def gaussian(m, n, dtype=torch.float64, seed=0):
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def falling(m, n, rank=None, dtype=torch.float64):
    """A spectrum of 1/i, of that rank."""
    U = torch.linalg.qr(gaussian(m, min(m, n), seed=1)).Q
    V = torch.linalg.qr(gaussian(n, min(m, n), seed=2)).Q
    S = torch.arange(1, min(m, n) + 1, dtype=torch.float64) ** -1
    S[rank or len(S) :] = 0
    return (U * S @ V.t()).to(dtype)


SHAPES = [(2000, 300), (300, 2000), (120, 120), (50, 7), (7, 50), (1, 9), (9, 1)]


@pytest.mark.parametrize("make", [gaussian, falling])
@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("k", [1, 10, 300])
def test_the_svd_is_the_leading_one(make, m, n, k):
    A = make(m, n)
    U, S, V = pr.linalg.randomized_svd(A, k, 1e-10)
    k = min(k, m, n)
    assert (U.shape, S.shape, V.shape) == ((m, k), (k,), (n, k))
    exact = np.linalg.svd(A.numpy(), compute_uv=False)
    np.testing.assert_allclose(S.numpy(), exact[:k], rtol=1e-4, atol=1e-7 * exact[0])
    for basis in (U, V):
        torch.testing.assert_close(basis.t() @ basis, torch.eye(k, dtype=torch.float64))
    error = (A - U * S @ V.t()).norm().item()
    best = np.sqrt((exact[k:] ** 2).sum())
    assert error <= best * 1.001 + 1e-9 * exact[0]


@pytest.mark.parametrize("make", [gaussian, falling])
@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [1.0, 1.25, 3.0])
def test_cqrrpt_is_a_pivoted_qr(make, m, n, dtype, gamma):
    M = make(m, n, dtype=dtype)
    Q, R, P = pr.linalg.cqrrpt(M, gamma)
    r = min(m, n)
    assert (Q.shape, R.shape, P.shape) == ((m, r), (r, n), (n,))
    eps = torch.finfo(dtype).eps
    assert sorted(P.tolist()) == list(range(n))
    torch.testing.assert_close(Q.t() @ Q, torch.eye(r, dtype=dtype), atol=50 * eps, rtol=0)
    assert (M[:, P] - Q @ R).norm() <= 50 * eps * M.norm()
    assert torch.equal(R, R.triu())


@pytest.mark.parametrize(("m", "n"), [(600, 80), (80, 600), (100, 100)])
def test_cqrrpt_finds_the_rank_and_pivots_as_well_as_lapack(m, n):
    M = falling(m, n, rank=20)
    Q, R, P = pr.linalg.cqrrpt(M)
    assert R.shape == (20, n)
    assert (M[:, P] - Q @ R).norm() <= 1e-13 * M.norm() * 10
    # what the first columns leave over, beside LAPACK's pivots
    _, theirs, _ = scipy.linalg.qr(M.numpy(), mode="economic", pivoting=True)
    for kept in (3, 10):
        assert R[kept:].norm().item() <= 3 * np.linalg.norm(theirs[kept:]) + 1e-12


def test_a_sketch_is_taken_of_tall_matrices_only_and_the_generator_decides():
    M = gaussian(400, 30)
    first, again = (pr.linalg.cqrrpt(M, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5))
    assert torch.equal(first.Q, again.Q)
    zeros = pr.linalg.cqrrpt(torch.zeros(40, 3))
    assert zeros.Q.shape == (40, 0)
    assert zeros.R.shape == (0, 3)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: pr.linalg.cqrrpt(torch.zeros(3)), ValueError, r"M of shape \(3,\) must be a matrix"),
        (lambda: pr.linalg.cqrrpt(torch.zeros(3, 0)), ValueError, r"M of shape \(3, 0\) must be a matrix"),
        (lambda: pr.linalg.cqrrpt(torch.zeros(3, 2, dtype=torch.long)), TypeError, r"M \(torch.int64\)"),
        (lambda: pr.linalg.cqrrpt(torch.full((3, 2), torch.nan)), ValueError, "not finite"),
        (lambda: pr.linalg.cqrrpt(torch.ones(3, 2), gamma=0.5), ValueError, r"gamma \(0.5\) must be .* of at least 1"),
        (lambda: pr.linalg.randomized_svd([[1.0]], 1, 0.1), TypeError, r"A \(list\) must be a tensor"),
        (lambda: pr.linalg.randomized_svd(torch.ones(3, 2), 0, 0.1), ValueError, r"k \(0\) must be at least 1"),
        (lambda: pr.linalg.randomized_svd(torch.ones(3, 2), 1.5, 0.1), TypeError, r"k \(1.5\) must be an integer"),
        (lambda: pr.linalg.randomized_svd(torch.ones(3, 2), 1, -1.0), ValueError, r"tol \(-1.0\) must be at least 0"),
    ],
)
def test_wrong_arguments(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_the_other_randomized_svd_keeps_its_arguments():
    from panther.svd import randomized_svd

    found = randomized_svd(falling(60, 40), 5, oversampling=8, power_iterations=2)
    assert found.Vh.shape == (5, 40)
