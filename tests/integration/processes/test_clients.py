"""Clients that don't read, clients that send by drops, clients that ask for much: others don't notice."""

import json
import signal
import socket
import statistics
import time
from contextlib import ExitStack

import pytest
from helpers import processes

ANSWER_BYTES = 8_000_000  # well over what the kernel keeps of an answer that nobody reads
CLIENTS = 12


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    processes.put(root, processes.linear(1), "m", 1)
    processes.put(root, processes.wide(ANSWER_BYTES // 4), "wide", 1)
    (root / "wide" / "panther.toml").write_text("max_batch_rows = 1")
    processes.put(root, processes.slow(), "slow", 1)
    return root


def post(path, body, *fields):
    head = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*head, *fields, "", ""]).encode() + body


def latency_s(server, count=40):
    times = []
    for _ in range(count):
        began = time.perf_counter()
        assert server.value() == 1
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def connect(server, stack):
    sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    return sock


def test_clients_that_stop_reading_hold_up_nobody_and_no_end(models):
    ask = post("/models/wide/predict", json.dumps({"inputs": [[1.0]]}).encode(), "Accept: application/octet-stream")
    with processes.running(models, "--shutdown-timeout-s", "2") as server, ExitStack() as stack:
        usual_s = latency_s(server)
        silent = [connect(server, stack) for _ in range(CLIENTS)]
        for sock in silent:
            sock.sendall(ask)
        server.wait_for(
            lambda: server.metric('panther_rows_total{model="wide",protocol="plain",version="1"}') == CLIENTS
        )
        # Not one more answer is made for those who don't read the first.
        for sock in silent:
            sock.settimeout(0.2)
            try:
                for _ in range(2000):
                    sock.sendall(ask)
            except TimeoutError:
                pass
        time.sleep(0.5)
        assert server.metric('panther_rows_total{model="wide",protocol="plain",version="1"}') <= 3 * CLIENTS
        assert server.resident_bytes() < 1 << 30
        assert latency_s(server) < usual_s + 0.5
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0


def test_clients_that_send_by_drops_hold_up_nobody_and_no_end(models):
    body = json.dumps({"inputs": [processes.ROW]}).encode()
    whole = post("/models/m/predict", body)
    with processes.running(models, "--shutdown-timeout-s", "2") as server, ExitStack() as stack:
        usual_s = latency_s(server)
        slow = [connect(server, stack) for _ in range(100)]
        for at in range(10):
            for number, sock in enumerate(slow):
                cut = at if number % 2 else len(whole) - 20 + at  # within the head, and within the body
                sock.sendall(whole[cut : cut + 1] if at or number % 2 else whole[: cut + 1])
        assert latency_s(server) < usual_s + 0.5
        # One of them gets to its end all the same.
        slow[0].sendall(whole[len(whole) - 10 :])
        assert slow[0].recv(15) == b"HTTP/1.1 200 OK"
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0


def test_newcomers_are_let_in_together_while_the_server_is_busy(models):
    newcomers = 40
    with processes.running(models, "--inline-run-us", "1000000000") as server, ExitStack() as stack:
        document = {"inputs": [server.runs_for(0.03)]}
        load = stack.enter_context(processes.Load(server.port, "/models/slow/predict", document, clients=2))
        server.wait_for(lambda: len(load.answers) > 10)
        before = len(load.answers)
        socks = [connect(server, stack) for _ in range(newcomers)]
        for sock in socks:
            sock.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        for sock in socks:
            assert sock.recv(15) == b"HTTP/1.1 200 OK"
        # A turn of the event loop, in which it would let in one of them, takes it a run at least.
        assert len(load.answers) - before < newcomers / 2
