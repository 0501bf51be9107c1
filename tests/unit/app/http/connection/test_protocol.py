"""The connection itself: what a well-behaved client never notices, and what others run into."""

import asyncio
import gc
import gzip
import io
import json
import socket
import time

import httpx
import numpy as np
import pytest
from helpers import build

from app.application import create_app
from app.config.settings import Settings
from app.http.connection.buffer_pool import BodyBuffers

ROW = [0.5, -1.0, 2.0, 0.25, 0.0, 1.5]


def request(body, path="/predict", headers=(), method="POST", version="1.1"):
    lines = [f"{method} {path} HTTP/{version}", "Host: x", "Content-Type: application/json", *headers]
    if not any(header.lower().startswith(("content-length", "transfer-encoding")) for header in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


class Wire:
    """A socket, and answers read from it one by one."""

    def __init__(self, client):
        self.socket = socket.create_connection((client.base_url.host, client.base_url.port), timeout=60)
        self.buffer = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def _until(self, enough):
        while not enough():
            data = self.socket.recv(65536)
            if not data:
                raise EOFError(self.buffer)
            self.buffer += data

    def answer(self):
        self._until(lambda: b"\r\n\r\n" in self.buffer)
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        length = int(headers.get("content-length", 0))
        self._until(lambda: len(self.buffer) >= length)
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        return int(lines[0].split()[1]), headers, json.loads(body) if body else None

    def closed(self):
        return self.socket.recv(1) == b""


BODY = json.dumps({"inputs": [ROW]}).encode()


def test_pipelined_requests_are_answered_in_order(client):
    bodies = [json.dumps({"inputs": [ROW] * count}).encode() for count in (1, 2, 3, 4)]
    stream = b"".join(request(body, headers=[f"X-Request-ID: {i}"]) for i, body in enumerate(bodies))
    stream += request(b"", "/health/live", ["X-Request-ID: 4"], "GET") + request(BODY, headers=["X-Request-ID: 5"])
    with Wire(client) as wire:
        wire.socket.sendall(stream)
        answers = [wire.answer() for _ in range(6)]
    assert [headers["x-request-id"] for _, headers, _ in answers] == list("012345")
    assert [len(answer["outputs"]["logits"]) for _, _, answer in answers[:4]] == [1, 2, 3, 4]
    assert answers[4][2] == {"live": True}


def test_a_connection_serves_many_requests_of_both_kinds(client):
    with Wire(client) as wire:
        for _ in range(3):
            wire.socket.sendall(request(BODY))
            assert wire.answer()[0] == 200
            wire.socket.sendall(request(b"", "/models", method="GET"))
            assert wire.answer()[0] == 200
            wire.socket.sendall(request(b"{", path="/models/none/predict"))
            assert wire.answer()[0] == 404


def test_a_body_in_small_pieces_and_in_chunks(client):
    with Wire(client) as wire:
        for byte in request(BODY):
            wire.socket.sendall(bytes([byte]))
        assert wire.answer()[0] == 200
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (BODY[:7], BODY[7:])) + b"0\r\n\r\n"
        wire.socket.sendall(request(b"", headers=["Transfer-Encoding: chunked"]) + chunks)
        assert wire.answer()[0] == 200


