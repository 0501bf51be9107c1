import pytest
import torch

from panther.linalg.triangular import congruence, lower_times, sums_of_pairs


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + shape[0]), dtype=torch.float64)


# one block, several, and a last one that is shorter
@pytest.mark.parametrize("n", [1, 40, 512, 700])
def test_products_leave_out_nothing_but_zeros(n):
    L, X, S = drawn(n, n).tril(), drawn(n, 3), drawn(n, n + 1)
    S = S @ S.t()
    torch.testing.assert_close(lower_times(L, X), L @ X)
    torch.testing.assert_close(congruence(L, S).tril(), (L.t() @ S @ L).tril())


@pytest.mark.parametrize("r", [1, 40, 700])
def test_sums_of_pairs_are_those_of_the_whole_products(r):
    A, B, C = drawn(5, r), drawn(5, r) + 1, drawn(r, 4)
    pairs = (A.t() @ B) * (C @ C.t())
    sums, diagonal = sums_of_pairs(A, B, C)
    torch.testing.assert_close(sums, pairs.tril().sum(1))
    torch.testing.assert_close(diagonal, pairs.diagonal())
