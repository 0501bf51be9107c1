"""docs/stats.md: every field is documented, the worked example is right, and the response matches its schema."""

import copy
import re

import numpy as np
import pytest
from helpers import build

from app.http.routes import examples
from app.reports.stats import LoadedStats, ModelStatsAnswer, StatsAnswer, VersionStats
from app.telemetry.histogram import BOUNDS_NS, Histogram

ROW = [0.5, -1.0, 2.0, 0.25, 0.0, 1.5]


@pytest.fixture(scope="module")
def text():
    return (build.ROOT / "docs" / "stats.md").read_text()


def fields():
    parts = StatsAnswer.model_json_schema()["$defs"].values()
    return sorted({name for part in parts for name in part.get("properties", ())} - {"name", "live"})


@pytest.mark.parametrize("name", fields())
def test_every_field_is_documented(text, name):
    assert re.search(rf"`[^`\n]*\b{name}\b[^`\n]*`", text), name


def keys(value):
    """The names in a document, in their order; of a list its first item's."""
    if isinstance(value, dict):
        return [(name, keys(item)) for name, item in value.items()]
    return keys(value[0]) if isinstance(value, list) and value else None


def test_the_example_of_openapi_has_the_fields_of_a_real_response():
    with build.running(build.ROOT / "models", version_policy="1", device="cpu") as client:
        client.post("/models/digits/predict", json={"inputs": [[0.0] * 784]})
        real = client.get("/stats").json()
    for document in (real, shown := copy.deepcopy(examples.STATS)):
        for version in document["models"]:
            version["runtime"]["placement"][0]["op_types"] = {}  # by the version of onnxruntime
    assert keys(shown) == keys(real)


def test_the_example_by_hand_is_what_the_server_says(text):
    with build.running(build.ROOT / "models", version_policy="1") as client:
        (report,) = client.get("/models/digits/stats").json()["models"]
        table = client.get("/models/digits/stats?format=table").text
    for one in report["layers"]:
        (line,) = [line.split() for line in table.splitlines() if line.split()[:1] == [one["name"]]]
        counts = one["parameters"]
        parts = [counts[name] / counts["dense"] for name in ("learnable", "learnable_and_fixed")]
        assert [line[6], line[8]] == [f"{100 * (1 - part):.1f}%" for part in parts]
    layer = next(layer for layer in report["layers"] if layer["name"] == "fc1")
    d_in, d_out, L, k = (layer[name] for name in ("in_features", "out_features", "num_terms", "low_rank"))
    both = 2 * L * k * (d_in + d_out) + d_out
    table = dict(re.findall(r"^\| `([a-z_.]+)` \|[^|]*\|.*?([\d,]+\.?\d*) \|$", text, re.MULTILINE))
    by_hand = {name: float(value.replace(",", "")) for name, value in table.items()}
    assert by_hand == {
        "parameters.dense": d_in * d_out + d_out,
        "parameters.learnable": L * k * (d_in + d_out) + d_out,
        "parameters.fixed": L * k * (d_in + d_out),
        "parameters.learnable_and_fixed": both,
        "reduction_percent.learnable": round(100 * (1 - (L * k * (d_in + d_out) + d_out) / (d_in * d_out + d_out)), 2),
        "reduction_percent.learnable_and_fixed": round(100 * (1 - both / (d_in * d_out + d_out)), 2),
        "multiply_adds_per_row.dense": d_in * d_out,
        "multiply_adds_per_row.planned": 2 * L * k * (d_in + d_out),
    }
    said = {f"parameters.{name}": count for name, count in layer["parameters"].items() if name != "reduction_percent"}
    said |= {f"reduction_percent.{name}": part for name, part in layer["parameters"]["reduction_percent"].items()}
    said |= {f"multiply_adds_per_row.{name}": count for name, count in layer["multiply_adds_per_row"].items()}
    assert said == by_hand


def test_the_percentile_by_hand_is_what_is_computed(text):
    assert "0.225 + 0.025 · 2/6 = 0.2333 ms" in text
    assert {200_000, 225_000, 250_000} <= set(BOUNDS_NS)
    histogram = Histogram()
    histogram.add(np.array([210_000, 220_000, *range(230_000, 236_000, 1000)]))
    assert histogram.quantile_ns(0.5) == pytest.approx(233_333, abs=1)


@pytest.mark.parametrize("histograms", ["false", "true"])
def test_the_answer_keeps_to_its_schema(client, histograms):
    client.post("/predict", json={"inputs": [ROW]})
    document = client.get(f"/stats?histograms={histograms}").json()
    answer = StatsAnswer.model_validate(document)
    assert isinstance(answer.models[0], LoadedStats)
    assert answer.model_dump(mode="json", exclude_unset=True) == document
    schema = client.get("/openapi.json").json()["paths"]["/stats"]["get"]["responses"]["200"]["content"]
    assert schema["application/json"]["schema"]["$ref"].endswith("/StatsAnswer")


def test_without_a_card_and_without_a_model_it_keeps_to_its_schema(serve, tiny, tmp_path):
    (tmp_path / "broken" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "1" / "model.onnx").write_bytes(b"no model")
    client = serve(tiny.graph())
    answer = ModelStatsAnswer.model_validate({"models": client.get("/stats").json()["models"]})
    kinds = {report.name: type(report) for report in answer.models}
    assert kinds == {"broken": VersionStats, "m": LoadedStats}
    table = client.get("/stats?format=table").text
    assert "broken version 1: UNAVAILABLE: " in table
    assert "parameters, error and accuracy are unknown: the file has no card" in table
    assert "dense weights unknown" in table


def test_the_table_shows_the_same_figures(client):
    client.post("/predict", json={"inputs": [ROW]})
    answer = client.get("/models/tiny/stats?format=table")
    assert answer.headers["content-type"].startswith("text/plain")
    (line,) = [line for line in answer.text.splitlines() if line.strip().startswith("fc1")]
    assert line.split() == ["fc1", "6→5", "1·2", "two_products", "35", "27", "22.9%", "49", "-40.0%", "-46.7%"]
    assert "trained test_accuracy 0.98" in answer.text
    assert "p50/p90/p99 in ms: request" in answer.text
    assert max(map(len, answer.text.splitlines())) <= 120
    assert "(default version)" not in answer.text  # there is one


def test_an_unknown_format_is_refused(client):
    answer = client.get("/stats?format=xml")
    assert answer.status_code == 400
    assert answer.json() == {"error": "query.format: Input should be 'json' or 'table'"}


def test_memory_is_measured_around_the_load(serve):
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).standard_normal((2000, 4000)).astype(np.float32)
    graph = build.onnx_model(
        [helper.make_node("MatMul", ["x", "W"], ["y"])],
        [("x", TensorProto.FLOAT, ["n", 2000])],
        [("y", TensorProto.FLOAT, ["n", 4000])],
        [numpy_helper.from_array(weight, "W")],
    )
    client = serve(graph)
    (report,) = client.get("/stats").json()["models"]
    assert weight.nbytes <= report["bytes"]["resident_bytes"] < 4 * weight.nbytes
    (triton,) = client.get("/v2/models/stats").json()["model_stats"]
    assert triton["memory_usage"] == [{"type": "CPU", "id": 0, "byte_size": report["bytes"]["resident_bytes"]}]


def test_failures_that_meet_no_model_are_counted(serve, tiny):
    client = serve(tiny.graph())
    client.post("/models/nobody/predict", json={"inputs": [ROW]})
    client.post("/v2/models/nobody/infer", json={"inputs": [ROW]})
    assert client.get("/stats").json()["server"]["failures_without_model"] == {"ModelNotFoundError": 2}