def test_long_bodies_are_received_whole_one_after_the_other(client, tiny):
    """Longer than the scratch buffer: they go straight into the body, and the parser starts anew after them."""
    x = np.random.default_rng(0).standard_normal((3000, 6)).astype(np.float32)
    head = json.dumps(
        {
            "inputs": [
                {"name": "x", "shape": [3000, 6], "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
            ]
        }
    ).encode()
    length = [f"Inference-Header-Content-Length: {len(head)}"]
    plain = json.dumps({"inputs": x.tolist()}).encode()
    packed = gzip.compress(plain)
    expected = tiny.logits(x)
    with Wire(client) as wire:
        for _ in range(2):
            wire.socket.sendall(request(plain))
            np.testing.assert_allclose(wire.answer()[2]["outputs"]["logits"], expected, rtol=1e-3, atol=1e-4)
            wire.socket.sendall(request(head + x.tobytes(), "/v2/models/tiny/infer", length))
            data = wire.answer()[2]["outputs"][0]["data"]
            np.testing.assert_allclose(np.reshape(data, (3000, 3)), expected, rtol=1e-3, atol=1e-4)
            wire.socket.sendall(request(packed, headers=["Content-Encoding: gzip"]))
            assert wire.answer()[0] == 200
            wire.socket.sendall(request(plain[:-5]))
            assert wire.answer()[0] == 400
            wire.socket.sendall(request(b"", "/health/live", method="GET"))
            assert wire.answer()[0] == 200
        wire.socket.sendall(request(plain) + request(plain) + request(BODY))
        assert [wire.answer()[0] for _ in range(3)] == [200, 200, 200]
    buffer = io.BytesIO()
    np.save(buffer, x)
    answer = client.post("/predict", content=buffer.getvalue(), headers={"content-type": "application/x-npy"})
    np.testing.assert_allclose(answer.json()["outputs"]["logits"], expected, rtol=1e-3, atol=1e-4)
    headers = {"content-type": "application/octet-stream", "accept": "application/x-npy"}
    answer = client.post("/predict", content=x.tobytes(), headers=headers)
    np.testing.assert_allclose(np.load(io.BytesIO(answer.content)), expected, rtol=1e-3, atol=1e-4)
    headers["accept"] = "application/octet-stream"
    answer = client.post("/predict", content=x.tobytes(), headers=headers)
    assert answer.headers["x-shape"] == "3000,3"
    values = np.frombuffer(answer.content, np.float32).reshape(3000, 3)
    np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-4)


def test_a_head_that_comes_again_is_known_and_its_body_is_not(client, tiny):
    """The second request of the same head is not parsed; whatever follows it still is."""
    first, second = (json.dumps({"inputs": [[value, *ROW[1:]]]}).encode() for value in (1.25, 3.75))
    assert len(first) == len(second)
    expected = {
        body: tiny.logits(np.array(json.loads(body)["inputs"], np.float32)).tolist() for body in (first, second)
    }
    other = request(first, "/models/none/predict")
    with Wire(client) as wire:
        for body in (first, second, first, second):
            wire.socket.sendall(request(body))
            status, _, answer = wire.answer()
            assert status == 200
            np.testing.assert_allclose(answer["outputs"]["logits"], expected[body], rtol=1e-3, atol=1e-4)
            wire.socket.sendall(other)
            assert wire.answer()[0] == 404
        wire.socket.sendall(request(first) + request(second))  # more than the head promises: to the parser
        for body in (first, second):
            np.testing.assert_allclose(wire.answer()[2]["outputs"]["logits"], expected[body], rtol=1e-3, atol=1e-4)
        known = request(first)
        wire.socket.sendall(known[:-3])  # less than it promises
        time.sleep(0.05)
        wire.socket.sendall(known[-3:])
        assert wire.answer()[0] == 200
        wire.socket.sendall(request(first))
        assert wire.answer()[0] == 200


@pytest.mark.parametrize("before", [b"\r\n\r\n", b"\r\n"])
def test_what_lies_before_or_behind_a_head_is_not_remembered_as_one(client, before):
    live = request(b"", "/health/live", method="GET")
    with Wire(client) as wire:
        for _ in range(3):
            wire.socket.sendall(before + request(BODY))
            assert wire.answer()[0] == 200
            # The head of a request that is none of inference, and one of inference behind it.
            wire.socket.sendall(live + request(BODY))
            assert wire.answer()[2] == {"live": True}
            assert wire.answer()[0] == 200
        wire.socket.sendall(live)
        assert wire.answer()[2] == {"live": True}
    with Wire(client) as wire:
        wire.socket.sendall(b"\r\n\r\n")
        wire.socket.sendall(live)
        assert wire.answer()[2] == {"live": True}


@pytest.mark.parametrize("field", ["Connection: close", "Expect: 100-continue"])
def test_a_head_that_asks_for_more_than_an_answer_is_parsed_each_time(client, field):
    for _ in range(3):
        with Wire(client) as wire:
            wire.socket.sendall(request(BODY, headers=[field]))
            if field.startswith("Expect"):
                assert wire.answer()[0] == 100
            status, headers, _ = wire.answer()
            assert (status, headers.get("connection")) == (200, "close" if "close" in field else None)


