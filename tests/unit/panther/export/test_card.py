import json
from pathlib import Path

import jsonschema
import onnx
import pytest
import torch
from torch import nn

from panther.export import CARD_KEY, Column, Input, Output, Training, export_onnx, read_card
from panther.nn import ConditionalSKLinear, SKConv2d, SKLinear

SCHEMA = json.loads((Path(__file__).parents[4] / "docs" / "model-card.schema.json").read_text())
POINT = {"bytes": 1, "error": 0.5, "measured": True}
CHOSEN = {**POINT, "chosen": True}


def valid(card):
    jsonschema.Draft202012Validator(SCHEMA, format_checker=jsonschema.FormatChecker()).validate(card)
    return card


def card_of(report):
    return valid(read_card(onnx.load(report.path)))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    torch.manual_seed(0)
    report = export_onnx(
        nn.Sequential(SKLinear(64, 48, 1, 8), nn.ReLU(), SKLinear(48, 32, 1, 8)),
        torch.randn(4, 64),
        tmp_path_factory.mktemp("models"),
        name="m",
        num_threads=1,
        plan={"0": "dense", "2": "auto"},
        batch_sizes=(1, 4),
        inputs=[Input("pixels", "64 numbers")],
        outputs=[Output("scores", "one a class", "logits", tuple(f"class {i}" for i in range(32)))],
        training=Training("shapes", 10, 5, 3, 0, 1.5, {"accuracy": 0.9}, {"accuracy": 0.95}),
        description="tells shapes apart",
        license="Apache-2.0",
        authors=["A. Author", "B. Writer"],
        preprocessing="divide by 255",
    )
    return report, card_of(report)


def test_the_card_says_all_that_it_was_told(full):
    report, card = full
    assert card["inputs"] == [{"name": "pixels", "description": "64 numbers"}]
    (output,) = card["outputs"]
    assert (output["name"], output["kind"], len(output["labels"])) == ("scores", "logits", 32)
    assert card["training"]["metrics"] == {"accuracy": 0.9}
    assert card["training"]["dense_twin_metrics"] == {"accuracy": 0.95}
    assert (card["description"], card["license"], card["preprocessing"]) == (
        "tells shapes apart",
        "Apache-2.0",
        "divide by 255",
    )
    assert card["authors"] == ["A. Author", "B. Writer"]
    assert card["schema_version"] == report.card.schema_version == "1.0"
    assert set(card["versions"]) == {"panther-sketch", "torch", "onnx", "onnxruntime", "python"}


def test_the_counts_are_those_of_the_formulas(full):
    _, card = full
    first, second = card["layers"]
    # L = 1, k = 8: learnable k(d_in + d_out) + bias, fixed k(d_in + d_out), dense d_in d_out + bias
    assert first["parameters"] == {"dense": 64 * 48 + 48, "learnable": 8 * 112 + 48, "fixed": 8 * 112}
    assert second["parameters"] == {"dense": 48 * 32 + 32, "learnable": 8 * 80 + 32, "fixed": 8 * 80}
    sums = {key: first["parameters"][key] + second["parameters"][key] for key in ("dense", "learnable", "fixed")}
    assert card["totals"] == {"sketched_layers": sums, "model": sums}
    assert card["dense_twin"]["weight_bytes"] == 4 * sums["dense"]
    assert first["multiply_adds_per_row"] == {"dense": 64 * 48, "planned": 64 * 48}
    assert (first["plan"], first["sketch"]) == ("dense", "sign")


def test_the_measured_times_are_in_the_card(full):
    _, card = full
    requested, measured = card["planning"]["sites"]
    assert (requested["plan"], requested["reason"], requested["median_us"]) == ("dense", "as requested", {})
    assert {plan: len(times) for plan, times in measured["median_us"].items()} == {"two_products": 2, "dense": 2}
    assert card["planning"]["batch_sizes"] == [1, 4]
    latency = card["latency"]
    assert len(latency["median_us"]) == len(latency["dense_twin_median_us"]) == 2
    assert latency["num_threads"] == 1


def test_merged_layers_say_into_which(export):
    chain = nn.Sequential(SKLinear(64, 48, 1, 8), SKLinear(48, 32, 1, 4), nn.ReLU())
    card = card_of(export(chain, torch.randn(4, 64)))
    first, second = card["layers"]
    assert (first["plan"], first["multiply_adds_per_row"]["planned"]) == ("two_products", 8 * 64 + 8 * 32)
    assert (second["plan"], second["merged_into"]) == ("merged", "0")
    assert second["multiply_adds_per_row"]["planned"] == 0
    # the twin has a dense layer for each
    assert card["dense_twin"]["weight_bytes"] == 4 * (64 * 48 + 48 + 48 * 32 + 32)


