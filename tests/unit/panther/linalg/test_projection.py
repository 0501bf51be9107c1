"""Tables of low rank against the truncated SVD of numpy, and against whitening with the moments of all rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from panther.linalg import projection
from panther.linalg.whitening import whitened_svd


@pytest.fixture
def table():
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(40, 12, dtype=torch.float64, generator=generator)
        @ torch.randn(12, 12, generator=generator).double()
    )


def test_without_weights_it_is_the_truncated_svd(table):
    U, S, Vh = np.linalg.svd(table.numpy(), full_matrices=False)
    found = projection.closest_rows(table)
    A, B = found.factors(table, 5)
    np.testing.assert_allclose((A @ B).numpy(), (U[:, :5] * S[:5]) @ Vh[:5], atol=1e-9)
    np.testing.assert_allclose(found.tail()[5].item(), (S[5:] ** 2).sum())
    np.testing.assert_allclose(found.remainder(5).numpy(), np.eye(12) - Vh[:5].T @ Vh[:5], atol=1e-9)


def test_of_bags_and_sensitivities_it_is_the_optimum_over_all_tables_of_the_rank(table):
    generator = torch.Generator().manual_seed(1)
    bags = (torch.rand(100, 40, generator=generator) < 0.1).double()
    C_in = bags.t() @ bags / 100 + 1e-9 * torch.eye(40)
    root = torch.randn(12, 12, dtype=torch.float64, generator=generator)
    C_out = root @ root.t() + 0.1 * torch.eye(12)
    expected = whitened_svd(table.t(), C_in, C_out)
    found = projection.projections(table.t() @ C_in @ table, C_out)
    A, B = found.factors(table, 5)
    torch.testing.assert_close(A @ B, expected.left[:, :5] @ expected.right[:5])
    torch.testing.assert_close(found.energies, expected.energies[:12])
    torch.testing.assert_close(B.norm(dim=1), torch.ones(5, dtype=torch.float64))


def test_weighed_rows_are_kept_better_and_chunks_change_nothing(table, monkeypatch):
    weights = torch.zeros(40, dtype=torch.float64)
    weights[:5] = 1
    whole = projection.closest_rows(table, weights).factors(table, 5)
    monkeypatch.setattr(projection, "_CHUNK", 7)
    A, B = projection.closest_rows(table, weights).factors(table, 5)
    torch.testing.assert_close(A @ B, whole[0] @ whole[1])
    torch.testing.assert_close((A @ B)[:5], table[:5])
    assert (A @ B - table)[5:].norm() > 0.1 * table[5:].norm()


def positive(*seeds: int) -> list[torch.Tensor]:
    roots = [torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return [root @ torch.diag(torch.arange(1, 9).double() ** -2) @ root.t() + 1e-3 * torch.eye(8) for root in roots]


def lost(P: torch.Tensor, *uses: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    Q = torch.eye(8, dtype=torch.float64) - P
    return sum(torch.trace(S @ Q @ C @ Q.t()) for S, C in uses)


def test_two_uses_of_one_table_lose_what_the_energies_say_and_near_the_least_that_they_can():
    S, C, G, D = positive(0, 1, 2, 3)
    first, second = (1e-3 * S, 1e3 * C), (3e4 * G, 1e-4 * D)
    found = projection.shared_projections(first, second)
    for rank in range(9):
        torch.testing.assert_close(
            lost(torch.eye(8).double() - found.remainder(rank), first, second), found.tail()[rank]
        )
    ours = found.tail()[4].item()
    for one in (projection.projections(*first), projection.projections(*second)):
        assert ours < lost(torch.eye(8).double() - one.remainder(4), first, second).item()
    left, right = (part.clone(memory_format=torch.contiguous_format) for part in (found.left[:, :4], found.right[:4]))
    optimizer = torch.optim.LBFGS(
        [left.requires_grad_(), right.requires_grad_()], max_iter=300, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = lost(left @ right, first, second)
        value.backward()
        return value

    optimizer.step(closure)
    assert ours < 2 * lost(left @ right, first, second).item()


def test_two_uses_that_are_alike_have_the_projection_of_one():
    S, C = positive(0, 1)
    one, both = projection.projections(S, C), projection.shared_projections((S, C), (2 * S, 0.5 * C))
    for rank in (2, 5):
        torch.testing.assert_close(both.remainder(rank), one.remainder(rank))
        torch.testing.assert_close(both.tail()[rank], 2 * one.tail()[rank])
