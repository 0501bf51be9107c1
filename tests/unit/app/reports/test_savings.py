"""Sums and reductions against arithmetic by hand; what no float holds is null."""

import json

import pytest
from helpers.build import sketched_card

from app.errors import CardError
from app.reports.savings import LatencyStats, LayerStats, MultiplyAddStats, ParameterStats, card_fields
from app.runtime.card import Card, Latency, Layer, Parameters, parse_card


def layer(dense, planned, name="fc1"):
    return Layer.model_validate(
        {
            "name": name,
            "in_features": 6,
            "out_features": 5,
            "num_terms": 1,
            "low_rank": 2,
            "bias": True,
            "plan": "two_products",
            "parameters": {"dense": 35, "learnable": 27, "fixed": 22},
            "multiply_adds_per_row": {"dense": dense, "planned": planned},
        }
    )


@pytest.mark.parametrize(
    ("counts", "both", "reductions"),
    [
        ((35, 27, 22), 49, (22.86, -40.0)),  # 1 - 27/35, 1 - 49/35
        ((8, 1, 1), 2, (87.5, 75.0)),
        ((0, 0, 0), 0, (None, None)),
    ],
)
def test_parameters_have_their_sum_and_both_reductions(counts, both, reductions):
    dense, learnable, fixed = counts
    stats = ParameterStats.of(Parameters(dense=dense, learnable=learnable, fixed=fixed))
    assert stats.model_dump() == {
        "dense": dense,
        "learnable": learnable,
        "fixed": fixed,
        "learnable_and_fixed": both,
        "reduction_percent": {"learnable": reductions[0], "learnable_and_fixed": reductions[1]},
    }


def test_a_layer_keeps_the_fields_of_the_card_in_their_order():
    stats = LayerStats.of(layer(30, 44)).model_dump()
    assert list(stats) == [
        *("name", "in_features", "out_features", "num_terms", "low_rank", "bias", "sketch", "plan", "merged_into"),
        *("uses", "biases", "parameters", "multiply_adds_per_row"),
    ]
    assert (stats["plan"], stats["parameters"]["learnable_and_fixed"]) == ("two_products", 49)


def test_multiply_adds_are_summed_beyond_the_largest_count_of_a_card():
    most = 2**53 - 1
    stats = MultiplyAddStats.of([layer(most, 1), layer(most, most, "fc2")])
    assert (stats.dense, stats.planned, stats.reduction_percent) == (2 * most, most + 1, 50.0)


def latency(ours, twin):
    return Latency(device="cpu", num_threads=1, batch_sizes=[1, 8], median_us=ours, dense_twin_median_us=twin)


def test_latency_is_set_against_the_dense_twin():
    stats = LatencyStats.of(latency([10.0, 20.0], [15.5, 19.0]))
    assert stats.ratio_to_dense_twin == [0.645, 1.053]
    assert LatencyStats.of(None) is None


def test_a_ratio_beyond_floats_makes_the_latency_unknown():
    assert LatencyStats.of(latency([1e308, 1.0], [1e-308, 1.0])) is None


def test_without_a_card_every_field_is_null():
    assert set(card_fields(None).values()) == {None}


def test_outputs_have_their_kind_and_unit():
    outputs = [{"name": "y", "kind": "regression", "unit": "mg/dL", "description": "sugar"}, {"name": "z"}]
    card = parse_card(json.dumps(sketched_card(outputs=outputs)))
    assert [item.model_dump() for item in card_fields(card)["outputs"]] == [
        {"name": "y", "kind": "regression", "unit": "mg/dL"},
        {"name": "z", "kind": None, "unit": None},
    ]


QUANTIZED = {
    "name": "head",
    "kind": "linear",
    "in_features": 64,
    "out_features": 10,
    "scheme": "int8-static",
    "smoothed": True,
    "weight_bytes": 936,
    "block_size": None,
}


def card(**more):
    counts = {"dense": 0, "learnable": 0, "fixed": 0}
    errors = {"max_absolute_error": 0.0, "max_relative_error": 0.0, "mean_relative_error": 0.0}
    return {
        "schema_version": "1.0",
        "name": "m",
        "created_at": "2026-11-29T00:00:00+00:00",
        "inputs": [],
        "outputs": [{"name": "y"}],
        "layers": [],
        "totals": {"sketched_layers": counts, "model": counts},
        "dense_twin": {"weight_bytes": 4000},
        "check": {"reference": "torch", "runtime": "onnxruntime", "rows": 1, "tolerance": 0.05, **errors},
        "versions": {},
        **more,
    }


def test_layers_in_eight_bits_and_bytes_by_type_are_reported():
    storage = {"precision": "mixed", "u_storage": "float", "weight_bytes": 1000}
    by_type = {"int8": 900, "float32": 100}
    given = card(quantized_layers=[QUANTIZED], storage={**storage, "bytes_by_type": by_type})
    fields = card_fields(parse_card(json.dumps(given)))
    assert [layer.model_dump() for layer in fields["quantized_layers"]] == [QUANTIZED]
    assert fields["storage"].bytes_by_type == by_type


def convolution(**changes):
    counts = {"dense": 160, "learnable": 60, "fixed": 40}
    shape = {"in_channels": 4, "out_channels": 4, "kernel_size": [3, 3], "stride": [1, 1], "groups": 1}
    return {
        "name": "conv",
        "shape": shape,
        "num_terms": 1,
        "low_rank": 2,
        "terms": "both",
        "bias": True,
        "sketch": "rademacher",
        "plan": "dense",
        "reason": "faster",
        "weight_bytes": 640,
        "parameters": counts,
        "multiply_adds_per_position": {"dense": 144, "planned": 144},
    } | changes