def test_layers_that_the_model_shares_or_leaves_out_are_counted_once(sketched, export):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused, self.other = sketched(64, 64), sketched(64, 64), nn.Linear(64, 8)
            self.again = self.used

        def forward(self, x):
            return self.other(self.again(self.used(x).relu()))

    card = card_of(export(Odd(), torch.randn(4, 64)))
    assert [layer["name"] for layer in card["layers"]] == ["used", "unused"]
    assert [layer["multiply_adds_per_row"]["planned"] for layer in card["layers"]] == [16 * 128, 0]
    learnable = 8 * 128 + 64
    assert card["totals"]["model"]["learnable"] == 2 * learnable + 64 * 8 + 8


@pytest.mark.parametrize("precision", ["float16", "int8"])
@pytest.mark.parametrize("sketch", ["sign", "gaussian"])
def test_cards_of_other_precisions(precision, sketch, export):
    card = card_of(export(SKLinear(64, 32, 1, 8, sketch=sketch), torch.randn(4, 64), precision=precision))
    bits = "int8" if precision == "int8" else "bits" if sketch == "sign" else "float"
    assert card["storage"]["u_storage"] == bits
    assert card["layers"][0]["sketch"] == sketch
    dense = 64 * 32 + 32
    assert card["dense_twin"]["weight_bytes"] == pytest.approx({"float16": 2, "int8": 1.2}[precision] * dense, rel=0.1)


def test_a_card_without_anything_optional(export):
    layer = ConditionalSKLinear(64, 48, num_terms=1, low_rank=8)
    card = card_of(export(layer, torch.randn(4, 64), conditional="standard"))
    assert card["layers"] == []
    assert not {"latency", "training", "description", "license", "preprocessing"} & set(card)
    assert None not in card.values()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": "2.0"}, "does not match"),
        ({"outputs": []}, "should be non-empty|is too short"),
        ({"created_at": 5}, "is not of type 'string'"),
        ({"compression_curve": {"budget": "", "original_bytes": 1, "points": [POINT]}}, "does not contain items"),
        ({"compression_curve": {"budget": "", "original_bytes": 1, "points": [CHOSEN] * 2}}, "Too many items match"),
        ({"compression_curve": {"budget": "", "original_bytes": 1, "points": [CHOSEN, *[POINT] * 32]}}, "is too long"),
    ],
)
def test_the_schema_refuses(change, message, full):
    with pytest.raises(jsonschema.ValidationError, match=message):
        valid(full[1] | change)


def test_the_schema_tolerates_what_a_newer_minor_version_adds(full):
    valid(full[1] | {"schema_version": "1.9", "carbon": {"grams": 3}})


def test_wrong_entries():
    with pytest.raises(ValueError, match=r"kind \('score'\) of output 'y' must be"):
        Output("y", kind="score")
    with pytest.raises(ValueError, match="labels of output 'y' must not be empty"):
        Output("y", labels=())


def test_the_metadata_holds_the_card_alone(full):
    report, _ = full
    proto = onnx.load(report.path)
    assert [entry.key for entry in proto.metadata_props] == [CARD_KEY]
    onnx.checker.check_model(proto)


def test_a_regression_has_a_unit_in_the_card(tmp_path):
    outputs = [Output("y", kind="regression", unit="mg/dL", labels=("low", "high"))]
    report = export_onnx(nn.Linear(4, 2), torch.randn(3, 4), tmp_path, name="m", num_threads=1, outputs=outputs)
    assert card_of(report)["outputs"] == [
        {"name": "y", "kind": "regression", "labels": ["low", "high"], "unit": "mg/dL"}
    ]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"kind": "logits", "unit": "mg"}, r"unit \('mg'\) of output 'y' needs kind='regression', not 'logits'"),
        ({"unit": "mg"}, "needs kind='regression', not None"),
        ({"kind": "regression", "unit": " "}, r"unit \(' '\) of output 'y' must be a text such as 'mg/dL'"),
        ({"kind": "regression", "unit": 3}, r"unit \(3\) of output 'y' must be a text"),
        ({"kind": "numbers"}, "must be one of 'logits', 'probabilities', 'multilabel', 'regression', or None"),
    ],
)
def test_kinds_and_units_that_do_not_go_together_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        Output("y", **arguments)