def test_heads_are_remembered_within_a_bound(tiny_dir):
    application = create_app(Settings(model_dir=tiny_dir))
    target, cache = application.service.target("/predict"), application.connections.header_cache
    for number in range(3000):
        cache.remember(b"%d" % number, target, {b"content-length": b"3"}, b"")
        assert len(cache) <= 1024
    assert cache.get(b"2999").content_length == 3
    cache.remember(b"chunked", target, {b"transfer-encoding": b"chunked", b"content-length": b"3"}, b"")
    assert cache.get(b"chunked") is None


def test_an_answer_larger_than_the_socket_takes_arrives_whole(client, tiny):
    x = np.random.default_rng(0).standard_normal((40_000, 6)).astype(np.float32)
    body = x.tobytes()
    head = ["Accept: application/octet-stream"]
    octets = request(body, headers=head).replace(b"application/json", b"application/octet-stream")
    with Wire(client) as wire:
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.socket.sendall(octets + request(BODY))
        time.sleep(0.3)  # the server has written what the socket takes
        wire._until(lambda: b"\r\n\r\n" in wire.buffer)
        fields, _, wire.buffer = wire.buffer.partition(b"\r\n\r\n")
        assert b"x-shape: 40000,3" in fields
        wire._until(lambda: len(wire.buffer) >= 480_000)
        values = np.frombuffer(wire.buffer[:480_000], np.float32).reshape(-1, 3)
        wire.buffer = wire.buffer[480_000:]
        np.testing.assert_allclose(values, tiny.logits(x), rtol=1e-3, atol=1e-4)
        assert wire.answer()[0] == 200


def test_buffers_are_used_again_by_length_and_within_a_bound():
    buffers = BodyBuffers()
    first = bytearray(40_000)
    buffers.give_back(first)
    assert buffers.take(40_001) is None
    assert buffers.take(40_000) is first
    assert buffers.take(40_000) is None
    buffers.give_back(bytearray(5 * 1024 * 1024))
    assert buffers._kept_bytes == 0
    for _ in range(100):
        buffers.give_back(bytearray(1024 * 1024))
        assert buffers._kept_bytes <= 16 * 1024 * 1024


def test_expect_100_continue(client):
    with Wire(client) as wire:
        head = request(b"", headers=["Expect: 100-continue", f"Content-Length: {len(BODY)}"])
        wire.socket.sendall(head)
        assert wire.answer()[0] == 100
        wire.socket.sendall(BODY)
        assert wire.answer()[0] == 200


@pytest.mark.parametrize("path", ["/predict", "/v2/repository/index"])
def test_a_client_of_http_1_0_is_told_nothing_before_its_answer(client, path):
    with Wire(client) as wire:
        wire.socket.sendall(request(BODY, path, ["Expect: 100-continue"], version="1.0"))
        assert wire.answer()[0] == 200


@pytest.mark.parametrize(("version", "headers"), [("1.1", ["Connection: close"]), ("1.0", [])])
def test_the_connection_is_closed_where_the_client_asks_for_it(client, version, headers):
    with Wire(client) as wire:
        wire.socket.sendall(request(BODY, headers=headers, version=version))
        status, answer_headers, _ = wire.answer()
        assert (status, answer_headers["connection"]) == (200, "close")
        assert wire.closed()


@pytest.mark.parametrize("announced", [True, False])
def test_too_long_a_body_is_refused_early_and_the_connection_closed(serve, tiny, announced):
    client = serve(tiny.graph(), max_body_bytes=2048)
    with Wire(client) as wire:
        if announced:
            wire.socket.sendall(request(b"", headers=["Content-Length: 1000000000"]))
        else:
            chunk = b"400\r\n" + b" " * 1024 + b"\r\n"
            wire.socket.sendall(request(b"", headers=["Transfer-Encoding: chunked"]) + 3 * chunk)
        status, headers, body = wire.answer()
        assert (status, headers["connection"]) == (413, "close")
        assert body == {"error": "the body is larger than max_body_bytes (2048)"}
        assert wire.closed()


def test_what_is_no_http_is_400(client):
    with Wire(client) as wire:
        wire.socket.sendall(b"this is no HTTP\r\n\r\n")
        assert b"400" in wire.socket.recv(1000)


