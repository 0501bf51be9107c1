"""How a server ends: what is in hand is answered, and nobody is reset."""

import http.client
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import pytest
from helpers import processes
from helpers.processes import LIMIT_S

PREDICT = "/models/m/predict"
GIVEN_S = 120


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    processes.put(root, processes.linear(1), "m", 1)
    processes.put(root, processes.slow(), "slow", 1)
    return root


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_under_load_loses_no_request(models, workers):
    with processes.running(models, workers=workers) as server:
        with processes.Load(server.port, PREDICT, {"inputs": [processes.ROW]}) as load:
            server.wait_for(lambda: len(load.answers) > 300)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(LIMIT_S) == 0
            end = time.monotonic() + LIMIT_S
            while not load.refused and time.monotonic() < end:
                time.sleep(0.02)
        assert load.lost == []
        assert [answer for answer in load.answers if answer[0] != 200] == []
        assert load.closed >= 8  # each client was told by its last answer
        assert load.refused > 0


def test_new_connections_are_served_while_load_balancers_look(models):
    with processes.running(models, "--shutdown-delay-s", "8") as server:
        server.process.send_signal(signal.SIGTERM)
        server.wait_for(lambda: server.ask("GET", "/health/ready").status_code == 503)
        ready = server.ask("GET", "/health/ready")
        assert (ready.status_code, ready.json()["error"]) == (503, "the server is shutting down")
        assert server.ask("GET", "/v2/health/ready").status_code == 400
        assert server.ask("GET", "/health/live").status_code == 200
        answer = server.ask("POST", PREDICT, json={"inputs": [processes.ROW]})
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert ready.headers["connection"] == "close"
        assert server.process.poll() is None
        assert server.process.wait(LIMIT_S) == 0


def test_a_client_that_sends_on_after_its_refusal_holds_up_no_end(models):
    """It is discarded for half a minute while the server serves, and not while it ends."""
    stop = threading.Event()

    def send_on(sock):
        with suppress(BrokenPipeError, ConnectionResetError):
            while not stop.wait(0.1):
                sock.sendall(b" ")

    with (
        processes.running(models, "--max-body-bytes", "100000", "--shutdown-timeout-s", "100") as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=LIMIT_S) as sock,
        ThreadPoolExecutor(1) as pool,
    ):
        sock.sendall(f"POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n ".encode())
        assert sock.recv(12) == b"HTTP/1.1 413"
        sending = pool.submit(send_on, sock)
        try:
            time.sleep(1)
            assert not sending.done()  # the server takes what comes
            began = time.monotonic()
            assert server.end() == 0
            assert time.monotonic() - began < 20
        finally:
            stop.set()


def test_a_connection_that_was_kept_alive_is_told_by_its_next_answer(models):
    with processes.running(models) as server:
        connections = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=LIMIT_S) for _ in range(2)]
        for connection in connections:
            connection.request("GET", "/health/ready")
            assert connection.getresponse().read() == b'{"ready":true}'
        server.process.send_signal(signal.SIGTERM)
        server.wait_for(lambda: "shutting down; 2 connections are open" in server.log)
        connections[0].request("GET", "/health/ready")
        answer = connections[0].getresponse()
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port))
        with closing(connections[0]), closing(connections[1]):
            assert connections[1].sock.recv(1) == b""  # the other had no request, and is closed, not reset
        assert server.process.wait(LIMIT_S) == 0


def test_a_connection_made_late_in_the_delay_has_time_for_its_request(models):
    with processes.running(models, "--shutdown-delay-s", "4") as server:
        server.process.send_signal(signal.SIGTERM)
        server.wait_for(lambda: server.ask("GET", "/health/ready").status_code == 503)
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=LIMIT_S)
        connection.connect()
        server.wait_for(lambda: "shutting down; 1 connections are open" in server.log)
        connection.request("GET", "/health/live")
        answer = connection.getresponse()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert server.process.wait(LIMIT_S) == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_request_in_hand_is_answered(models, workers):
    with processes.running(models, "--inline-run-us", "0", workers=workers) as server, ThreadPoolExecutor() as pool:
        ended = server.begin_slow_run(pool, 1.5)
        server.process.send_signal(signal.SIGTERM)
        assert ended.result().status_code == 200
        assert server.process.wait(LIMIT_S) == 0


def test_what_takes_longer_than_the_bound_is_refused_and_the_process_ends(models):
    arguments = ("--inline-run-us", "0", "--shutdown-timeout-s", "1")
    with processes.running(models, *arguments) as server, ThreadPoolExecutor() as pool:
        ended = server.begin_slow_run(pool, 60)
        server.process.send_signal(signal.SIGTERM)
        answer = ended.result()
        assert (answer.status_code, answer.json()) == (503, {"error": "the server is shutting down"})
        assert server.process.wait(LIMIT_S) in (0, 1)  # 1 where the runtime could not be stopped
        assert "1 connections and 0 tasks are unfinished after shutdown_timeout_s (1)" in server.log


@pytest.mark.parametrize("workers", [1, 2])
def test_the_second_signal_ends_it_at_once(models, workers):
    arguments = ("--inline-run-us", "0", "--shutdown-timeout-s", GIVEN_S)
    with processes.running(models, *arguments, workers=workers) as server, ThreadPoolExecutor() as pool:
        ended = server.begin_slow_run(pool, 2 * GIVEN_S)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        server.wait_for(lambda: server.log.count("shutting down; ") == workers)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(LIMIT_S) != 0
        assert time.monotonic() - began < GIVEN_S  # which the first one alone would have waited for
        assert isinstance(ended.exception(), Exception)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_end_may_come_while_models_are_loaded(tmp_path, workers):
    for number in range(300):
        processes.put(tmp_path, processes.linear(number), f"m{number}", 1)
    with processes.running(tmp_path, workers=workers, wait=False) as server:
        server.wait_for(lambda: server.log.count("loaded model") >= workers)
        assert server.ask("GET", "/health/ready").json()["error"] == "models are loading"
        assert server.end() == 0
        assert "ready: " not in server.log
        assert server.log.count("loaded model") < 300


def test_ctrl_c_reaches_all_workers_and_counts_once(models):
    with processes.running(models, "--inline-run-us", "0", workers=2) as server, ThreadPoolExecutor() as pool:
        ended = server.begin_slow_run(pool, 1)
        os.killpg(server.process.pid, signal.SIGINT)  # as a terminal does
        assert ended.result().status_code == 200
        assert server.process.wait(LIMIT_S) == 0
