import pytest
import torch

from panther.convert.probes import draw_probe


def test_the_expected_square_of_a_product_is_the_relative_squared_error_by_row():
    generator = torch.Generator().manual_seed(0)
    y, lost = torch.randn(2, 6, 5, generator=generator)
    squares = [(draw_probe(y, None, generator) * lost).sum().item() ** 2 for _ in range(4000)]
    assert sum(squares) / 4000 == pytest.approx((6 * lost.square().sum() / y.square().sum()).item(), rel=0.1)


def test_rows_of_padding_and_infinite_scores_get_nothing():
    y = torch.ones(2, 3, 4)
    y[0, 0, 1] = -torch.inf
    mask = torch.tensor([[True, True, False], [True, False, False]])
    v = draw_probe(y, mask, torch.Generator().manual_seed(0))
    assert not v[~mask].any()
    assert v[0, 0, 1] == 0
    assert v[mask].ne(0).sum() == 11


def test_an_output_of_zeros_gets_nothing():
    assert not draw_probe(torch.zeros(3, 4), None, torch.Generator().manual_seed(0)).any()
