import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from helpers import build

import app

ROW = [0.5, -1.0, 2.0, 0.25, 0.0, 1.5]


def by_formula(d_in, d_out, L, k, bias=True):
    """DESIGN, "Counting honestly"."""
    extra = d_out if bias else 0
    return {
        "dense": d_in * d_out + extra,
        "learnable": L * k * (d_in + d_out) + extra,
        "fixed": L * k * (d_in + d_out),
        "learnable_and_fixed": 2 * L * k * (d_in + d_out) + extra,
    }


def check_counts(report, counts):
    for name, count in counts.items():
        assert report[name] == count
    assert report["reduction_percent"] == {
        "learnable": pytest.approx(100 * (1 - counts["learnable"] / counts["dense"]), abs=0.005),
        "learnable_and_fixed": pytest.approx(100 * (1 - counts["learnable_and_fixed"] / counts["dense"]), abs=0.005),
    }


def test_the_digits_model_is_counted_as_the_formulas_count():
    path = build.ROOT / "models" / "digits" / "1" / "model.onnx"
    with build.running(build.ROOT / "models", version_policy="1") as client:
        (report,) = client.get("/models/digits/stats").json()["models"]
    assert report["card_problem"] is None
    sums = dict.fromkeys(["dense", "learnable", "fixed", "learnable_and_fixed"], 0)
    for layer in report["layers"]:
        counts = by_formula(layer["in_features"], layer["out_features"], layer["num_terms"], layer["low_rank"])
        check_counts(layer["parameters"], counts)
        assert layer["multiply_adds_per_row"]["dense"] == layer["in_features"] * layer["out_features"]
        sums = {name: sums[name] + count for name, count in counts.items()}
    check_counts(report["totals"]["sketched_layers"], sums)
    assert report["bytes"]["file_bytes"] == path.stat().st_size
    assert report["bytes"]["dense_twin_weight_bytes"] == 4 * report["totals"]["model"]["dense"]


def test_the_tutorials_example_and_its_reductions(serve, tiny):
    layer = build.sketched_card()["layers"][0] | {
        "name": "big",
        "in_features": 4096,
        "out_features": 4096,
        "num_terms": 4,
        "low_rank": 128,
        "parameters": {"dense": 16_781_312, "learnable": 4_198_400, "fixed": 4_194_304},
        "multiply_adds_per_row": {"dense": 16_777_216, "planned": 8_388_608},
    }
    totals = {"sketched_layers": layer["parameters"], "model": layer["parameters"]}
    client = serve(tiny.graph(), card=build.sketched_card(layers=[layer], totals=totals))
    (report,) = client.get("/stats").json()["models"]
    parameters = report["layers"][0]["parameters"]
    assert parameters["learnable_and_fixed"] == 8_392_704
    assert parameters["reduction_percent"] == {"learnable": 74.98, "learnable_and_fixed": 49.99}
    assert report["multiply_adds_per_row"] == {"dense": 16_777_216, "planned": 8_388_608, "reduction_percent": 50.0}


def test_what_the_card_says_is_shown(client, tiny_dir):
    (report,) = client.get("/models/tiny/stats").json()["models"]
    card = build.sketched_card()
    assert report["check"] == card["check"] | {"outputs": None}
    assert report["versions"] == card["versions"]
    assert report["training"]["metrics"] == {"test_accuracy": 0.98}
    assert report["training"]["seed"] is None
    assert report["bytes"]["file_bytes"] == (tiny_dir / "tiny" / "1" / "model.onnx").stat().st_size
    assert report["bytes"]["dense_twin_weight_bytes"] == 212


@pytest.mark.parametrize("weights", ["model.onnx.data", "weights.bin"])
def test_the_bytes_of_a_file_are_its_own_and_those_of_the_data_that_it_names(tmp_path, weights):
    path = build.put(tmp_path, build.Tiny().graph(), "m")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location=weights, size_threshold=0)
    (path.parent / "model.onnx.bak").write_bytes(bytes(10_000))
    with build.running(tmp_path) as client:
        (report,) = client.get("/stats").json()["models"]
    assert report["bytes"]["file_bytes"] == path.stat().st_size + (path.parent / weights).stat().st_size


def test_unknown_is_null_and_never_zero(serve, tiny):
    client = serve(tiny.graph())
    (report,) = client.get("/stats").json()["models"]
    assert report["has_card"] is False
    for name in ("layers", "totals", "multiply_adds_per_row", "check", "training", "versions", "schema_version"):
        assert report[name] is None
    assert report["bytes"]["dense_twin_weight_bytes"] is None
    assert report["bytes"]["reduction_percent"] is None
    assert report["bytes"]["file_bytes"] > 0
    assert report["live"]["mean_request_ms"] is None


def test_a_card_that_contradicts_the_formulas_is_said_to(serve, tiny):
    card = build.sketched_card()
    card["layers"][0]["parameters"]["learnable"] = 20
    client = serve(tiny.graph(), card=card)
    (report,) = client.get("/stats").json()["models"]
    assert "layer 'fc1': the card has learnable 20, the formula gives 27" in report["card_problem"]
    assert "totals.sketched_layers: the card has learnable 27, the sum over its layers is 20" in report["card_problem"]


