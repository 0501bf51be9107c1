"""What a client may take of the server, tried over sockets: on the quick way and on uvicorn's own."""

import contextlib
import gzip
import json
import os
import socket
import time
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from app.limits import Limits, Watch
from app.settings import Settings

ROW = [0.5, -1.0, 2.0, 0.25, 0.0, 1.5]
BODY = json.dumps({"inputs": [ROW]}).encode()
FAST, SLOW = "/predict", "/v2/repository/index"


@contextmanager
def wire(client, size=None):
    sock = socket.socket()
    if size is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    sock.settimeout(10)
    sock.connect((client.base_url.host, client.base_url.port))
    with sock:
        yield sock


def head(path, *headers, length=None):
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()


def rest(sock):
    data = b""
    try:
        while piece := sock.recv(65536):
            data += piece
    except ConnectionResetError:
        data += b"<reset>"
    return data


def answer(data):
    """Status, headers and document of an answer that ends the connection."""
    top, _, body = data.partition(b"\r\n\r\n")
    lines = top.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    return int(lines[0].split()[1]), headers, json.loads(body[: int(headers["content-length"])])


# Time.


@pytest.fixture(scope="module")
def hasty(tiny_dir, build):
    with build.running(tiny_dir, header_timeout_s=0.3, body_timeout_s=0.3, write_timeout_s=0.3) as client:
        yield client


def test_a_client_that_says_nothing_is_closed(hasty):
    with wire(hasty) as sock:
        began = time.monotonic()
        assert rest(sock) == b""
        assert 0.25 < time.monotonic() - began < 10


@pytest.mark.parametrize("already", [0, 1])
@pytest.mark.parametrize("path", [FAST, SLOW])
def test_a_head_that_drips_is_ended(hasty, path, already):
    """A byte now and then keeps nothing open: it is the whole head that has a time."""
    with wire(hasty) as sock:
        for _ in range(already):
            sock.sendall(head(FAST, length=len(BODY)) + BODY)
            assert b"200 OK" in sock.recv(65536)
        began = time.monotonic()
        text = head(path, "X-Long: " + "a" * 1000, length=2)
        sock.settimeout(0.05)
        got = b""
        for byte in text:
            try:
                sock.sendall(bytes([byte]))
                got += sock.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                break
            break
        sock.settimeout(10)
        got += rest(sock)
        took = time.monotonic() - began
    status, headers, document = answer(got)
    assert (status, headers["connection"]) == (408, "close")
    assert document == {"error": "the whole head did not arrive within header_timeout_s (0.3)"}
    assert headers["x-request-id"]
    assert 0.25 < took < 10


def test_empty_lines_keep_nothing_open(hasty):
    with wire(hasty) as sock:
        sock.sendall(head(FAST, length=len(BODY)) + BODY)
        assert b"200 OK" in sock.recv(65536)
        began = time.monotonic()
        with contextlib.suppress(OSError):  # broken pipe or reset
            while time.monotonic() - began < 5:
                sock.sendall(b"\r\n")
                time.sleep(0.05)
        assert time.monotonic() - began < 4.9


@pytest.mark.parametrize("path", [FAST, SLOW])
def test_a_body_that_stops_is_given_up(hasty, path):
    starts = [head(path, "Transfer-Encoding: chunked") + b"10\r\n" + b" " * 16 + b"\r\n"]
    for length in (100, 100_000, 3_000_000)[: 3 if path == FAST else 2]:
        starts += [head(path, length=length), head(path, length=length) + b" " * 50]
    with contextlib.ExitStack() as stack:
        began = time.monotonic()
        socks = [stack.enter_context(wire(hasty)) for _ in starts]
        for sock, start in zip(socks, starts, strict=True):
            sock.sendall(start)
        for sock in socks:
            status, headers, document = answer(rest(sock))
            took = time.monotonic() - began
            assert (status, headers["connection"]) == (408, "close")
            assert document == {"error": "more than 1024 bytes of the body did not arrive within body_timeout_s (0.3)"}
            assert 0.25 < took < 10


