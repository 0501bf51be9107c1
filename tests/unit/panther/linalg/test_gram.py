import pytest
import torch

from panther.linalg.gram import add_gram_, mirror_, times, weight_gram


@pytest.mark.parametrize("d", [5, 300, 1100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sums_of_gram_matrices(d, dtype):
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(7, d, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)]
    total = torch.zeros(d, d, dtype=torch.float64)
    for X in batches:
        add_gram_(total, X, torch.tensor(0.5, dtype=torch.float64) if dtype == torch.float32 else 0.5)
    expected = sum(0.5 * X.double().t() @ X.double() for X in batches)
    torch.testing.assert_close(mirror_(total), expected, rtol=0, atol=1e-10 if dtype == torch.float64 else 1e-4)
    assert torch.equal(mirror_(total.clone()), total)


@pytest.mark.parametrize("of_rows", [True, False])
def test_gram_of_a_weight_in_blocks(of_rows, monkeypatch):
    monkeypatch.setattr("panther.linalg.gram._ENTRIES", 100)
    W = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    expected = W.double() @ W.double().t() if of_rows else W.double().t() @ W.double()
    torch.testing.assert_close(weight_gram(W, of_rows=of_rows), expected)


def test_a_product_with_a_weight_in_blocks(monkeypatch):
    monkeypatch.setattr("panther.linalg.gram._ENTRIES", 100)
    generator = torch.Generator().manual_seed(0)
    X, W = torch.randn(6, 30, generator=generator).double(), torch.randn(30, 25, generator=generator)
    torch.testing.assert_close(times(X, W), X @ W.double())
    assert times(X, W, torch.float32).dtype == torch.float32
