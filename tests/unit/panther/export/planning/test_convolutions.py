"""The choice between the convolutions of the terms and one dense convolution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from panther.export.graph.convolutions import weights
from panther.export.ort import Target
from panther.export.planning import convolutions
from panther.export.planning.convolutions import choose_convolutions, measure_convolution
from panther.nn import SKConv2d, SKLinear

pytestmark = pytest.mark.filterwarnings("ignore:.*the sketched layer is the larger one:UserWarning")


def choose(layers, requested="auto", *, shapes=None, smallest=False, batch_sizes=(1, 4)):
    shapes = shapes if shapes is not None else dict.fromkeys(layers, (2, 16, 8, 8))
    return choose_convolutions(
        layers,
        requested,
        input_shapes=shapes,
        batch_sizes=batch_sizes,
        target=Target(num_threads=1),
        dtype=np.float32,
        smallest=smallest,
    )


def layer(rank=2, **options):
    return SKConv2d(16, 16, 3, 1, rank, padding=1, terms="output", **options)


def test_what_is_faster_is_taken_and_the_same_is_measured_once(monkeypatch):
    seen = []

    def measured(conv, shapes, *_):
        seen.append((conv.low_rank, shapes))
        fast, slow = [10.0, 20.0], [15.0, 40.0]
        return {"two_products": fast if conv.low_rank == 2 else slow, "dense": slow if conv.low_rank == 2 else fast}

    monkeypatch.setattr(convolutions, "measure_convolution", measured)
    found = choose({"a": layer(), "b": layer(), "c": layer(4)})
    assert {name: decision.plan for name, decision in found.items()} == {
        "a": "two_products",
        "b": "two_products",
        "c": "dense",
    }
    assert seen == [(2, [(1, 16, 8, 8), (4, 16, 8, 8)]), (4, [(1, 16, 8, 8), (4, 16, 8, 8)])]
    assert found["c"].reason == "measured: two products take up to 2.00x the time"
    assert found["a"].weight_bytes == 4 * (4 * 16 * 9 + 4 * 16)
    assert found["c"].weight_bytes == 4 * 16 * 16 * 9


def test_requests_limits_and_layers_that_are_not_called():
    layers = {"small": layer(), "large": SKConv2d(16, 16, 1, 2, 8)}
    assert {d.plan for d in choose(layers, "dense").values()} == {"dense"}
    found = choose(layers, {"small": "dense"}, shapes={})
    assert (found["small"].reason, found["large"].reason) == ("as requested", "never called on the example inputs")
    found = choose(layers, smallest=True)
    assert {name: d.plan for name, d in found.items()} == {"small": "two_products", "large": "dense"}
    for name, conv in layers.items():
        assert weights(conv, dense=True) == conv.to_conv().weight.numel()
        assert weights(conv, dense=False) == sum(t.numel() for t in conv.state_dict().values()) - 16, name
    with pytest.raises(ValueError, match=r"plan \('fast'\) must be 'auto', 'two_products' or 'dense'"):
        choose(layers, "fast")


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_both_plans_are_measured_on_the_target(mode):
    conv = layer(padding_mode=mode)
    times = measure_convolution(conv, [(1, 16, 8, 8), (2, 16, 8, 8)], Target(num_threads=1), np.float32, 0.05)
    assert set(times) == {"two_products", "dense"}
    assert all(len(of_plan) == 2 and min(of_plan) > 0 for of_plan in times.values())


def test_an_export_keeps_its_limit_on_memory(export):
    # channels in whole blocks, which onnxruntime would fill up
    conv = SKConv2d(32, 32, 3, 1, 8, padding=1, terms="output")
    model = nn.Sequential(conv, nn.Flatten(), SKLinear(2048, 64, 1, 8)).eval()
    least = 4 * sum(tensor.numel() for tensor in model.state_dict().values())
    report = export(model, torch.randn(2, 32, 8, 8), plan="auto", max_weight_bytes=least + 64)
    assert report.card.storage.weight_bytes <= least + 64
    (entry,) = report.card.convolutions
    assert (entry.plan, entry.reason) == ("two_products", "stores less, and max_weight_bytes is given")