@pytest.mark.parametrize("path", [FAST, SLOW])
def test_a_body_that_drips_is_given_up_and_a_slow_one_that_gets_on_is_not(hasty, path):
    with wire(hasty) as sock:
        sock.sendall(head(path, length=60_000))
        began = time.monotonic()
        sock.settimeout(0.05)
        got = b""
        while not got and time.monotonic() - began < 5:
            try:
                sock.sendall(b" ")
                got = sock.recv(65536)
            except TimeoutError:
                continue
        assert got.startswith(b"HTTP/1.1 408")
    body = (BODY if path == FAST else b"{}") + b" " * 12_000
    with wire(hasty) as sock:
        sock.sendall(head(path, length=len(body)))
        for start in range(0, len(body), 1500):
            sock.sendall(body[start : start + 1500])
            time.sleep(0.08)
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")


def test_idle_connections_and_long_answers_are_left_alone(hasty):
    """The times are for what the client owes, not for what the server does or for keeping a connection."""
    with wire(hasty) as sock:
        for _ in range(2):
            sock.sendall(head(FAST, length=len(BODY)) + BODY)
            assert b"200 OK" in sock.recv(65536)
            time.sleep(0.8)


@pytest.mark.parametrize("way", ["quick", "uvicorn"])
def test_a_client_that_does_not_read_is_cut_off_and_piles_up_nothing(tiny_dir, build, way):
    rows = json.dumps({"inputs": [ROW] * 2000}).encode()
    request = (
        head(FAST, length=len(rows)) + rows if way == "quick" else b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
    )
    with build.running(tiny_dir, write_timeout_s=1.0) as client:
        with wire(client, size=4096) as sock:
            sock.setblocking(False)  # noqa: FBT003
            sent, began = 0, time.monotonic()
            view = memoryview(request * 50)
            ended = False
            while time.monotonic() - began < 30 and not ended:
                try:
                    sent += sock.send(view[sent % len(request) :])
                except BlockingIOError:
                    time.sleep(0.01)
                except OSError:
                    ended = True
            took = time.monotonic() - began
        assert ended
        assert 0.9 < took < 20
        # What is not read is not asked for: the kernel's buffers and a few requests, not all that was offered.
        live = client.get("/stats").json()["models"][0]["live"]
        assert sent < 40_000_000
        assert live["requests"] * len(rows) < 40_000_000
        assert client.post(FAST, content=BODY).status_code == 200


def test_a_client_that_reads_slowly_gets_its_answer_whole(tiny_dir, build):
    rows = json.dumps({"inputs": [ROW] * 20_000}).encode()
    with build.running(tiny_dir, write_timeout_s=0.5) as client, wire(client, size=4096) as sock:
        sock.sendall(head(FAST, "Connection: close", length=len(rows)) + rows)
        data = b""
        while piece := sock.recv(50_000):
            data += piece
            time.sleep(0.004)
    status, _, document = answer(data)
    assert status == 200
    assert len(document["outputs"]["logits"]) == 20_000


# Bytes of the head.


