"""How a server ends: what is in hand is answered, and nobody is reset."""

import http.client
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

PREDICT = "/models/m/predict"


@pytest.fixture(scope="module")
def models(tmp_path_factory, kit):
    root = tmp_path_factory.mktemp("models")
    kit.put(root, kit.linear(1), "m", 1)
    kit.put(root, kit.slow(), "slow", 1)
    return root


def begin_slow_run(server, pool, count):
    """Ask the slow model; returns once it is at it."""
    ended = pool.submit(server.ask, "POST", "/models/slow/predict", json={"inputs": [count]})
    time.sleep(0.2)
    assert not ended.done()
    return ended


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_under_load_loses_no_request(models, kit, workers):
    with kit.running(models, workers=workers) as server:
        with kit.Load(server.port, PREDICT, {"inputs": [kit.row]}) as load:
            server.wait_for(lambda: len(load.answers) > 300)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(20) == 0
            time.sleep(0.2)
        assert load.lost == []
        assert [answer for answer in load.answers if answer[0] != 200] == []
        assert load.closed >= 8  # each client was told by its last answer
        assert load.refused > 0


def test_new_connections_are_served_while_load_balancers_look(models, kit):
    with kit.running(models, "--shutdown-delay-s", "3") as server:
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
        ready = server.ask("GET", "/health/ready")
        assert (ready.status_code, ready.json()["error"]) == (503, "the server is shutting down")
        assert server.ask("GET", "/v2/health/ready").status_code == 400
        assert server.ask("GET", "/health/live").status_code == 200
        answer = server.ask("POST", PREDICT, json={"inputs": [kit.row]})
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert ready.headers["connection"] == "close"
        assert server.process.poll() is None
        assert server.process.wait(20) == 0


def test_a_connection_that_was_kept_alive_is_told_by_its_next_answer(models, kit):
    with kit.running(models) as server:
        connections = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=10) for _ in range(2)]
        for connection in connections:
            connection.request("GET", "/health/ready")
            assert connection.getresponse().read() == b'{"ready":true}'
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        connections[0].request("GET", "/health/ready")
        answer = connections[0].getresponse()
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port))
        with closing(connections[0]), closing(connections[1]):
            assert connections[1].sock.recv(1) == b""  # the other had no request, and is closed, not reset
        assert server.process.wait(20) == 0


def test_a_connection_made_late_in_the_delay_has_time_for_its_request(models, kit):
    with kit.running(models, "--shutdown-delay-s", "1.5") as server:
        server.process.send_signal(signal.SIGTERM)
        time.sleep(1.2)
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.connect()
        server.wait_for(lambda: "shutting down; 1 connections are open" in server.log)
        time.sleep(0.3)
        connection.request("GET", "/health/live")
        answer = connection.getresponse()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert server.process.wait(20) == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_request_in_hand_is_answered(models, kit, workers):
    with kit.running(models, "--inline-run-us", "0", workers=workers) as server, ThreadPoolExecutor() as pool:
        ended = begin_slow_run(server, pool, server.runs_for(1.5))
        server.process.send_signal(signal.SIGTERM)
        assert ended.result().status_code == 200
        assert server.process.wait(20) == 0


def test_what_takes_longer_than_the_bound_is_refused_and_the_process_ends(models, kit):
    arguments = ("--inline-run-us", "0", "--shutdown-timeout-s", "1")
    with kit.running(models, *arguments) as server, ThreadPoolExecutor() as pool:
        ended = begin_slow_run(server, pool, server.runs_for(60))
        server.process.send_signal(signal.SIGTERM)
        answer = ended.result()
        assert (answer.status_code, answer.json()) == (503, {"error": "the server is shutting down"})
        assert server.process.wait(20) in (0, 1)  # 1 where the runtime could not be stopped
        assert "1 connections and 0 tasks were not done after shutdown_timeout_s (1)" in server.log


@pytest.mark.parametrize("workers", [1, 2])
def test_the_second_signal_ends_it_at_once(models, kit, workers):
    with kit.running(models, "--inline-run-us", "0", workers=workers) as server, ThreadPoolExecutor() as pool:
        ended = begin_slow_run(server, pool, server.runs_for(60))
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) != 0  # the first one alone would have waited for 30 s
        assert isinstance(ended.exception(), Exception)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_end_may_come_while_models_are_loaded(tmp_path, kit, workers):
    for number in range(300):
        kit.put(tmp_path, kit.linear(number), f"m{number}", 1)
    with kit.running(tmp_path, workers=workers, wait=False) as server:
        server.wait_for(lambda: server.log.count("loaded model") >= workers)
        assert server.ask("GET", "/health/ready").json()["error"] == "models are being loaded"
        began = time.monotonic()
        assert server.end() == 0
        assert time.monotonic() - began < 15
        assert "ready: " not in server.log
        assert server.log.count("loaded model") < 300


def test_ctrl_c_reaches_all_workers_and_counts_once(models, kit):
    with kit.running(models, "--inline-run-us", "0", workers=2) as server, ThreadPoolExecutor() as pool:
        ended = begin_slow_run(server, pool, server.runs_for(1))
        os.killpg(server.process.pid, signal.SIGINT)  # as a terminal does
        assert ended.result().status_code == 200
        assert server.process.wait(10) == 0
