"""What a client may take of the server, tried over sockets: on the quick way and on uvicorn's own."""

import contextlib
import resource
import socket
import time

import pytest
from helpers import build
from helpers.raw_http import BODY, FAST, SLOW, answer, head, rest, wire

from app.system.tuning import raise_file_limit

# Bytes of the head.


@pytest.mark.parametrize("limit", [2000, 20_000, 60_000])
@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize("path", [FAST, SLOW])
def test_a_head_may_be_as_long_as_the_setting_says(tiny_dir, path, pieces, limit):
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
        assert document == {"error": f"the request line and headers are longer than max_header_bytes ({limit})"}


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


def test_connections_beyond_the_limit_get_503_but_for_probes(tiny_dir):
    with build.running(tiny_dir, max_connections=3) as client:
        client.close()  # its own connection

        def wait_for(*, room):
            deadline = time.monotonic() + 60
            while True:
                with wire(client) as sock:
                    sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    if (rest(sock).startswith(b"HTTP/1.1 200")) == room:
                        return
                assert time.monotonic() < deadline
                time.sleep(0.05)

        wait_for(room=True)
        held = [socket.create_connection((client.base_url.host, client.base_url.port), timeout=60) for _ in range(3)]
        for sock in held:
            sock.sendall(head(FAST, length=len(BODY)) + BODY)
            assert b"200 OK" in sock.recv(65536)
        for path in (FAST, SLOW):
            with wire(client) as sock:
                sock.sendall(head(path, length=len(BODY)) + BODY)
                status, headers, document = answer(rest(sock))
            assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
            assert document["error"].startswith("this worker has max_connections (3) open connections")
            assert headers["x-request-id"]
        for path in ("/health/live", "/health/ready", "/v2/health/ready"):
            with wire(client) as sock:
                sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                status, headers, _ = answer(rest(sock))
            assert (status, headers["connection"]) == (200, "close")
        held[0].sendall(head(FAST, length=len(BODY)) + BODY)
        assert b"200 OK" in held[0].recv(65536)
        # So many that none is read from any more: told so without being asked.
        more = [socket.create_connection((client.base_url.host, client.base_url.port), timeout=60) for _ in range(40)]
        status, headers, _ = answer(rest(more[-1]))
        assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
        for sock in (*held, *more):
            sock.close()
        wait_for(room=True)


# A client that is still sending gets to read why it is refused.


@pytest.mark.parametrize("reason", ["key", "length", "chunks"])
def test_a_refusal_arrives_though_the_client_is_still_sending(tiny_dir, reason):
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


def test_refused_bodies_are_not_counted_as_in_hand(tiny_dir):
    with build.running(tiny_dir, predict_keys="predict-key-0123456789", max_queue_bytes=20_000) as client:
        for _ in range(20):
            assert client.post(FAST, content=BODY + b" " * 5000).status_code == 401
        good = client.post(FAST, content=BODY, headers={"x-api-key": "predict-key-0123456789"})
        assert good.status_code == 200


# Open files.


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
    done = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: done.append(limits))
    problem = raise_file_limit(connections)
    assert done == ([expected] if expected else [])
    if hard == 1500:
        assert problem == "max_connections (2000) requires 2256 open files; the limit is 1500 (ulimit -n)"
    else:
        assert problem is None