@pytest.mark.parametrize("limit", [2000, 20_000, 60_000])
@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize("path", [FAST, SLOW])
def test_a_head_may_be_as_long_as_the_setting_says(tiny_dir, build, path, pieces, limit):
    def ask(client, size):
        with wire(client) as sock:
            text = head(path, "X-Long: " + "a" * size, "Connection: close", length=len(BODY)) + BODY
            for start in range(0, len(text), len(text) // pieces + 1):
                sock.sendall(text[start : start + len(text) // pieces + 1])
                time.sleep(0.01)
            return answer(rest(sock))

    with build.running(tiny_dir, max_header_bytes=limit) as client:
        status, _, _ = ask(client, limit - 500)
        assert status in (200, 400)
        status, headers, document = ask(client, limit + 500)
        assert (status, headers["connection"]) == (431, "close")
        assert document == {"error": f"the request's head is longer than max_header_bytes ({limit})"}


def test_a_head_without_end_is_stopped(client):
    with wire(client) as sock:
        sock.sendall(b"POST /predict HTTP/1.1\r\nX-Endless: ")
        sent = 0
        with contextlib.suppress(OSError):  # broken pipe or reset
            while sent < 50_000_000:
                sent += sock.send(b"a" * 65536)
        assert sent < 8_000_000


def test_what_is_no_http_is_an_error_like_any_other(client):
    with wire(client) as sock:
        sock.sendall(b"this is no HTTP\r\n\r\n")
        status, headers, document = answer(rest(sock))
    assert (status, document) == (400, {"error": "the request is not valid HTTP"})
    assert headers["content-type"] == "application/json"


# Connections.


def test_connections_beyond_the_limit_get_503_but_for_probes(tiny_dir, build):
    with build.running(tiny_dir, max_connections=3) as client:
        client.close()  # its own connection

        def wait_for(*, room):
            deadline = time.monotonic() + 5
            while True:
                with wire(client) as sock:
                    sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    if (rest(sock).startswith(b"HTTP/1.1 200")) == room:
                        return
                assert time.monotonic() < deadline
                time.sleep(0.05)

        wait_for(room=True)
        held = [socket.create_connection((client.base_url.host, client.base_url.port), timeout=5) for _ in range(3)]
        for sock in held:
            sock.sendall(head(FAST, length=len(BODY)) + BODY)
            assert b"200 OK" in sock.recv(65536)
        for path in (FAST, SLOW):
            with wire(client) as sock:
                sock.sendall(head(path, length=len(BODY)) + BODY)
                status, headers, document = answer(rest(sock))
            assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
            assert document["error"].startswith("this worker has as many connections as max_connections (3) allows")
            assert headers["x-request-id"]
        for path in ("/health/live", "/health/ready", "/v2/health/ready"):
            with wire(client) as sock:
                sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                status, headers, _ = answer(rest(sock))
            assert (status, headers["connection"]) == (200, "close")
        held[0].sendall(head(FAST, length=len(BODY)) + BODY)
        assert b"200 OK" in held[0].recv(65536)
        # So many that none is read from any more: told so without being asked.
        more = [socket.create_connection((client.base_url.host, client.base_url.port), timeout=5) for _ in range(40)]
        status, headers, _ = answer(rest(more[-1]))
        assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
        for sock in (*held, *more):
            sock.close()
        wait_for(room=True)


# What a request may hold.


def test_a_request_of_too_many_rows(tiny_dir, build):
    with build.running(tiny_dir, max_request_rows=10) as client:
        tensor = {"name": "x", "shape": [11, 6], "datatype": "FP32", "data": ROW * 11}
        raw = {"content-type": "application/octet-stream"}
        for count, status in ((10, 200), (11, 413)):
            tensor = {"name": "x", "shape": [count, 6], "datatype": "FP32", "data": ROW * count}
            answers = [
                client.post(FAST, json={"inputs": [ROW] * count}),
                client.post("/v2/models/tiny/infer", json={"inputs": [tensor]}),
                client.post(FAST, content=np.zeros((count, 6), np.float32).tobytes(), headers=raw),
            ]
            assert [answer.status_code for answer in answers] == [status] * 3
        said = "the request has 11 rows; max_request_rows is 10. Send them in several requests"
        assert [answer.json() for answer in answers] == [{"error": said}] * 3


def deep(depth, inside="[", outside="]"):
    return inside * depth + "1" + outside * depth


@pytest.mark.parametrize("depth", [600, 2000, 100_000])
@pytest.mark.parametrize(
    "shape", ["{}", '{{"inputs": {}}}', '{{"inputs": [{{"name": "x", "data": {}}}]}}', '{{"outputs": {}}}']
)
@pytest.mark.parametrize("path", [FAST, "/v2/models/tiny/infer"])
def test_deeply_nested_json_is_a_plain_400(client, path, shape, depth):
    for text in (deep(depth), deep(depth, '{"a":', "}")):
        answer = client.post(path, content=shape.format(text))
        assert answer.status_code == 400
        assert list(answer.json()) == ["error"]
        assert len(answer.text) < 1000


@pytest.mark.parametrize("path", [SLOW, "/v2/repository/models/tiny/load", "/models/tiny/benchmark"])
def test_deeply_nested_json_is_a_400_on_other_paths_too(tiny_dir, build, path):
    with build.running(tiny_dir, model_control="explicit") as client:
        for text in (deep(100_000), deep(100_000, '{"a":', "}"), '{"parameters": ' + deep(100_000) + "}"):
            answer = client.post(path, content=text, headers={"content-type": "application/json"})
            assert answer.status_code == 400, answer.text
            assert list(answer.json()) == ["error"]
        head_length = {"inference-header-content-length": "100000"}
        assert client.post("/v2/models/tiny/infer", content=deep(100_000), headers=head_length).status_code == 400


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("path", [FAST, "/v2/models/tiny/infer"])
def test_a_decompression_bomb_is_stopped_at_the_limit(tiny_dir, build, path, coding):
    pack = gzip.compress if coding == "gzip" else zlib.compress
    bomb = pack(b" " * 100_000_000)
    assert len(bomb) < 200_000
    with build.running(tiny_dir, max_body_bytes=1_000_000) as client:
        before = resident()
        answer = client.post(path, content=bomb, headers={"content-encoding": coding})
        assert answer.status_code == 413
        assert answer.json() == {"error": "the decompressed body is larger than max_body_bytes (1000000)"}
        assert resident() - before < 60_000_000
        twice = pack(bomb)
        answer = client.post(path, content=twice, headers={"content-encoding": f"{coding}, {coding}"})
        assert answer.status_code == 413
        chain = BODY
        for _ in range(30):
            chain = pack(chain)
        answer = client.post(path, content=chain, headers={"content-encoding": ", ".join([coding] * 30)})
        assert (answer.status_code, "names 30 codings" in answer.json()["error"]) == (415, True)


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_the_model_says_how_many_tensors_a_request_may_name(client):
    tensor = {"name": "x", "shape": [1, 6], "datatype": "FP32", "data": ROW}
    many = client.post("/v2/models/tiny/infer", json={"inputs": [tensor] * 5000})
    assert (many.status_code, many.json()) == (400, {"error": "the request has 5000 inputs; model 'tiny' takes: x"})
    wanted = {"inputs": [tensor], "outputs": [{"name": "logits"}] * 5000}
    many = client.post("/v2/models/tiny/infer", json=wanted)
    assert many.json() == {"error": "'outputs' has 5000 entries; model 'tiny' has: logits"}


def test_names_are_cut_short_in_what_is_said_of_them(client):
    tensor = {"name": "x", "shape": [1, 6], "datatype": "FP32", "data": ROW}
    long = "n" * 10_000
    answers = [
        client.post(f"/models/{long}/predict", json={}),
        client.post(f"/models/tiny/versions/{long}/predict", json={}),
        client.get(f"/v2/models/{long}"),
        client.get(f"/v2/models/tiny/versions/{long}"),
        client.get(f"/{long}"),
        client.post(FAST, json={long: 1}),
        client.post(f"{FAST}?{long}=1", json={"inputs": [ROW]}),
        client.post("/v2/models/tiny/infer", json={"inputs": [{**tensor, "name": long}]}),
        client.post("/v2/models/tiny/infer", json={"inputs": [{**tensor, long: 1}]}),
        client.post("/v2/models/tiny/infer", json={"inputs": [{**tensor, "datatype": long}]}),
        client.post("/v2/models/tiny/infer", json={"inputs": [tensor], "outputs": [{"name": long}]}),
        client.post("/v2/models/tiny/infer", json={"inputs": [tensor], "id": long}),
        client.post(FAST, content=BODY, headers={"content-type": long}),
        client.post(FAST, content=BODY, headers={"content-encoding": long}),
    ]
    assert [answer.status_code for answer in answers] == [404] * 5 + [400] * 7 + [415] * 2
    assert [answer.text for answer in answers if len(answer.text) > 400] == []


def test_long_paths_are_not_remembered(tiny_dir):
    from app.main import create_app

    service = create_app(Settings(model_dir=tiny_dir)).service
    before = len(service._targets)
    for index in range(50):
        assert service.target(f"/models/{'n' * 600}{index}/predict").name is not None
    assert len(service._targets) == before


@pytest.mark.parametrize("path", [SLOW, "/models/tiny/benchmark"])
@pytest.mark.parametrize("announced", [True, False])
def test_bodies_of_other_requests_are_small(tiny_dir, build, path, announced):
    with build.running(tiny_dir, model_control="explicit") as client:

        def pieces():
            for _ in range(40):
                yield b" " * 65536

        answer = client.post(path, content=b" " * 2_500_000 if announced else pieces())
        assert answer.status_code == 413
        assert answer.json() == {"error": "the body is larger than 1048576 bytes, the most for what is no inference"}


# A client that is still sending gets to read why it is refused.


@pytest.mark.parametrize("reason", ["key", "length", "chunks"])
def test_a_refusal_arrives_though_the_client_is_still_sending(tiny_dir, build, reason):
    settings = {"predict_keys": "predict-key-0123456789"} if reason == "key" else {"max_body_bytes": 100_000}
    with build.running(tiny_dir, **settings) as client:
        body = b" " * 5_000_000
        for _ in range(3):
            with wire(client) as sock:
                if reason == "chunks":
                    request = head(FAST, "Transfer-Encoding: chunked") + b"".join(
                        b"10000\r\n" + body[:65536] + b"\r\n" for _ in range(40)
                    )
                else:
                    request = head(FAST, length=len(body)) + body
                sock.sendall(request)
                time.sleep(0.2)  # a reset would take what has arrived
                status, headers, _ = answer(rest(sock))
            assert (status, headers["connection"]) == (401 if reason == "key" else 413, "close")


def test_refused_bodies_are_not_counted_as_in_hand(tiny_dir, build):
    with build.running(tiny_dir, predict_keys="predict-key-0123456789", max_queue_bytes=20_000) as client:
        for _ in range(20):
            assert client.post(FAST, content=BODY + b" " * 5000).status_code == 401
        good = client.post(FAST, content=BODY, headers={"x-api-key": "predict-key-0123456789"})
        assert good.status_code == 200


# The watch itself.


def test_a_watch_sleeps_while_there_are_no_connections():
    import asyncio

    class Idle:
        looks = 0

        def standing(self):
            self.looks += 1

        def time_out(self, standing):
            raise AssertionError

    async def run():
        connections, idle = set(), Idle()
        watch = Watch(connections, Limits(header_timeout_s=0.05))
        connections.add(idle)
        watch.wake()
        watch.wake()
        await asyncio.sleep(0.06)
        connections.clear()
        await asyncio.sleep(0.03)
        seen = idle.looks
        assert 3 <= seen <= 8
        assert watch._timer is None

    asyncio.run(run())


@pytest.mark.parametrize(
    ("soft", "hard", "connections", "expected"),
    [
        (1024, 4096, 2000, (2256, 4096)),
        (1024, 4096, 500, None),
        (1024, 1500, 2000, (1500, 1500)),
        (1024, -1, 2000, (2256, -1)),
    ],
)
def test_as_many_files_may_be_open_as_connections_need(monkeypatch, soft, hard, connections, expected):
    import resource

    from app.tuning import raise_file_limit

    done = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: done.append(limits))
    problem = raise_file_limit(connections)
    assert done == ([expected] if expected else [])
    if hard == 1500:
        assert problem == "max_connections (2000) needs 2256 open files; this process may have 1500 (ulimit -n)"
    else:
        assert problem is None
