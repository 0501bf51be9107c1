"""The weighed loss beside its definition over single outputs."""

import pytest
import torch

from panther.quantize.loss import weighed_loss


@pytest.mark.parametrize("size", [1.0, 1e-12, 1e12])
def test_it_is_the_mean_over_inputs_of_what_an_error_of_the_outputs_costs(size):
    generator = torch.Generator().manual_seed(0)
    lost, X, J = (torch.randn(*shape, generator=generator).double() for shape in ((5, 7), (100, 7), (9, 5)))
    lost = lost * size
    errors = X @ lost.t()
    wanted = float((errors @ J.t()).square().sum() / 100)
    assert weighed_loss(lost, J.t() @ J, X.t() @ X / 100) == pytest.approx(wanted, rel=1e-4)


def test_weights_of_outputs_that_are_a_diagonal():
    generator = torch.Generator().manual_seed(0)
    lost, X, weights = (torch.randn(*shape, generator=generator).double() for shape in ((5, 7), (100, 7), (5,)))
    weights = weights.square()
    assert weighed_loss(lost, weights, X.t() @ X) == pytest.approx(weighed_loss(lost, weights.diag(), X.t() @ X))
