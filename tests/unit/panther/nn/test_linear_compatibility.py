"""What code written for the public package finds on the layer."""

from __future__ import annotations

import warnings

import pytest
import torch

import panther as pr
from panther.nn import SKLinear


def test_the_warning_of_a_layer_larger_than_dense_is_found_under_the_public_name():
    with pytest.warns(UserWarning, match=SKLinear.WARNING_MSG_FC) as caught:
        SKLinear(30, 5, num_terms=1, low_rank=3)
    assert [SKLinear.WARNING_MSG_FC in str(warning.message) for warning in caught] == [True]


def test_the_warnings_of_tensor_cores_have_their_places_and_are_never_given():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = SKLinear(200, 150, num_terms=1, low_rank=15)
        layer(torch.zeros(7, 200))
    assert "200, out_features 150 and low_rank 15" in SKLinear.WARNING_MSG_TC.format(200, 150, 15)
    assert "batch of 7 rows" in SKLinear.WARNING_MSG_BATCH.format(7)


def test_the_quickstart_of_the_public_package_runs():
    A = torch.randn(100, 80)
    Q, R, P = pr.linalg.cqrrpt(A, gamma=1.25)
    torch.testing.assert_close(A[:, P], Q @ R, atol=1e-4, rtol=1e-4)
    U, S, V = pr.linalg.randomized_svd(A, k=10, tol=1e-6)
    assert (U @ torch.diag(S) @ V.T).shape == A.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_weight_is_the_dense_weight_of_the_layers_type_and_learns(dtype):
    layer = SKLinear(48, 32, 2, 3, dtype=dtype)
    assert (layer.weight.dtype, layer.weight.device, layer.weight.shape) == (dtype, layer.S1s.device, (32, 48))
    x = torch.randn(5, 48, dtype=dtype)
    y = torch.nn.functional.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(y, layer(x), rtol=0.05, atol=0.05)
    by_weight = torch.autograd.grad(y.square().sum(), [layer.S1s, layer.S2s])
    by_layer = torch.autograd.grad(layer(x).square().sum(), [layer.S1s, layer.S2s])
    for mine, expected in zip(by_weight, by_layer, strict=True):
        torch.testing.assert_close(mine, expected, rtol=0.1, atol=0.1 * expected.abs().max().item())