def test_convolutions_are_reported_and_their_sum_is_checked():
    layer = convolution()
    given = card(convolutions=[layer])
    given["totals"] = {**given["totals"], "convolutions": layer["parameters"]}
    parsed = parse_card(json.dumps(given))
    fields = card_fields(parsed)
    assert [item.model_dump() for item in fields["convolutions"]] == [layer]
    assert fields["totals"].convolutions.learnable == 60
    assert parsed.contradictions() == []
    given["totals"]["convolutions"] = {"dense": 161, "learnable": 60, "fixed": 40}
    assert parse_card(json.dumps(given)).contradictions() == [
        "totals.convolutions: the card has dense 161, the sum over its layers is 160"
    ]
    with pytest.raises(CardError, match=r"convolutions\.0\.shape\.groups"):
        parse_card(json.dumps(card(convolutions=[convolution(shape=layer["shape"] | {"groups": 0})])))


def test_embeddings_are_reported_and_their_counts_are_checked():
    layer = {
        "name": "table",
        "num_embeddings": 100,
        "embedding_dim": 16,
        "rank": 4,
        "mode": "sum",
        "parameters": {"dense": 1600, "learnable": 464, "fixed": 0},
        "multiply_adds_per_row": {"dense": 0, "planned": 64},
        "uses": None,
        "heads": None,
    }
    given = card(embeddings=[layer])
    given["totals"] = {**given["totals"], "embeddings": layer["parameters"]}
    parsed = parse_card(json.dumps(given))
    fields = card_fields(parsed)
    assert [item.model_dump() for item in fields["embeddings"]] == [layer]
    assert fields["totals"].embeddings.reduction_percent.learnable == 71.0
    assert parsed.contradictions() == []
    given["embeddings"] = [layer | {"rank": 5}]
    assert parse_card(json.dumps(given)).contradictions() == [
        "embedding 'table': the card has learnable 464, the formula gives 580"
    ]
    with pytest.raises(CardError, match=r"embeddings\.0\.rank"):
        parse_card(json.dumps(card(embeddings=[layer | {"rank": 0}])))


def curve(points, **changes):
    return {"budget": "at most 300 bytes", "original_bytes": 800, "points": points, **changes}


POINTS = [
    {"bytes": 100, "error": 0.2, "measured": False},
    {"bytes": 250, "error": 0.01, "measured": True, "chosen": True, "metric": 0.97},
]


def test_the_curve_of_a_compression_is_reported():
    given = card(compression_curve=curve(POINTS, original_metric=1))
    reported = card_fields(parse_card(json.dumps(given)))["compression_curve"].model_dump()
    assert reported == curve(
        [{"chosen": False, "metric": None, **POINTS[0]}, {**POINTS[1]}],
        original_metric=1.0,
    )
    assert card_fields(parse_card(json.dumps(card())))["compression_curve"] is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (curve([]), "compression_curve.points: List should have at least 1 item"),
        (curve([POINTS[1], *[POINTS[0]] * 32]), "compression_curve.points: List should have at most 32 items"),
        (curve([POINTS[0]]), "compression_curve: .*exactly one of the points must be chosen, not 0"),
        (curve([POINTS[1], POINTS[1]]), "compression_curve: .*must be chosen, not 2"),
        (curve([POINTS[1] | {"bytes": -1}]), r"compression_curve\.points\.0\.bytes"),
        (curve([POINTS[1] | {"bytes": 2**53}]), r"compression_curve\.points\.0\.bytes"),
        (curve([POINTS[1] | {"error": -0.1}]), r"compression_curve\.points\.0\.error"),
        (curve([POINTS[1] | {"error": "0.1"}]), r"compression_curve\.points\.0\.error"),
        (curve([POINTS[1] | {"measured": 1}]), r"compression_curve\.points\.0\.measured"),
        (curve([POINTS[1] | {"metric": "best"}]), r"compression_curve\.points\.0\.metric"),
        (curve(POINTS, original_bytes=None), r"compression_curve\.original_bytes"),
        ("<svg>", "compression_curve: Input should be a valid dictionary"),
    ],
)
def test_a_wrong_curve_is_refused_and_named(wrong, message):
    with pytest.raises(CardError, match=message):
        parse_card(json.dumps(card(compression_curve=wrong)))


def test_a_card_of_an_older_export_has_none():
    storage = {"precision": "float32", "u_storage": "bits", "weight_bytes": 1000}
    fields = card_fields(Card.model_validate(card(storage=storage)))
    assert fields["quantized_layers"] is None
    assert fields["convolutions"] is None
    assert fields["embeddings"] is None
    assert fields["totals"].convolutions is None
    assert fields["storage"].bytes_by_type is None


@pytest.mark.parametrize("wrong", [{"weight_bytes": -1}, {"smoothed": "yes"}, {"out_features": 0}])
def test_a_quantized_layer_that_is_wrong_is_named(wrong):
    (field,) = wrong
    with pytest.raises(CardError, match=rf"quantized_layers\.0\.{field}"):
        parse_card(json.dumps(card(quantized_layers=[QUANTIZED | wrong])))
