"""A budget of latency on a model whose layers gain enough, and one that can't be met."""

import pytest
import torch
from torch import nn

import panther as pr
from panther.compression.latency import Stopwatch


@pytest.fixture
def wide():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 512)).eval()


@pytest.fixture
def rows():
    return (torch.randn(200, 16) @ torch.randn(16, 512)).split(50)


def test_the_report_says_what_was_measured(wide, rows):
    compressed = pr.compress(
        wide, calibration=rows, speedup=1.2, batch_size=16, kinds=["int8", "low_rank_int8"], probes=2
    )
    speed = compressed.report.speed
    assert speed.speedup == speed.before_us / speed.after_us
    assert (speed.batch_size, speed.threads) == (16, 1)
    assert f"{speed.speedup:.2f} times as fast" in str(compressed.report)
    # what falls short is said; what is reached is not
    assert (speed.speedup < 1.2) == any("below the budget of 1.2" in note for note in compressed.report.notes)
    assert any(layer.kind != "float" for layer in compressed.report.layers)
    assert "µs more for an error" in str(compressed.report)
    assert type(wide[0]) is nn.Linear


def test_a_speedup_out_of_reach_says_the_best(wide, rows):
    with pytest.raises(ValueError, match=r"speedup \(10000\) can't be met: .* times as fast"):
        pr.compress(wide, calibration=rows, speedup=1e4, kinds=["int8", "low_rank_int8"], probes=2)


def test_layers_that_take_longer_than_the_file_do_not_hide_it(wide, rows, monkeypatch):
    option_us = Stopwatch.option_us
    monkeypatch.setattr(Stopwatch, "option_us", lambda *arguments: 50 * option_us(*arguments))
    with pytest.raises(ValueError, match=r"speedup \(10000\) can't be met: .* times as fast"):
        pr.compress(wide, calibration=rows, speedup=1e4, kinds=["int8"], probes=2)


def test_a_model_that_is_called_in_another_way_can_not_be_timed(wide, rows):
    with pytest.raises(pr.ConversionError, match="custom forward calls the model differently"):
        pr.compress(
            wide,
            calibration=rows,
            speedup=2.0,
            forward=lambda model, batch: model(batch),
            kinds=["int8", "low_rank_int8"],
            probes=2,
        )


@pytest.mark.parametrize(
    ("changes", "match"), [({"batch_size": 0}, r"batch_size \(0\)"), ({"threads": 1.5}, r"threads \(1.5\)")]
)
def test_what_is_wrong_is_named(wide, rows, changes, match):
    with pytest.raises(ValueError, match=match):
        pr.compress(wide, calibration=rows, speedup=2.0, **changes, kinds=["int8", "low_rank_int8"], probes=2)
