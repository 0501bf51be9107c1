import json

import pytest

import panther as pr


@pytest.fixture
def report(model, tokens):
    return pr.compress(model, calibration=tokens, max_bytes=75_000, kinds=["int8", "low_rank_int8"], probes=2).report


def test_it_says_what_each_layer_became_and_why(report):
    text = str(report)
    for layer in report.layers:
        assert layer.name in text
        assert layer.reason
        assert f"{layer.bytes_before:,} → {layer.bytes_after:,}" in text
    assert f"whole model {report.bytes_before:,} → {report.bytes_after:,} bytes" in text
    assert "budget: at most 75,000 bytes" in text
    assert any("saves" in layer.reason or "the cheapest" in layer.reason for layer in report.layers)


def test_predicted_errors_are_of_the_size_of_the_measured_one(report):
    predicted = sum(layer.predicted_error**2 for layer in report.layers) ** 0.5
    assert report.output_error == pytest.approx(predicted, rel=0.6)


def test_the_dictionary_is_json(report):
    values = json.loads(json.dumps(report.as_dict()))
    assert values["bytes_by_kind"] == report.bytes_by_kind
    assert [layer["name"] for layer in values["layers"]] == ["table", "left", "right", "wide", "head"]
    assert sum(layer["bytes_after"] for layer in values["layers"]) == report.bytes_after
