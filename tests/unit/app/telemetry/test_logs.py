"""What is logged of requests, and what never is."""

import io
import json
import logging
import re
from contextlib import contextmanager

import pytest
from helpers import build

from app.telemetry.logs import ConsoleFormatter, JsonFormatter, WithRequestId, request_id_of_task

ROW = [0.5, -1.0, 2.0, 0.25, 0.0, 1.5]
SECRET = 0.8371946520


@contextmanager
def captured(form="json", level=logging.DEBUG):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if form == "json" else ConsoleFormatter())
    handler.addFilter(WithRequestId())
    handler.addFilter(lambda record: not record.name.startswith("http"))  # the client's own
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(level)
    try:
        yield stream
    finally:
        root.removeHandler(handler)
        root.setLevel(before)


def requests(stream):
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    return [line for line in lines if line["logger"] == "app.requests"]


def ask_all(client):
    """Requests of every kind, right and wrong, with a number that no log may hold."""
    row = [SECRET, *ROW[1:]]
    tensor = {"name": "x", "shape": [1, 6], "datatype": "FP32", "data": row}
    headers = {"x-request-id": "mine-1", "authorization": "Bearer secret-key-0123456789"}
    return [
        client.post("/predict?top_k=2", json={"inputs": [row]}, headers=headers),
        client.post("/predict?top_k=2", json={"inputs": [row]}, headers=headers),
        client.post("/v2/models/tiny/infer", json={"inputs": [tensor]}, headers=headers),
        client.post("/predict", json={"inputs": [[*row, SECRET]]}, headers=headers),
        client.post("/models/no%0Ane/predict", json={"inputs": [row]}, headers=headers),
        client.post("/v2/models/tiny/infer", content=f"{SECRET}".encode(), headers=headers),
        client.get(f"/models/tiny?secret={SECRET}", headers=headers),
        client.get("/models/no%0Asuch", headers=headers),
        client.get("/stats"),
    ]


def test_a_line_for_each_request_where_it_is_asked_for(tiny_dir):
    with captured() as stream, build.running(tiny_dir, access_log=True, log_level="info") as client:
        stream.seek(0)
        stream.truncate()
        answers = ask_all(client)
    lines = requests(stream)
    assert [line["status"] for line in lines] == [answer.status_code for answer in answers]
    assert [line["path"] for line in lines] == [
        "/predict", "/predict", "/v2/models/tiny/infer", "/predict", "/models/no%0Ane/predict", "/v2/models/tiny/infer",
        "/models/tiny", "/models/no%0Asuch", "/stats",
    ]  # fmt: skip
    assert [line["request_id"] for line in lines] == [answer.headers["x-request-id"] for answer in answers]
    assert lines[0]["request_id"] == "mine-1"
    for line in lines:
        assert line["method"] in {"GET", "POST"}
        assert line["client"] == "127.0.0.1"
        assert 0 < line["duration_ms"] < 20_000
        assert line["level"] == "info"


@pytest.mark.parametrize("access_log", [True, False])
@pytest.mark.parametrize("form", ["json", "console"])
def test_no_line_holds_what_was_asked_or_a_key(tiny_dir, access_log, form):
    with captured(form) as stream, build.running(tiny_dir, access_log=access_log) as client:
        ask_all(client)
    for secret in ("8371946", "secret", "top_k"):
        assert secret not in stream.getvalue()
    # One record is one line, whatever a path holds.
    pattern = r"\{.*\}" if form == "json" else r"\d\d:\d\d:\d\d (DEBUG|INFO|WARNING|ERROR) .*"
    assert all(re.fullmatch(pattern, line) for line in stream.getvalue().splitlines())


def test_no_line_for_a_request_by_default(tiny_dir):
    with captured(level=logging.INFO) as stream, build.running(tiny_dir) as client:
        before = len(stream.getvalue().splitlines())
        ask_all(client)
        after = len(stream.getvalue().splitlines())
    assert after == before


@pytest.mark.parametrize("form", ["json", "console"])
def test_what_is_logged_while_a_request_is_answered_tells_its_id(form):
    with captured(form) as stream:
        token = request_id_of_task.set("abc-1")
        try:
            logging.getLogger("x").error("broke")
        finally:
            request_id_of_task.reset(token)
        logging.getLogger("x").error("other")
    first, second = stream.getvalue().splitlines()
    if form == "json":
        assert (json.loads(first)["request_id"], "request_id" in json.loads(second)) == ("abc-1", False)
    else:
        assert first.endswith("broke (request abc-1)")
        assert second.endswith("other")


@pytest.mark.parametrize("path", ["/predict", "/v2/models/tiny/infer"])
def test_a_defect_is_logged_with_the_id_of_the_request(tiny_dir, monkeypatch, path):
    monkeypatch.setattr("app.engine.codec.model_codec.ModelCodec.read", lambda *_, **__: 1 / 0)
    with captured() as stream, build.running(tiny_dir) as client:
        answer = client.post(path, json={"inputs": [ROW]}, headers={"x-request-id": "mine-2"})
    assert (answer.status_code, answer.json()) == (500, {"error": "internal error"})
    told = [json.loads(line) for line in stream.getvalue().splitlines() if "decoding a request failed" in line]
    assert [line["request_id"] for line in told] == ["mine-2"]
    assert "ZeroDivisionError" in told[0]["exception"]
