"""Embeddings of low rank against nn.Embedding and nn.EmbeddingBag over the dense table, in float64."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

import panther as pr
from panther.nn import LowRankEmbedding, LowRankEmbeddingBag

V, D, R = 50, 12, 4
X = torch.tensor([[0, 7, 3, 7], [49, 3, 3, 1]])


def make(**options) -> LowRankEmbedding:
    return LowRankEmbedding(V, D, R, generator=torch.Generator().manual_seed(1), **options)


def make_bag(**options) -> LowRankEmbeddingBag:
    return LowRankEmbeddingBag(V, D, R, generator=torch.Generator().manual_seed(1), **options)


def dense(layer) -> nn.Module:
    """The twin of torch over the dense table."""
    kind = nn.Embedding if isinstance(layer, LowRankEmbedding) else nn.EmbeddingBag
    more = {} if kind is nn.Embedding else {"mode": layer.mode, "include_last_offset": layer.include_last_offset}
    options = {"padding_idx": layer.padding_idx, "scale_grad_by_freq": layer.scale_grad_by_freq, **more}
    twin = kind(V, D, **options, dtype=torch.float64)
    with torch.no_grad():
        twin.weight.copy_(layer.A.double() @ layer.B.double())
    return twin


@pytest.mark.parametrize("options", [{}, {"padding_idx": 3}, {"padding_idx": -1}], ids=str)
def test_embedding_is_the_lookup_in_the_dense_table(options):
    layer = make(**options)
    torch.testing.assert_close(layer(X).double(), dense(layer)(X), atol=1e-6, rtol=1e-5)
    assert layer(X[0, 0]).shape == (D,)
    assert layer.weight.shape == (V, D)
    if options:
        assert not layer.A[layer.padding_idx].any()
        assert layer.padding_idx == nn.Embedding(V, D, **options).padding_idx


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("padding_idx", [None, 3])
def test_bag_is_that_of_the_dense_table(mode, padding_idx):
    layer = make_bag(mode=mode, padding_idx=padding_idx)
    twin = dense(layer)
    close = {"atol": 1e-6, "rtol": 1e-5}
    torch.testing.assert_close(layer(X).double(), twin(X), **close)
    flat, offsets = X.flatten(), torch.tensor([0, 3, 3])
    torch.testing.assert_close(layer(flat, offsets).double(), twin(flat, offsets), **close)
    last = make_bag(mode=mode, padding_idx=padding_idx, include_last_offset=True)
    ends = torch.tensor([0, 3, 8])
    torch.testing.assert_close(last(flat, ends).double(), dense(last)(flat, ends), **close)
    if mode == "sum":
        weights = torch.rand(X.shape)
        torch.testing.assert_close(
            layer(X, per_sample_weights=weights).double(), twin(X, per_sample_weights=weights.double()), **close
        )


@pytest.mark.parametrize("make_layer", [make, make_bag])
def test_gradients_are_those_of_the_dense_table(make_layer):
    layer = make_layer(padding_idx=3, scale_grad_by_freq=True).double()
    twin = dense(layer)
    pull = torch.randn(layer(X).shape, dtype=torch.float64)
    (layer(X) * pull).sum().backward()
    (twin(X) * pull).sum().backward()
    torch.testing.assert_close(layer.A.grad, twin.weight.grad @ layer.B.t())
    assert not layer.A.grad[3].any()
    assert layer.B.grad.shape == (R, D)


@pytest.mark.parametrize("make_layer", [make, make_bag])
def test_sparse_gradients(make_layer):
    layer = make_layer(sparse=True)
    layer(X).sum().backward()
    assert layer.A.grad.is_sparse
    assert not layer.B.grad.is_sparse


def test_a_fresh_table_has_the_variance_of_a_fresh_embedding():
    layer = LowRankEmbedding(4000, 64, 16, generator=torch.Generator().manual_seed(0))
    assert layer.weight.var().item() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("kind", [LowRankEmbedding, LowRankEmbeddingBag])
def test_from_embedding_is_the_truncated_svd(kind):
    torch.manual_seed(0)
    bag = kind is LowRankEmbeddingBag
    layer = nn.EmbeddingBag(V, D, mode="sum", padding_idx=3) if bag else nn.Embedding(V, D, padding_idx=3)
    layer = layer.double().eval().requires_grad_(requires_grad=False)
    found = kind.from_embedding(layer, R)
    U, S, Vh = np.linalg.svd(layer.weight.numpy(), full_matrices=False)
    np.testing.assert_allclose(found.weight.numpy(), (U[:, :R] * S[:R]) @ Vh[:R], atol=1e-9)
    assert not found.A[3].any()
    assert (found.A.dtype, found.training, found.A.requires_grad, found.padding_idx) == (torch.float64, False, False, 3)
    weights = torch.full((V,), 1e-3)
    weights[:R] = 1
    weighed = kind.from_embedding(layer, R, row_weights=weights)
    assert (weighed.weight - layer.weight)[:R].norm() < 0.2 * (found.weight - layer.weight)[:R].norm()


def test_state_pickle_copy_meta_and_files(tmp_path):
    layer = make(padding_idx=3)
    assert set(layer.state_dict()) == {"A", "B"}
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(X), layer(X))
    pr.save(layer, tmp_path / "a.safetensors")
    empty = LowRankEmbedding(V, D, R, padding_idx=3, device="meta")
    pr.load(empty, tmp_path / "a.safetensors")
    assert torch.equal(empty(X), layer(X))
    drawn = LowRankEmbedding(V, D, R, padding_idx=3, device="meta").to_empty(device="cpu")
    drawn.reset_parameters(torch.Generator().manual_seed(1))
    assert torch.equal(drawn(X), layer(X))
    assert "rank=4" in repr(layer)


@pytest.mark.parametrize("make_layer", [make, make_bag])
def test_compile_export_autocast_and_vmap(make_layer):
    layer = make_layer()
    expected = layer(X)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(X), expected)
    exported = torch.export.export(layer.eval(), (X,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.testing.assert_close(exported.module()(torch.cat([X, X])), torch.cat([expected, expected]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(X)
    assert (y.float() - expected).abs().max() < 0.05 * expected.abs().max()
    torch.testing.assert_close(functional_call(layer, dict(layer.named_parameters()), (X,)), expected)
    if make_layer is make:
        torch.testing.assert_close(vmap(layer)(X), expected)


def test_factors_are_counted_and_tied():
    layer, other = make(), make()
    count = layer.parameter_count()
    assert (count.dense, count.learnable, count.fixed) == (V * D, R * (V + D), 0)
    other.tie_to(layer)
    assert len(list(nn.ModuleList([layer, other]).parameters())) == 2


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: LowRankEmbedding(0, 4, 2), ValueError, r"num_embeddings \(0\) must be at least 1"),
        (lambda: LowRankEmbedding(9, 4, 2.0), TypeError, r"rank \(2.0\) must be an integer"),
        (lambda: LowRankEmbedding(9, 4, 5), ValueError, r"rank \(5\) must be at most embedding_dim \(4\)"),
        (lambda: LowRankEmbedding(9, 4, 2, 9), ValueError, r"padding_idx \(9\) must be from -9 to 8"),
        (lambda: LowRankEmbedding(9, 4, 2, max_norm=1.0), ValueError, r"max_norm \(1.0\) must be None: it changes"),
        (lambda: LowRankEmbeddingBag(9, 4, 2, mode="max"), ValueError, r"mode \('max'\) must be 'mean' or 'sum'"),
        (lambda: LowRankEmbedding.from_embedding(nn.Linear(4, 4), 2), TypeError, r"layer \(Linear\) must be"),
        (lambda: LowRankEmbeddingBag.from_embedding(nn.Embedding(9, 4), 2), TypeError, r"layer \(Embedding\) must"),
        (
            lambda: LowRankEmbedding.from_embedding(nn.Embedding(9, 4), 2, row_weights=torch.ones(4)),
            ValueError,
            r"row_weights of shape \(4,\) must be \(num_embeddings,\) = \(9,\)",
        ),
        (
            lambda: LowRankEmbedding.from_embedding(nn.Embedding(9, 4), 2, row_weights=torch.zeros(9)),
            ValueError,
            "row_weights must be finite and not negative, and some of them above 0",
        ),
        (
            lambda: LowRankEmbedding.from_embedding(nn.Embedding(9, 4, device="meta"), 2),
            ValueError,
            "is on the device 'meta' and has no values; load it first",
        ),
        (
            lambda: LowRankEmbedding.from_embedding(nn.Embedding.from_pretrained(torch.full((9, 4), torch.nan)), 2),
            ValueError,
            "values that are not finite",
        ),
    ],
)  # fmt: skip
def test_wrong_arguments(call, error, match):
    with pytest.raises(error, match=match):
        call()
