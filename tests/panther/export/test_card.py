import json
from pathlib import Path

import jsonschema
import onnx
import pytest
import torch
from torch import nn

from panther.export import CARD_KEY, Input, Output, Training, export_onnx, read_card
from panther.nn import ConditionalSKLinear, SKLinear

SCHEMA = json.loads((Path(__file__).parents[3] / "docs" / "model-card.schema.json").read_text())


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
