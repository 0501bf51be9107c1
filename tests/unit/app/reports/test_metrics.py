"""/metrics, and what docs and deploy say of it."""

import json
import re
from collections import defaultdict

import numpy as np
import pytest
import yaml
from helpers import build
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from app import errors
from app.reports.metrics import SECONDS_NS
from app.telemetry.histogram import BOUNDS_NS

ROW = [0.5, -1.0, 2.0, 0.25, 0.0, 1.5]
OIP = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 6], "data": ROW}]}


def samples(client):
    found = {}
    for family in parse(client.get("/metrics").text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, f"{sample} twice"
            found[key] = sample.value
    return found


def value(found, name, **labels):
    return found[name, frozenset(labels.items())]


def test_requests_rows_and_times_are_those_of_stats(serve, tiny):
    client = serve(tiny.graph())
    for rows in (1, 2, 5):
        assert client.post("/predict", json={"inputs": [ROW] * rows}).status_code == 200
    assert client.post("/v2/models/m/infer", json=OIP).status_code == 200
    assert client.post("/predict", json={"inputs": [[1]]}).status_code == 400
    assert client.post("/v2/models/m/infer", json={"inputs": []}).status_code == 400
    assert client.post("/models/nobody/predict", json={"inputs": [ROW]}).status_code == 404
    found = samples(client)
    model = {"model": "m", "version": "1"}
    requests = {
        (dict(labels)["protocol"], dict(labels)["outcome"]): count
        for (name, labels), count in found.items()
        if name == "panther_requests_total"
    }
    assert requests == {
        ("plain", "success"): 3, ("oip", "success"): 1,
        ("plain", "InvalidRequestError"): 1, ("oip", "InvalidRequestError"): 1,
    }  # fmt: skip
    assert value(found, "panther_unrouted_requests_total", protocol="plain", outcome="ModelNotFoundError") == 1
    assert value(found, "panther_rows_total", protocol="plain", **model) == 8
    assert value(found, "panther_rows_total", protocol="oip", **model) == 1
    assert value(found, "panther_batch_rows_sum", **model) == 9
    assert value(found, "panther_batch_rows_bucket", le="1.0", **model) == 2
    assert value(found, "panther_batch_rows_bucket", le="4.0", **model) == 3
    assert value(found, "panther_batch_rows_bucket", le="+Inf", **model) == 4

    live = client.get("/stats").json()["models"][0]["live"]
    for name, mean in (
        ("request", "mean_request_ms"),
        ("queue", "mean_queue_ms"),
        ("compute", "mean_compute_infer_ms"),
    ):
        assert value(found, f"panther_{name}_seconds_count", **model) == 4
        total = value(found, f"panther_{name}_seconds_sum", **model)
        assert total == pytest.approx(4 * live[mean] / 1000, abs=1e-6)
        cumulative = [
            value(found, f"panther_{name}_seconds_bucket", le=le, **model)
            for le in [*(str(bound / 1e9) for bound in SECONDS_NS), "+Inf"]
        ]
        assert cumulative == sorted(cumulative)
        assert cumulative[-1] == 4


def test_histogram_bounds_are_bounds_of_the_counts():
    assert set(SECONDS_NS) <= set(BOUNDS_NS)


def test_savings_states_and_providers(client, tiny_dir):
    found = samples(client)
    model = {"model": "tiny", "version": "1"}
    size = (tiny_dir / "tiny" / "1" / "model.onnx").stat().st_size
    assert value(found, "panther_model_file_bytes", **model) == size
    assert value(found, "panther_model_saved_bytes", **model) == 212 - size
    counts = {kind: value(found, "panther_model_parameters", count=kind, **model) for kind in ("dense", "learnable")}
    assert counts == {"dense": 53, "learnable": 45}
    assert value(found, "panther_model_state", state="READY", **model) == 1
    assert value(found, "panther_model_state", state="UNAVAILABLE", **model) == 0
    assert value(found, "panther_ready") == 1
    info = {"provider": "CPUExecutionProvider", "batched": "true", "default": "true"}
    assert value(found, "panther_model_info", **info, **model) == 1
    assert value(found, "process_resident_memory_bytes") > 10e6
    assert value(found, "process_cpu_seconds_total") > 0


def test_what_is_unknown_is_missing_and_never_zero(serve, tiny, tmp_path):
    (tmp_path / "broken" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "1" / "model.onnx").write_bytes(b"no model")
    client = serve(tiny.graph())
    found = samples(client)
    names = {name for name, labels in found if ("model", "m") in labels}
    assert not names & {
        "panther_model_parameters",
        "panther_model_saved_bytes",
        "panther_model_dense_twin_weight_bytes",
    }
    assert "panther_model_file_bytes" in names
    assert value(found, "panther_model_state", model="broken", version="1", state="UNAVAILABLE") == 1
    told = {name for name, labels in found if ("model", "broken") in labels}
    assert told == {"panther_model_state", "panther_model_load_failing", "panther_model_loads_total"}
    assert value(found, "panther_ready") == 0


def test_openmetrics_where_it_is_asked_for(client):
    answer = client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert "panther_requests" in {family.name for family in parse_openmetrics(answer.text)}
    assert client.get("/metrics").headers["content-type"].startswith("text/plain; version=")


def test_labels_are_bounded_whatever_clients_send(serve, tiny):
    client = serve(tiny.graph())
    client.post("/predict", json={"inputs": [ROW]})
    before = len(samples(client))
    for index in range(30):
        client.post(f"/models/x{index}/predict", json={"inputs": [ROW]})
        client.post(f"/models/m/versions/{index + 7}/predict", json={"inputs": [ROW]})
        client.post(f"/v2/models/y{index}/infer", content=b"\xff")
        client.post("/predict", content=b"%d{" % index, headers={"x-request-id": f"r{index}"})
    found = samples(client)
    assert len(found) <= before + 8
    outcomes = {dict(labels)["outcome"] for _, labels in found if "outcome" in dict(labels)}
    known = {name for name in vars(errors) if name.endswith("Error")} | {"success", "Cancelled", "InternalError"}
    assert outcomes <= known


@pytest.fixture(scope="module")
def exposed(tiny, tmp_path_factory):
    """Every sample's name and the labels that it has."""
    root = tmp_path_factory.mktemp("exposed")
    build.put(root, tiny.graph(), "tiny", card=build.sketched_card())
    with build.running(root) as client:
        client.post("/predict", json={"inputs": [ROW]})
        client.post("/models/nobody/predict", json={"inputs": [ROW]})
        found = defaultdict(set)
        for name, labels in samples(client):
            found[name] |= {label for label, _ in labels}
    return dict(found)


# Given by Prometheus to every series, by a target's configuration, or by label_replace within the expression.
TARGET_LABELS = {"job", "instance", "accelerator"}


def check_expression(expression, exposed):
    names = re.findall(r"\b((?:panther|process)_[a-z_]+)\b", expression)
    assert names or "up{" in expression, expression
    labels = set()
    for name in names:
        assert name in exposed, f"{name} in {expression}"
        labels |= exposed[name]
    for selector in re.findall(r"\{([^}]*)\}", expression):
        for label in re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)", selector):
            assert label in labels | TARGET_LABELS, f"{label} in {expression}"
    for group in re.findall(r"\b(?:by|without|on)\s*\(([^)]*)\)", expression):
        for label in filter(None, re.split(r",\s*", group)):
            assert label in labels | TARGET_LABELS, f"{label} in {expression}"