def test_columns_and_sample_rows_are_in_the_card(tmp_path):
    columns = (Column("length", unit="cm"), Column("colour", "category", categories=("red", "blue")))
    report = export_onnx(
        nn.Linear(2, 3),
        torch.randn(4, 2),
        tmp_path,
        name="m",
        num_threads=1,
        batch_sizes=(1,),
        inputs=[Input("x", "flowers", columns, ((1.5, "red"),))],
    )
    assert card_of(report)["inputs"] == [
        {
            "name": "x",
            "description": "flowers",
            "columns": [
                {"name": "length", "type": "number", "unit": "cm"},
                {"name": "colour", "type": "category", "categories": ["red", "blue"]},
            ],
            "sample_rows": [[1.5, "red"]],
        }
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Column(""), r"name \(''\) of a column must be a text that is not empty"),
        (lambda: Column("a", "date"), r"type \('date'\) of column 'a' must be one of 'number', 'integer'"),
        (lambda: Column("a", "category"), "a category needs categories, and no other type has them"),
        (lambda: Column("a", categories=("b",)), "a category needs categories, and no other type has them"),
        (lambda: Column("a", "category", categories=("b", "b")), "categories of column 'a' must differ"),
        (lambda: Input("x", None, ()), "columns of input 'x' must have names that differ, and be at least one"),
        (lambda: Input("x", None, (Column("a"), Column("a"))), "must have names that differ"),
        (lambda: Input("x", None, (Column("a"),), ((1.0, 2.0),)), "a row of 2 values; the input has 1 columns"),
        (lambda: Input("x", None, None, ((1.0,),)), "a row of 1 values; the input has 0 columns"),
        (
            lambda: Input("x", None, (Column("a"),)).check_width((4, 2)),
            r"names 1 columns; its example has the shape \(4, 2\)",
        ),
    ],
)
def test_columns_that_contradict_themselves_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.filterwarnings("ignore:.*the sketched layer is the larger one:UserWarning")
def test_convolutions_have_entries_of_their_own(tmp_path):
    torch.manual_seed(0)
    first, second = SKConv2d(3, 16, 3, 1, 4, stride=2, terms="input"), SKConv2d(16, 16, 1, 2, 2, bias=False)
    model = nn.Sequential(first, nn.BatchNorm2d(16), second).eval()
    report = export_onnx(model, torch.randn(2, 3, 9, 9), tmp_path, name="m", num_threads=1, batch_sizes=(1, 3))
    card = card_of(report)
    assert card["layers"] == []
    assert card["totals"]["sketched_layers"] == {"dense": 0, "learnable": 0, "fixed": 0}
    entries = {entry["name"]: entry for entry in card["convolutions"]}
    assert entries["0"]["shape"] == {
        "in_channels": 3,
        "out_channels": 16,
        "kernel_size": [3, 3],
        "stride": [2, 2],
        "groups": 1,
    }
    assert [entries[name]["terms"] for name in ("0", "2")] == ["input", "both"]
    for name, layer in (("0", first), ("2", second)):
        entry, dense = entries[name], layer.to_conv()
        assert entry["parameters"]["learnable"] == sum(p.numel() for p in layer.parameters())
        assert entry["parameters"]["fixed"] == sum(b.numel() for b in layer.buffers())
        assert entry["parameters"]["dense"] == sum(p.numel() for p in dense.parameters())
        assert entry["multiply_adds_per_position"]["dense"] == dense.weight.numel()
        assert set(entry["median_us"]) == {"two_products", "dense"}
    totals = card["totals"]
    for count in ("dense", "learnable", "fixed"):
        assert totals["convolutions"][count] == sum(entry["parameters"][count] for entry in entries.values())
    norm = 32
    assert totals["model"]["learnable"] == sum(p.numel() for p in model.parameters())
    assert totals["model"]["dense"] == totals["convolutions"]["dense"] + norm
    assert card["dense_twin"]["weight_bytes"] == 4 * totals["model"]["dense"]
    assert len(card["latency"]["dense_twin_median_us"]) == 2
    assert "convolutions" not in card_of(
        export_onnx(nn.Sequential(SKLinear(64, 48, 1, 8)), torch.randn(2, 64), tmp_path, name="n", batch_sizes=(1,))
    )
