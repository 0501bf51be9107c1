"""Workers that are killed, and runs that do not end."""

import os
import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from helpers import processes
from helpers.processes import LIMIT_S

AS_FIRST = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


def test_a_killed_worker_is_replaced_and_the_others_go_on(tmp_path):
    processes.put(tmp_path, processes.linear(1), "m", 1)
    with processes.running(tmp_path, workers=2) as server:
        victim = server.children()[0]
        with processes.Load(server.port, "/models/m/predict", {"inputs": [processes.ROW]}) as load:
            server.wait_for(lambda: len(load.answers) > 300)
            os.kill(victim, signal.SIGKILL)
            server.wait_for(lambda: server.log.count("ready: serving") == 3)
            before = len(load.answers)
            server.wait_for(lambda: len(load.answers) > before + 300)
        # A client loses what it had in hand at the worker that died, and perhaps a new connection that waited there.
        assert len(load.lost) <= 2 * 8
        assert load.statuses() == {200}
        assert load.refused == 0
        assert len(set(server.children()) - {victim}) == 2
        assert f"worker {victim} died (by signal SIGKILL)" in server.log
        assert server.end() == 0


def test_where_all_workers_are_killed_clients_wait_for_their_successors(tmp_path):
    processes.put(tmp_path, processes.linear(1), "m", 1)
    with processes.running(tmp_path, workers=2) as server:
        killed = set(server.children())
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        server.wait_for(lambda: len(set(server.children()) - killed) == 2)
        assert server.value() == 1
        server.wait_for(lambda: server.log.count("ready: serving") == 4)
        assert server.end() == 0


def may_be_first() -> bool:
    try:
        return subprocess.run([*AS_FIRST, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not may_be_first(), reason="no process here may make a namespace of processes")
@pytest.mark.parametrize("workers", [1, 2])
def test_as_a_containers_first_process_it_ends_when_it_is_told_to(tmp_path, workers):
    # The kernel spares the first process the default actions of signals: what is not handled does nothing.
    processes.put(tmp_path, processes.linear(1), "m", 1)
    with processes.running(tmp_path, "--model-control", "explicit", workers=workers, before=AS_FIRST) as server:
        assert (processes.proc(server.pid) / "status").read_text().split("NSpid:")[1].split()[1] == "1"
        if workers > 1:
            os.kill(server.children()[0], signal.SIGKILL)
            server.wait_for(lambda: server.log.count("ready: serving") == 3)
        assert server.value() == 1
        processes.put(tmp_path, processes.linear(2), "m", 2)
        assert server.ask("POST", "/v2/repository/models/m/load").status_code == 200
        assert server.value() == 2
        assert server.end() == 0


def test_a_worker_that_says_nothing_is_replaced(tmp_path):
    processes.put(tmp_path, processes.linear(1), "m", 1)
    with processes.running(tmp_path, workers=2) as server:
        victim = server.children()[0]
        time.sleep(2.5)  # it is asked every second; one that has not answered yet is given two minutes
        os.kill(victim, signal.SIGSTOP)
        server.wait_for(lambda: server.log.count("ready: serving") == 3, 4 * LIMIT_S)
        assert re.search(rf"killing and replacing worker {victim}: it has not reported for \d+ s", server.log)
        assert victim not in server.children()
        assert server.end() == 0


def test_ready_only_when_every_worker_is(tmp_path):
    processes.put(tmp_path, processes.linear(1), "m", 1)

    def ready():
        try:
            return httpx.get(server.url + "/health/ready", timeout=0.5).json()
        except httpx.TimeoutException:  # it came to the one that stands still
            return None

    with processes.running(tmp_path, workers=2, wait=False) as server:
        victim = server.wait_for(server.children)[0]  # it has not begun to load
        os.kill(victim, signal.SIGSTOP)
        server.wait_for(lambda: "ready: " in server.log)
        answers = [server.wait_for(ready) for _ in range(4)]
        assert all(answer == {"ready": False, "error": "models are loading"} for answer in answers)
        os.kill(victim, signal.SIGCONT)
        server.wait_for(lambda: ready() == {"ready": True})


def test_a_run_that_does_not_end_fails_the_liveness_probe(tmp_path):
    processes.put(tmp_path, processes.slow(), "slow", 1)
    arguments = ("--inline-run-us", "0", "--stuck-run-s", "4")
    with processes.running(tmp_path, *arguments) as server, ThreadPoolExecutor() as pool:
        ended = server.begin_slow_run(pool, 8)
        assert server.ask("GET", "/health/live").json() == {"live": True}
        server.wait_for(lambda: server.ask("GET", "/health/live").status_code == 503)
        told = server.ask("GET", "/health/live").json()
        assert told["live"] is False
        assert server.metric("panther_live") == 0
        assert re.match(r"model 'slow' version 1 has been running for \d+ s \(stuck_run_s 4\)", told["error"])
        assert server.ask("GET", "/v2/health/live").status_code == 400
        assert ended.result().status_code == 200
        assert server.ask("GET", "/health/live").json() == {"live": True}
        assert server.metric("panther_live") == 1
        assert "not live: model 'slow' version 1 has been running for" in server.log


def test_a_worker_whose_run_does_not_end_is_replaced(tmp_path):
    processes.put(tmp_path, processes.slow(), "slow", 1)
    arguments = ("--inline-run-us", "0", "--stuck-run-s", "5")
    with processes.running(tmp_path, *arguments, workers=2) as server, ThreadPoolExecutor() as pool:
        before = set(server.children())
        ended = server.begin_slow_run(pool, 60)
        server.wait_for(lambda: server.log.count("ready: serving") == 3)
        assert isinstance(ended.exception(), Exception)
        assert len(before & set(server.children())) == 1
        assert re.search(r"killing and replacing worker \d+: model 'slow' version 1 has been running", server.log)
        assert server.end() == 0


def test_a_worker_whose_event_loop_is_stuck_is_replaced(tmp_path):
    processes.put(tmp_path, processes.slow(), "slow", 1)
    # The run is expected to be short, so it happens in the event loop.
    arguments = ("--inline-run-us", "1000000000", "--stuck-run-s", "5")
    with processes.running(tmp_path, *arguments, workers=2) as server, ThreadPoolExecutor() as pool:
        ended = server.begin_slow_run(pool, 60)
        server.wait_for(lambda: server.log.count("ready: serving") == 3)
        assert isinstance(ended.exception(), Exception)
        assert re.search(r"killing and replacing worker \d+: its event loop has been blocked for", server.log)
        assert server.end() == 0