def rules(root, name):
    document = yaml.safe_load((root / "deploy" / "prometheus" / name).read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def test_alerts_use_what_is_exposed(exposed):
    alerts = rules(build.ROOT, "alerts.yml")
    assert len({rule["alert"] for rule in alerts}) == len(alerts) >= 8
    for rule in alerts:
        check_expression(rule["expr"], exposed)
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}
        known = set().union(*exposed.values()) | TARGET_LABELS
        assert set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))) <= known


def test_outcomes_named_in_rules_exist():
    text = "".join(rule["expr"] for name in ("alerts.yml", "triton-names.yml") for rule in rules(build.ROOT, name))
    named = {item for match in re.findall(r'outcome[!=~]+"([^"(]+)"', text) for item in match.split("|")}
    assert "success" in named
    assert named <= {name for name in vars(errors) if name.endswith("Error")} | {"success", "Cancelled"}


def test_triton_names_are_made_of_what_is_exposed_and_are_those_of_the_docs(exposed):
    recorded = rules(build.ROOT, "triton-names.yml")
    for rule in recorded:
        check_expression(rule["expr"], exposed)
    text = (build.ROOT / "docs" / "metrics.md").read_text()
    table = dict(re.findall(r"^\| `(nv_\w+)` \| `(panther_\w+)", text, re.MULTILINE))
    assert table == {rule["record"]: re.search(r"panther_\w+", rule["expr"])[0] for rule in recorded}


def test_the_grafana_dashboard_uses_what_is_exposed(exposed):
    dashboard = json.loads((build.ROOT / "deploy" / "grafana" / "panther.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 12
    cells = np.zeros((100, 24), int)
    for panel in panels:
        at = panel["gridPos"]
        cells[at["y"] : at["y"] + at["h"], at["x"] : at["x"] + at["w"]] += 1
        for target in panel["targets"]:
            check_expression(target["expr"].replace("$__rate_interval", "5m"), exposed)
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                assert label in set().union(*exposed.values()) | TARGET_LABELS
    assert cells.max() == 1
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            check_expression(variable["query"]["query"], exposed)


def test_what_a_file_holds_is_not_multiplied_by_the_servers_that_serve_it():
    dashboard = json.loads((build.ROOT / "deploy" / "grafana" / "panther.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    of_files = [expr for expr in expressions if re.search(r"panther_model_(parameters|\w*_bytes)", expr)]
    assert len(of_files) >= 5
    for expr in of_files:
        assert not re.search(r"sum[^(]*\(panther_model_|sum by \([^)]*\) \(panther_model_", expr), expr


def test_the_docs_list_every_metric_and_its_labels(exposed):
    text = (build.ROOT / "docs" / "metrics.md").read_text()
    listed = {}
    for line in re.findall(r"^\| (`(?:panther|process|python)_.*) \|$", text, re.MULTILINE):
        names, kind, more, _ = re.split(r"\s*\|\s*", line, maxsplit=3)
        for name in re.findall(r"`(\w+)`", names):
            listed[name] = (kind, set(re.findall(r"`(\w+)`", more)), "no `model`" in line)
    bare = {re.sub(r"_(bucket|count|sum)$", "", name): labels for name, labels in exposed.items()}
    assert set(listed) == set(bare)
    for name, (kind, more, without_model) in listed.items():
        if name.startswith("panther_"):
            model = set() if without_model or name in {"panther_ready"} or "workers" in name else {"model", "version"}
            assert bare[name] - {"le"} == more | model, name
            assert (kind == "histogram") == (f"{name}_bucket" in exposed), name
