"""Which convolutions are converted, and that their patches are those that torch's own unfold gives."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

import panther as pr
from panther.convert import convolutions
from panther.convert.convolutions import rows_of_outputs, sampled_patches

GEOMETRIES = [
    {"kernel_size": 3},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)},
    {"kernel_size": 3, "dilation": (2, 1), "padding": "same"},
    {"kernel_size": (2, 4), "padding": "same"},
    {"kernel_size": 3, "padding": 2, "padding_mode": "circular"},
    {"kernel_size": 1, "stride": 2},
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
def test_patches_times_the_unfolded_weight_are_the_outputs(options, batched):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, bias=False, dtype=torch.float64, **options)
    x = torch.randn(2, 3, 7, 9, dtype=torch.float64) if batched else torch.randn(3, 7, 9, dtype=torch.float64)
    patches, places = sampled_patches(conv, x, torch.Generator())
    torch.testing.assert_close(patches @ conv.weight.flatten(1).t(), rows_of_outputs(conv, conv(x))[places])
    assert len(places) == rows_of_outputs(conv, conv(x)).shape[0]


def test_patches_of_one_axis():
    conv = nn.Conv1d(4, 6, 5, stride=2, padding=2, bias=False)
    x = torch.randn(3, 4, 20)
    patches, places = sampled_patches(conv, x, torch.Generator())
    torch.testing.assert_close(patches @ conv.weight.flatten(1).t(), rows_of_outputs(conv, conv(x))[places])


def test_of_many_positions_a_sample_is_taken(monkeypatch):
    monkeypatch.setattr(convolutions, "MOST_ENTRIES", 27 * 100)
    conv = nn.Conv2d(3, 5, 3, bias=False)
    x = torch.randn(2, 3, 30, 30)
    patches, places = sampled_patches(conv, x, torch.Generator().manual_seed(1))
    assert patches.shape == (100, 27)
    assert len(places.unique()) == 100
    torch.testing.assert_close(patches @ conv.weight.flatten(1).t(), rows_of_outputs(conv, conv(x))[places])


class Standardized(nn.Conv2d):
    def forward(self, x):
        return super().forward(x - x.mean())


def shared():
    first, second = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
    second.weight = first.weight
    return nn.Sequential(first, second)


def not_finite():
    conv = nn.Conv2d(32, 32, 3)
    conv.weight.data[0, 0, 0, 0] = torch.nan
    return conv


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.Conv2d(32, 32, 3, groups=32), "depthwise: each channel has its own kernel.*quantize_ store it in"),
        (lambda: nn.Conv2d(32, 32, 3, groups=4), r"grouped: each of its 4 groups .* SKConv2d.from_conv"),
        (lambda: nn.Conv2d(1024, 8, (17, 1)), r"wide: its patches have 17,408 entries, .* SKConv2d.from_conv"),
        (lambda: nn.Conv1d(1024, 8, 17), r"wide: its patches have 17,408 entries, .* SKConv1d.from_conv"),
        (lambda: nn.Conv2d(1, 8, 3), "too small: no rank that is a multiple of 8"),
        (lambda: Standardized(32, 32, 3), "Standardized does more than nn.Conv2d in its forward"),
        (lambda: nn.LazyConv2d(32, 3), "not initialized.*call the model once"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(32, 32, 3)), "parametrised.*remove_parametrizations"),
        (lambda: nn.Conv2d(32, 32, 3, device="meta"), "on the device 'meta'"),
        (not_finite, "not finite"),
        (shared, r"convolutions that share one weight \(1.0, 1.1\) stay dense; untie them"),
    ],
)
def test_what_stays_has_a_reason(make, reason):
    model = nn.Sequential(nn.Linear(64, 64), make())
    report = pr.sketch_(model, ratio=1.0)
    kept = {name: why for name, why in report.kept.items() if name.startswith("1")}
    assert kept
    for why in kept.values():
        assert re.search(reason, why), why


def test_a_convolution_that_is_the_model_is_refused():
    with pytest.raises(ValueError, match=r"itself an nn.Conv2d and can't be replaced in place; use SKConv2d.from_conv"):
        pr.sketch_(nn.Conv2d(32, 32, 3), ratio=0.5)


def test_filter_fn_and_skip_leave_convolutions():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(32, 32, 3), nn.Flatten(), nn.Linear(32, 64), nn.Linear(64, 64)).eval()
    for options in ({"filter_fn": lambda module, name: isinstance(module, nn.Linear)}, {"skip": "0"}):
        report = pr.sketch_(copy.deepcopy(model), ratio=0.9, **options)
        assert [layer.name for layer in report.layers] == ["2", "3"]
        assert ("0",) in [group.names for group in report.unreached]
    match = "skip pattern 'body' matches no linear layer, convolution or embedding of the model"
    with pytest.raises(ValueError, match=match):
        pr.sketch_(model, ratio=0.9, skip="body")
