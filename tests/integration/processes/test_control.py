"""Commands that load and unload models, of a server with several workers: all of them come to serve the same."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import httpx
from helpers.processes import linear, put, running

EXPLICIT = ("--model-control", "explicit", "--trial-load-s", "0")
MODEL = "/v2/repository/models/m"


def answers_of(server, count=12):
    """What a request on each of some new connections is answered with: they come to all workers."""
    return {server.value() for _ in range(count)}


def answers_of_each(server):
    """The answer of each worker, while the others stand still."""
    pids, found = server.children(), []
    for pid in pids:
        for other in pids:
            if other != pid:
                os.kill(other, signal.SIGSTOP)
        try:
            found.append(server.wait_for(lambda: _value(server)))
        finally:
            for other in pids:
                os.kill(other, signal.SIGCONT)
    return found


def _value(server):
    """The answer of whichever worker takes the connection; None where that stands still."""
    try:
        answer = httpx.post(f"{server.url}/models/m/predict", json={"inputs": [[0] * 6]}, timeout=1)
    except httpx.TimeoutException:
        return None
    return answer.json()["outputs"]["y"][0][0] if answer.status_code == 200 else answer.status_code


def test_of_commands_that_come_at_once_all_workers_apply_the_same_last(tmp_path):
    put(tmp_path, linear(1), "m", 1)
    with running(tmp_path, *EXPLICIT, workers=2) as server, ThreadPoolExecutor(2) as pool:
        for _ in range(40):
            pair = [pool.submit(server.ask, "POST", f"{MODEL}/{action}") for action in ("load", "unload")]
            assert [answer.result().status_code for answer in pair] == [200, 200]
            assert len(answers_of(server)) == 1
        assert len(set(answers_of_each(server))) == 1
        assert server.end() == 0


def test_a_command_waits_for_a_worker_that_hangs_and_its_successor_applies_it(tmp_path):
    put(tmp_path, linear(1), "m", 1)
    with running(tmp_path, *EXPLICIT, workers=2) as server, ThreadPoolExecutor(1) as pool:
        put(tmp_path, linear(2), "m", 2)
        hung, other = server.children()
        os.kill(hung, signal.SIGSTOP)
        asked = pool.submit(_load_at_once, server)
        server.wait_for(lambda: server.log.count("loaded model m version 2") == 1)
        assert not asked.done()
        os.kill(hung, signal.SIGKILL)
        assert asked.result() == 200
        server.wait_for(lambda: server.log.count("ready: serving") == 3)
        assert other in server.children()
        assert answers_of(server) == {2}
        assert server.end() == 0


def _load_at_once(server):
    """Ask until a worker that is not stopped takes the connection; the status."""
    while True:
        try:
            with httpx.Client(base_url=server.url, timeout=httpx.Timeout(60, read=60)) as client:
                client.get("/health/live", timeout=1)
                return client.post(f"{MODEL}/load").status_code
        except httpx.TimeoutException:
            continue


def test_commands_while_workers_die_leave_all_alike(tmp_path):
    for version in (1, 2):
        put(tmp_path, linear(version), "m", version)
    with running(tmp_path, *EXPLICIT, workers=2) as server, ThreadPoolExecutor(3) as pool:

        def ask(number):
            config = json.dumps({"version_policy": {"specific": {"versions": [1 + number % 2]}}})
            try:
                if number % 3 == 2:
                    return server.ask("POST", f"{MODEL}/unload").status_code
                return server.ask("POST", f"{MODEL}/load", json={"parameters": {"config": config}}).status_code
            except httpx.TransportError:
                return None  # its worker was killed

        for round_ in range(3):
            asked = [pool.submit(ask, number) for number in range(12)]
            asked[3].result()
            os.kill(server.children()[0], signal.SIGKILL)
            assert {answer.result() for answer in asked} <= {200, None}
            server.wait_for(lambda round_=round_: server.log.count("starting another") == round_ + 1)
            server.wait_for(lambda: len(server.children()) == 2)
            server.wait_for(lambda round_=round_: server.log.count("ready: serving") == 3 + round_)
            assert len(answers_of(server)) == 1
        assert len(set(answers_of_each(server))) == 1
        assert server.end() == 0


def test_a_load_that_fails_changes_no_worker_and_says_why(tmp_path):
    put(tmp_path, linear(1), "m", 1)
    with running(tmp_path, *EXPLICIT, workers=2) as server:
        put(tmp_path, linear(2), "m", 2).write_bytes(b"rubbish")
        answer = server.ask("POST", f"{MODEL}/load")
        assert answer.status_code == 500
        assert answer.json()["error"].startswith("model 'm' version 2: ")
        assert answers_of(server) == {1}
        assert server.ask("POST", "/v2/repository/models/none/load").status_code == 404
        assert server.ask("POST", "/v2/repository/models/none/unload").status_code == 404
        assert server.ask("GET", "/health/ready").status_code == 200


def test_a_later_worker_serves_no_model_that_the_others_do_not(tmp_path):
    put(tmp_path, linear(1), "m", 1)
    with running(tmp_path, *EXPLICIT, workers=2) as server:
        put(tmp_path, linear(2), "other", 1)  # not asked for
        os.kill(server.children()[0], signal.SIGKILL)
        server.wait_for(lambda: server.log.count("ready: serving") == 3)
        assert {server.value("other") for _ in range(12)} == {404}
        assert server.ask("POST", "/v2/repository/models/other/load").status_code == 200
        assert {server.value("other") for _ in range(12)} == {2}
