"""Traces by OpenTelemetry: the spans of a request, the context in and out, and none of it when off."""

import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from app.application import create_app
from app.config.settings import Settings
from app.engine.queue import QueueEntry
from app.engine.request import InferenceRequest, Timings
from app.service.inference import InferenceService, ServiceOptions
from app.service.inference_call import InferenceCall
from app.telemetry.tracing import Tracing, TracingError, otlp_tracing

ROW = [0.5, -1.0, 2.0, 0.25, 0.0, 1.5]
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def spans(monkeypatch):
    """What is traced by servers that start from here on."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("app.application.otlp_tracing", lambda: Tracing(provider))
    return exporter.get_finished_spans


def by_name(spans):
    return {span.name: span for span in spans()}


def test_a_request_has_a_span_for_each_part(serve, tiny, spans):
    client = serve(tiny.graph(), tracing="otlp")
    answer = client.post("/predict", json={"inputs": [ROW, ROW]}, headers={"x-request-id": "abc"})
    found = by_name(spans)
    assert set(found) == {"inference m", "decode", "queue", "compute", "encode"}
    whole = found["inference m"]
    assert whole.kind is SpanKind.SERVER
    assert dict(whole.attributes) == {
        "http.request.method": "POST", "http.response.status_code": 200, "panther.protocol": "plain",
        "panther.request_id": "abc", "panther.model": "m", "panther.version": "1", "panther.rows": 2,
    }  # fmt: skip
    times = [(found[name].start_time, found[name].end_time) for name in ("decode", "queue", "compute", "encode")]
    moments = [whole.start_time, *(moment for pair in times for moment in pair), whole.end_time]
    assert moments == sorted(moments)
    for name in ("decode", "queue", "compute", "encode"):
        assert found[name].parent.span_id == whole.context.span_id
    assert whole.parent is None
    ids = whole.context
    assert answer.headers["traceresponse"] == f"00-{ids.trace_id:032x}-{ids.span_id:016x}-{ids.trace_flags:02x}"
    live = client.get("/stats").json()["models"][0]["live"]
    took = (found["compute"].end_time - found["compute"].start_time) / 1e6
    assert took == pytest.approx(live["mean_compute_infer_ms"], abs=0.05)


def test_the_callers_context_goes_on(serve, tiny, spans):
    client = serve(tiny.graph(), tracing="otlp")
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 6], "data": ROW}]}
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
    answer = client.post("/v2/models/m/infer", json=body, headers=headers)
    whole = by_name(spans)["inference m"]
    assert f"{whole.context.trace_id:032x}" == TRACE
    assert f"{whole.parent.span_id:016x}" == PARENT
    assert whole.context.trace_state["vendor"] == "1"
    assert whole.attributes["panther.protocol"] == "oip"
    assert answer.headers["traceresponse"].split("-")[1] == TRACE


def test_a_caller_that_does_not_sample_is_not_traced(serve, tiny, spans):
    client = serve(tiny.graph(), tracing="otlp")
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    assert client.post("/predict", json={"inputs": [ROW]}, headers=headers).status_code == 200
    assert spans() == ()


@pytest.mark.parametrize("header", ["", "00-zz", "ff" * 30, "\xff"])
def test_a_broken_context_begins_a_new_trace(serve, tiny, spans, header):
    client = serve(tiny.graph(), tracing="otlp")
    headers = [(b"traceparent", header.encode("latin-1")), (b"content-type", b"application/json")]
    assert client.post("/predict", json={"inputs": [ROW]}, headers=headers).status_code == 200
    assert by_name(spans)["inference m"].parent is None


def test_failures_say_their_kind_and_how_far_they_came(serve, tiny, spans):
    client = serve(tiny.graph(), tracing="otlp")
    assert client.post("/predict", json={"inputs": [[1]]}).status_code == 400
    found = by_name(spans)
    assert set(found) == {"inference m", "decode"}
    assert found["inference m"].attributes["error.type"] == "InvalidRequestError"
    assert found["inference m"].attributes["http.response.status_code"] == 400
    assert found["inference m"].status.status_code is StatusCode.UNSET
    assert client.post("/models/none/predict", json={"inputs": [ROW]}).status_code == 404
    assert by_name(spans)["inference"].attributes["error.type"] == "ModelNotFoundError"


def test_off_it_costs_a_look_and_imports_nothing(client, monkeypatch):
    assert Settings().tracing == "none"
    assert "traceresponse" not in client.post("/predict", json={"inputs": [ROW]}).headers
    program = (
        "import sys, app.application; print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])"
    )
    import subprocess

    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.strip() == "[]"
    assert InferenceService(None, ServiceOptions.of(Settings())).tracing is None
    assert [name for name in InferenceCall.__slots__ if "trace" in name] == ["_trace_parent"]
    assert not any("trace" in name for name in (*QueueEntry.__slots__, *InferenceRequest._fields, *Timings.__slots__))


def test_without_the_packages_it_says_what_to_install(monkeypatch, tiny_dir):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(TracingError, match=r"requires the extra 'otel' \(pip install 'panther-sketch\[otel\]'\)"):
        create_app(Settings(model_dir=tiny_dir, tracing="otlp"))


def test_traces_reach_a_collector(serve, tiny, monkeypatch):
    received, seen = [], threading.Event()

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()
            seen.set()

        def log_message(self, *arguments):
            pass

    collector = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=collector.serve_forever)
    thread.start()
    try:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_address[1]}")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "digits-eu")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        client = serve(tiny.graph(), tracing="otlp")
        assert isinstance(client, httpx.Client)
        assert client.post("/predict", json={"inputs": [ROW]}).status_code == 200
        assert seen.wait(60)
    finally:
        collector.shutdown()
        thread.join()
        collector.server_close()
    path, request = received[0]
    assert path == "/v1/traces"
    (resource,) = request.resource_spans
    assert {item.key: item.value.string_value for item in resource.resource.attributes}["service.name"] == "digits-eu"
    names = {span.name for scope in resource.scope_spans for span in scope.spans}
    assert names == {"inference m", "decode", "queue", "compute", "encode"}


def test_the_name_of_the_service_is_ours_unless_said_otherwise(monkeypatch):
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    tracing = otlp_tracing()
    try:
        assert tracing._provider.resource.attributes["service.name"] == "panther"
    finally:
        tracing.close()
