"""What bench_accuracy.py compares is what it says that it compares."""

from __future__ import annotations

import math

import bench_accuracy
import pytest
import torch
from torch import nn

from panther.nn import SKLinear

torch.set_num_threads(1)


@pytest.mark.parametrize(("L", "k"), [(1, 4), (2, 16), (2, 32)])
def test_networks_of_one_size_have_that_size(L, k):
    sketched = bench_accuracy.network(bench_accuracy.sketched(L, k), 784, 10)
    twin = bench_accuracy.network(bench_accuracy.low_rank(2 * L * k), 784, 10)
    by_hand = 2 * L * k * (784 + 512 + 512 + 256) + 512 + 256 + 256 * 10 + 10
    assert bench_accuracy.sizes(sketched)["stored"] == bench_accuracy.sizes(twin)["stored"] == by_hand
    assert sum(tensor.numel() for tensor in sketched.state_dict().values()) == by_hand
    assert sum(tensor.numel() for tensor in twin.state_dict().values()) == by_hand


def test_a_layer_that_would_not_be_smaller_is_dense():
    assert isinstance(bench_accuracy.sketched(2, 64)(512, 256), nn.Linear)
    assert isinstance(bench_accuracy.sketched(2, 64)(784, 512), SKLinear)
    assert isinstance(bench_accuracy.low_rank(256)(512, 256), nn.Linear)


def test_a_low_rank_layer_starts_with_the_spread_of_a_dense_one():
    torch.manual_seed(0)
    left, right = bench_accuracy.low_rank(32)(784, 512)
    weight = right.weight @ left.weight
    assert weight.std().item() == pytest.approx(1 / math.sqrt(3 * 784), rel=0.05)


def test_pruning_keeps_the_largest_and_no_more():
    torch.manual_seed(0)
    model = bench_accuracy.network(nn.Linear, 30, 2, (64, 32))
    before = torch.cat([layer.weight.detach().flatten() for layer in model if isinstance(layer, nn.Linear)])
    bench_accuracy.prune_to(model, 500)
    after = torch.cat([layer.weight.detach().flatten() for layer in model if isinstance(layer, nn.Linear)])
    assert int(after.count_nonzero()) == 500
    assert before.abs().sort(descending=True).values[:500].min() >= before[after == 0].abs().max()
    sizes = bench_accuracy.pruned_sizes(model)
    assert sizes["stored"] == 500 + 64 + 32 + 2
    assert sizes["file_bytes"] == 4 * sizes["stored"] + math.ceil((30 * 64 + 64 * 32 + 32 * 2) / 8)


def test_pruned_weights_stay_zero_in_training():
    torch.manual_seed(0)
    data = bench_accuracy.load_table(seed=0)
    model = bench_accuracy.network(nn.Linear, 30, 2, (64, 32))
    bench_accuracy.prune_to(model, 500)
    bench_accuracy.train(model, data, seed=0, epochs=1, lr=1e-3)
    assert bench_accuracy.pruned_sizes(model)["stored"] <= 500 + 64 + 32 + 2


def test_the_summary_has_one_entry_a_network():
    rows = [
        {
            "data": "d",
            "method": "m",
            "setting": "s",
            "seed": seed,
            "bits": 32,
            "learnable": 1,
            "fixed": 2,
            "stored": 3,
            "file_bytes": 5,
        }
        | {"accuracy": accuracy}
        for seed, accuracy in ((0, 0.5), (1, 0.75))
    ]
    (entry,) = bench_accuracy.summarise([*rows, rows[0]])  # a network that was measured twice with one seed counts once
    assert (entry["accuracy_mean"], entry["accuracy_min"], entry["accuracy_max"]) == (0.625, 0.5, 0.75)


def test_a_pruned_network_in_bits_keeps_what_was_left():
    torch.manual_seed(0)
    model = bench_accuracy.network(nn.Linear, 20, 2, (24, 12))
    bench_accuracy.prune_to(model, 300)
    with torch.no_grad():
        model(torch.zeros(1, 20))  # as an evaluation does: the weights then are no part of a graph of derivatives
    smaller, size = bench_accuracy.pruned_in_bits(model, 8)
    weights = [(old.weight, new.weight) for old, new in zip(model, smaller, strict=True) if isinstance(old, nn.Linear)]
    for old, new in weights:
        assert torch.equal(old != 0, new != 0) or (new[old == 0] == 0).all()
        torch.testing.assert_close(new, old.detach(), rtol=0, atol=float(old.abs().max()) / 127)
    bitmap = sum(-(-old.numel() // 8) for old, _ in weights)
    assert 300 + bitmap + 4 * 38 < size < 300 + bitmap + 4 * 38 + 4 * 8
