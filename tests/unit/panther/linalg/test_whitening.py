import numpy as np
import pytest
import torch

from panther.linalg.whitening import damped, weighted, whitened_svd


def problem(d_out, d_in, rows, seed):
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(d_out, d_in, generator=generator, dtype=torch.float64)
    X = torch.randn(rows, d_in, generator=generator, dtype=torch.float64) * torch.arange(1, d_in + 1) ** -0.8
    G = torch.randn(3 * d_out, d_out, generator=generator, dtype=torch.float64) * torch.arange(1, d_out + 1) ** -0.5
    return W, X, G


def lost(W, W_hat, X, G):
    """Σ over samples of inputs and of output weightings of (gᵀ (W - Ŵ) x)²."""
    return (G @ (W - W_hat) @ X.t()).square().sum().item()


@pytest.mark.parametrize(("d_out", "d_in"), [(7, 11), (11, 7), (8, 8)])
@pytest.mark.parametrize("rank", [1, 3, 6])
@pytest.mark.parametrize("sides", ["none", "in", "both"])
def test_no_perturbation_of_the_optimum_is_better(d_out, d_in, rank, sides):
    W, X, G = problem(d_out, d_in, 60, seed=rank)
    X = X if sides != "none" else torch.eye(d_in, dtype=torch.float64)
    G = G if sides == "both" else torch.eye(d_out, dtype=torch.float64)
    spectrum = whitened_svd(W, X.t() @ X if sides != "none" else None, G.t() @ G if sides == "both" else None)
    left, right = spectrum.left[:, :rank], spectrum.right[:rank]
    best = lost(W, (left @ right).t(), X, G)
    assert best == pytest.approx(spectrum.tail()[rank].item(), rel=1e-6)
    generator = torch.Generator().manual_seed(0)
    for scale in np.geomspace(1e-4, 1, 1000):
        L = left + scale * left.std() * torch.randn(left.shape, generator=generator, dtype=torch.float64)
        R = right + scale * right.std() * torch.randn(right.shape, generator=generator, dtype=torch.float64)
        assert lost(W, (L @ R).t(), X, G) >= best * (1 - 1e-9)


def test_is_as_good_as_alternating_least_squares_finds():
    """Brute force: many restarts of alternating least squares on the data itself."""
    W, X, _ = problem(6, 9, 40, seed=5)
    spectrum = whitened_svd(W, X.t() @ X)
    rank = 2
    best = spectrum.tail()[rank].item()
    Y = (X @ W.t()).numpy()
    rng = np.random.default_rng(0)
    found = []
    for _ in range(20):
        A = rng.normal(size=(9, rank))
        for _ in range(200):
            B = np.linalg.lstsq(X.numpy() @ A, Y, rcond=None)[0]
            A = np.linalg.pinv(X.numpy()) @ Y @ np.linalg.pinv(B)
        found.append(((Y - X.numpy() @ A @ B) ** 2).sum())
    assert best == pytest.approx(min(found), rel=1e-6)


def test_without_weighting_it_is_the_truncated_svd():
    W, _, _ = problem(9, 14, 1, seed=0)
    spectrum = whitened_svd(W)
    U, S, Vh = np.linalg.svd(W.numpy())
    np.testing.assert_allclose((spectrum.left[:, :4] @ spectrum.right[:4]).t(), (U[:, :4] * S[:4]) @ Vh[:4], atol=1e-9)
    np.testing.assert_allclose(spectrum.energies, S**2, rtol=1e-9)


def test_full_rank_gives_the_weight_back_even_from_few_rows():
    W, X, _ = problem(10, 16, 3, seed=2)  # three rows for sixteen directions
    spectrum = whitened_svd(W, damped(X.t() @ X / 3, 1e-4))
    torch.testing.assert_close((spectrum.left @ spectrum.right).t(), W, atol=1e-6, rtol=0)
    assert bool(spectrum.left.isfinite().all())


def test_what_is_all_zero_whitens_nothing():
    assert damped(torch.zeros(4, 4, dtype=torch.float64), 1e-4) is None


@pytest.mark.parametrize(("d_out", "d_in"), [(7, 11), (11, 7)])
def test_weights_of_outputs_that_are_a_diagonal(d_out, d_in):
    W, X, G = problem(d_out, d_in, 60, seed=1)
    C, weights = X.t() @ X, (G.t() @ G).diagonal()
    whole, short = whitened_svd(W, C, weights.diag()), whitened_svd(W, C, weights)
    torch.testing.assert_close(short.energies, whole.energies)
    for rank in (1, 3, 7):
        expected = whole.left[:, :rank] @ whole.right[:rank]
        torch.testing.assert_close(short.left[:, :rank] @ short.right[:rank], expected)
    torch.testing.assert_close(damped(weights, 0.1, 0.5), damped(weights.diag(), 0.1, 0.5).diagonal())
    assert damped(torch.zeros(3), 0.1) is None
    torch.testing.assert_close(weighted(weights, W), weighted(weights.diag(), W))