def test_unknown_fields_of_a_newer_minor_version_are_tolerated(serve, tiny):
    card = build.sketched_card(schema_version="1.7", novelty={"a": 1})
    card["layers"][0]["novelty"] = 2
    client = serve(tiny.graph(), card=card)
    (report,) = client.get("/stats").json()["models"]
    assert (report["card_problem"], report["schema_version"], len(report["layers"])) == (None, "1.7", 1)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"schema_version": "2.0"},
            "schema_version (2.0) of the card is newer than 1.x, the newest version that this server reads",
        ),
        ({"layers": None}, "the card's layers: Input should be a valid list"),
        ({"check": {}}, "the card's check.reference: Field required"),
    ],
)
def test_a_card_that_cannot_be_read_leaves_the_model_served(serve, tiny, change, problem):
    client = serve(tiny.graph(), card=json.dumps({**build.sketched_card(), **change}))
    (report,) = client.get("/stats").json()["models"]
    assert problem in report["card_problem"]
    assert report["layers"] is None
    assert client.post("/predict", json={"inputs": [ROW]}).status_code == 200
    assert client.get("/health/ready").status_code == 200


def test_live_figures_count_requests_rows_and_failures(serve, tiny):
    client = serve(tiny.graph())
    for count in (1, 2, 4):
        assert client.post("/predict", json={"inputs": [ROW] * count}).status_code == 200
    assert client.post("/predict", json={"inputs": [[1]]}).status_code == 400
    (report,) = client.get("/stats").json()["models"]
    live = report["live"]
    assert (live["requests"], live["succeeded"], live["failed"], live["rows"]) == (4, 3, 1, 7)
    assert live["failures_by_reason"] == {"InvalidRequestError": 1}
    assert live["executions"] == 3
    assert live["mean_batch_rows"] == pytest.approx(7 / 3, abs=0.01)
    parts = sum(live[f"mean_{part}_ms"] for part in ("queue", "compute_input", "compute_infer", "compute_output"))
    assert 0 < parts <= live["mean_request_ms"] * 1.01


def test_the_server_tells_what_it_runs_on(client):
    server = client.get("/stats").json()["server"]
    assert server["version"] == app.__version__
    assert server["onnxruntime"] == ort.__version__
    assert server["device"]["requested"] == "auto"
    assert server["device"]["available_providers"] == ort.get_available_providers()
    assert server["uptime_s"] >= 0
    runtime = client.get("/stats").json()["models"][0]["runtime"]
    assert runtime["provider"] == runtime["providers"][0] == "CPUExecutionProvider"
    assert runtime["num_threads"] == server["num_threads"] >= 1


def test_models_lists_tensors_and_labels(client):
    (model,) = client.get("/models").json()["models"]
    assert model == client.get("/models/tiny").json()
    assert (model["name"], model["version"], model["default"], model["state"]) == ("tiny", "1", True, "READY")
    tensor = {"name": "x", "datatype": "FP32", "shape": [-1, 6], "description": "six numbers"}
    assert model["inputs"] == [{**tensor, "columns": None, "sample_rows": None}]
    assert model["outputs"][0]["labels"] == ["ant", "bee", "cat"]
    assert np.shape(model["versions"]) == (1,)


def regression_card():
    return build.sketched_card(
        outputs=[{"name": "logits", "kind": "regression", "unit": "mg/dL", "labels": ["fasting", "fed", "mean"]}],
        training={"dataset": "made up", "metrics": {"test_r2": 0.75, "test_rmse": 12.5, "test_mae": 9.0}},
    )


def test_a_regression_is_shown_with_its_unit_and_errors(serve, tiny):
    client = serve(tiny.graph(), card=regression_card())
    (report,) = client.get("/stats").json()["models"]
    assert report["card_problem"] is None
    assert report["outputs"] == [{"name": "logits", "kind": "regression", "unit": "mg/dL"}]
    assert report["training"]["metrics"]["test_rmse"] == 12.5
    table = client.get("/stats?format=table").text
    assert "trained test_rmse 12.5" in " ".join(table.split())
    assert "unit of logits: mg/dL" in " ".join(table.split())
    (output,) = client.get("/models/m").json()["outputs"]
    assert (output["kind"], output["unit"], output["labels"]) == ("regression", "mg/dL", ["fasting", "fed", "mean"])
    answer = client.post("/predict", json={"inputs": [ROW]}).json()
    np.testing.assert_allclose(answer["outputs"]["logits"], tiny.logits(np.array([ROW])), rtol=1e-5)
    assert "predictions" not in answer


def test_live_stats_are_the_part_that_changes(serve, tiny):
    client = serve(tiny.graph())
    client.post("/predict", json={"inputs": [ROW]})
    (whole,) = client.get("/stats?histograms=true").json()["models"]
    document = client.get("/stats?live=true&histograms=true").json()
    (live,) = document["models"]
    assert live == {name: whole[name] for name in live}
    assert set(live) == {"name", "version", "served_by_default", "state", "reason", "loaded_at_s", "live"}
    assert set(document["server"]) == set(client.get("/stats").json()["server"])
    assert "1 requests, 1 rows" in client.get("/stats?live=true&format=table").text


def test_the_list_of_models_says_what_each_saves(serve, tiny):
    latency = {
        "device": "cpu",
        "num_threads": 1,
        "batch_sizes": [1],
        "median_us": [20.0],
        "dense_twin_median_us": [80.0],
    }
    client = serve(tiny.graph(), card=build.sketched_card(latency=latency))
    (summary,) = client.get("/models").json()["models"]
    size = client.get("/stats").json()["models"][0]["bytes"]
    assert summary["savings"] == {
        "file_bytes": size["file_bytes"],
        "bytes_reduction_percent": size["reduction_percent"],
        "ratio_to_dense_twin": 0.25,
    }