def test_an_idle_connection_is_closed_and_a_busy_one_is_not(serve, tiny):
    client = serve(tiny.graph(), keep_alive_s=1)
    with Wire(client) as idle, Wire(client) as busy:
        began = time.monotonic()
        idle.socket.sendall(request(BODY))
        assert idle.answer()[0] == 200
        while time.monotonic() - began < 1.5:
            busy.socket.sendall(request(BODY))
            assert busy.answer()[0] == 200
            time.sleep(0.1)
        assert idle.closed()
        busy.socket.sendall(request(BODY))
        assert busy.answer()[0] == 200


def test_a_long_run_leaves_the_loop_free_and_a_client_that_goes_costs_no_model_time(serve):
    client = serve(build.slow_graph(), num_threads=1, max_batch_rows=8)
    body = json.dumps({"inputs": [0.5] * 8}).encode()
    before = client.get("/stats").json()["models"][0]["live"]["executions"]
    with Wire(client) as first, Wire(client) as second:
        first.socket.sendall(request(body))
        time.sleep(0.02)
        second.socket.sendall(request(body))
        began = time.perf_counter()
        assert client.get("/health/live").status_code == 200
        probe_s = time.perf_counter() - began
        second.socket.close()
        assert first.answer()[0] == 200
        run_s = client.get("/stats").json()["models"][0]["live"]["mean_compute_infer_ms"] / 1000
    for _ in range(100):
        live = client.get("/stats").json()["models"][0]["live"]
        if live["failures_by_reason"]:
            break
        time.sleep(0.01)
    assert live["failures_by_reason"] == {"Cancelled": 1}
    assert live["executions"] == before + 1
    assert probe_s < max(run_s, 0.1)


def test_a_client_that_goes_is_missed_behind_another_request_too(serve):
    """Then the request has taken uvicorn's way to the application."""
    client = serve(build.slow_graph(), num_threads=1, max_batch_rows=8)
    body = json.dumps({"inputs": [0.5] * 8}).encode()
    before = client.get("/stats").json()["models"][0]["live"]["executions"]
    with Wire(client) as busy, Wire(client) as wire:
        busy.socket.sendall(request(body))
        time.sleep(0.02)
        wire.socket.sendall(request(b"", "/health/live", method="GET") + request(body) * 2)
        assert wire.answer()[0] == 200
        time.sleep(0.05)
        wire.socket.close()
        assert busy.answer()[0] == 200
    live = client.get("/stats").json()["models"][0]["live"]
    assert live["failures_by_reason"] == {"Cancelled": 1}
    assert live["executions"] == before + 1
    assert client.post("/predict", json={"inputs": [0.5]}).status_code == 200


def test_under_another_asgi_server_the_application_answers_alike(tiny_dir, tiny):
    async def ask():
        application = create_app(Settings(model_dir=tiny_dir))
        application.state.panther.repository.load_all()
        application.state.panther.repository.starting = False
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            good = await client.post("/predict", json={"inputs": [ROW] * 2})
            bad = await client.post("/v2/models/tiny/infer", json={"inputs": []})
            large = await client.post("/predict", content=b" " * (65 * 1024 * 1024))
            return good, bad, large

    good, bad, large = asyncio.run(ask())
    assert good.status_code == 200
    assert len(good.json()["predictions"]) == 2
    assert (bad.status_code, list(bad.json())) == (400, ["error"])
    assert (large.status_code, large.headers["connection"]) == (413, "close")


@pytest.mark.parametrize("path", ["/predict", "/v2/models/tiny/infer"])
@pytest.mark.parametrize("right", [True, False])
def test_a_request_leaves_no_cycle_for_the_collector(client, path, right):
    """Each that did would wait for a collection, and that stops the server for 10 ms when it comes."""
    plain = {"inputs": [[0.5] * 6]}
    oip = {"inputs": [{"name": "x", "shape": [1, 6], "datatype": "FP32", "data": [0.5] * 6}]}
    body = (plain if path == "/predict" else oip) if right else {"inputs": 3}

    def ask(count):
        for _ in range(count):
            assert (client.post(path, json=body).status_code == 200) == right

    def left():
        return sum(
            type(thing).__name__ in {"InferenceCall", "QueueEntry", "InferenceRequest", "WireRequest"}
            for thing in gc.get_objects()
        )

    ask(5)
    gc.collect()
    gc.disable()
    try:
        before = left()
        ask(50)
        assert left() - before < 10
    finally:
        gc.enable()
