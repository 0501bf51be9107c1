"""The response of ``/stats`` as a document: order of its fields, and fields that are there only where asked for."""

import copy

import pytest

from app.http.routes import examples
from app.reports.stats import ModelStatsAnswer, PlacementStats, StatsAnswer, stats_document
from app.runtime.placement import Node


def test_the_placement_groups_nodes_by_provider_in_the_order_of_the_graph():
    nodes = [Node("a", "Gemm", "CUDA"), Node("b", "Relu", "CPU"), Node("c", "Gemm", "CUDA"), Node("d", "Add", "CUDA")]
    cuda, cpu = PlacementStats.of(nodes)
    assert (cuda.provider, cuda.nodes, cuda.op_types) == ("CUDA", 3, {"Gemm": 2, "Add": 1})
    assert (cpu.provider, cpu.nodes, cpu.node_names) == ("CPU", 1, ["b"])


def full_answer():
    """The example with its optional fields filled."""
    document = StatsAnswer.model_validate(examples.STATS)
    version = document.models[0]
    version.runtime.placement[0].node_names = ["n"]
    buckets = {"total_ms": 1.0, "upper_bounds_ms": [1.0, None], "counts": [1, 2]}
    version.live = version.live.model_validate(
        version.live.model_dump() | {"histograms": dict.fromkeys(("request", "queue", "compute_infer"), buckets)}
    )
    return document


@pytest.mark.parametrize("histograms", [False, True])
@pytest.mark.parametrize("nodes", [False, True])
def test_optional_fields_are_there_only_where_asked_for(histograms, nodes):
    (version,) = stats_document(full_answer(), histograms=histograms, nodes=nodes)["models"]
    assert ("histograms" in version["live"]) is histograms
    assert ("node_names" in version["runtime"]["placement"][0]) is nodes


def test_the_document_of_a_valid_answer_is_the_answer():
    assert stats_document(StatsAnswer.model_validate(examples.STATS)) == examples.STATS
    answer = ModelStatsAnswer.model_validate({"models": examples.STATS["models"]})
    assert list(stats_document(answer)["models"][0]) == list(examples.STATS["models"][0])
    assert list(stats_document(full_answer())) == ["server", "models"]


def test_what_the_settings_of_a_model_chose_is_shown(serve, tiny, tmp_path):
    (tmp_path / "m").mkdir()
    text = 'batching = "off"\n[session]\ngraph_optimization = "basic"\nproviders = ["cpu"]\n'
    (tmp_path / "m" / "panther.toml").write_text(text)
    client = serve(tiny.graph())
    runtime = client.get("/stats").json()["models"][0]["runtime"]
    assert runtime["session"] == {
        "graph_optimization": "basic",
        "wanted_providers": ["CPUExecutionProvider"],
        "custom_ops": [],
    }
    assert (runtime["batched"], runtime["batching"]["decided_by"]) == (False, "settings")
    line = "graph optimization basic; providers CPUExecutionProvider; not batched: batching is off in panther.toml"
    assert line in client.get("/stats?format=table").text.splitlines()


def test_without_settings_of_its_own_a_model_is_optimized_for_the_device_of_the_server(client):
    session = client.get("/stats").json()["models"][0]["runtime"]["session"]
    assert session == {"graph_optimization": "all", "wanted_providers": [], "custom_ops": []}
    assert "graph optimization" not in client.get("/stats?format=table").text


def test_outputs_are_optional():
    document = copy.deepcopy(examples.STATS)
    del document["models"][0]["outputs"]
    assert StatsAnswer.model_validate(document).models[0].outputs is None
