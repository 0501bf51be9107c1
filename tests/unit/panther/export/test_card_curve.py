"""The compression curve of a card: what it refuses, and that it goes into the file."""

import json
import math
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from panther.export import CompressionCurve, CurvePoint, export_onnx, read_card
from panther.export.card import MAX_POINTS

ROOT = Path(__file__).parents[4]
CHOSEN = CurvePoint(200, 0.01, measured=True, chosen=True)
OTHER = CurvePoint(100, 0.2, measured=False)


def test_the_curve_is_in_the_file_without_absent_fields(tmp_path):
    curve = CompressionCurve("at most 250 bytes", 800, (OTHER, CHOSEN))
    report = export_onnx(
        nn.Linear(4, 2),
        torch.randn(3, 4),
        tmp_path,
        name="m",
        num_threads=1,
        batch_sizes=(1,),
        compression_curve=curve,
    )
    assert read_card(onnx.load(report.path))["compression_curve"] == {
        "budget": "at most 250 bytes",
        "original_bytes": 800,
        "points": [
            {"bytes": 100, "error": 0.2, "measured": False, "chosen": False},
            {"bytes": 200, "error": 0.01, "measured": True, "chosen": True},
        ],
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bytes": -1}, r"bytes \(-1\) of a curve point must be at least 0"),
        ({"error": math.inf}, r"error \(inf\) of a curve point must be finite"),
        ({"error": -0.5}, r"error \(-0.5\)"),
        ({"error": math.nan}, r"error \(nan\)"),
        ({"metric": math.nan}, r"metric \(nan\) of a curve point must be finite, or None"),
    ],
)
def test_a_point_that_is_no_number_of_json_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        CurvePoint(**{"bytes": 1, "error": 0.1, "measured": True, **wrong})


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ((), r"points \(0\) of a compression curve must be 1 to 32"),
        ((CHOSEN, *[OTHER] * MAX_POINTS), r"points \(33\)"),
        ((OTHER,), r"chosen \(0 points\) of a compression curve must mark exactly one point"),
        ((CHOSEN, CHOSEN), r"chosen \(2 points\)"),
    ],
)
def test_a_curve_has_a_bounded_number_of_points_and_one_choice(points, message):
    with pytest.raises(ValueError, match=message):
        CompressionCurve("b", 1, points)


def test_the_limit_is_that_of_the_schema():
    schema = json.loads((ROOT / "docs" / "model-card.schema.json").read_text(encoding="utf-8"))
    assert schema["properties"]["compression_curve"]["properties"]["points"]["maxItems"] == MAX_POINTS
