"""Signals that mean nothing, or a reread of the keys, and what is left of a server that was killed."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import httpx
import pytest
from helpers import processes

FIRST, SECOND = "a-first-key-of-some-length", "a-second-key-of-some-length"


def alive(pid):
    """Whether a process runs still; one that nothing has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("workers", [1, 2])
def test_stray_signals_lose_no_answer(tmp_path, workers):
    processes.put(tmp_path, processes.linear(1), "m", 1)
    with processes.running(tmp_path, workers=workers) as server:
        pids = server.children()
        with processes.Load(server.port, "/models/m/predict", {"inputs": [processes.ROW]}) as load:
            for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP) * 5:
                before = len(load.answers)
                os.killpg(server.process.pid, number)
                server.wait_for(lambda before=before: len(load.answers) > before + 20)
        assert (load.lost, load.refused, load.statuses()) == ([], 0, {200})
        assert server.children() == pids
        assert server.end() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_stray_signals_while_it_starts_end_nothing(tmp_path, workers):
    processes.put(tmp_path, processes.linear(1), "m", 1)
    with processes.running(tmp_path, workers=workers, wait=False) as server:
        end = time.monotonic() + 60
        while server.log.count("ready: serving") < workers:
            assert time.monotonic() < end, server.log
            for number in (signal.SIGHUP, signal.SIGUSR1):
                os.kill(server.pid, number)
            time.sleep(0.01)
        assert "died" not in server.log
        assert server.value() == 1
        assert server.end() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_rereads_the_keys_at_once(tmp_path, workers):
    processes.put(tmp_path / "models", processes.linear(1), "m", 1)
    keys = tmp_path / "keys"
    keys.write_text(FIRST)
    with processes.running(tmp_path / "models", "--predict-keys-file", keys, workers=workers) as server:

        def statuses(key):
            ask = partial(httpx.post, f"{server.url}/models/m/predict", json={"inputs": [processes.ROW]})
            return {ask(headers={"x-api-key": key}).status_code for _ in range(10)}

        assert (statuses(FIRST), statuses(SECOND)) == ({200}, {401})
        keys.write_text(SECOND)
        os.kill(server.pid, signal.SIGHUP)
        server.wait_for(lambda: server.log.count("SIGHUP: reloaded the key files") == workers)
        assert (statuses(FIRST), statuses(SECOND)) == ({401}, {200})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_is_left_of_a_server_that_has_ended(tmp_path, workers, number):
    """No process, and no file: what the workers share lies in no folder."""
    processes.put(tmp_path / "models", processes.linear(1), "m", 1)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    arguments = ("--model-control", "explicit")
    with processes.running(tmp_path / "models", *arguments, workers=workers, TMPDIR=str(temporary)) as server:
        assert server.ask("POST", "/v2/repository/models/m/load").status_code == 200
        assert server.ask("GET", "/stats").status_code == 200
        assert list(temporary.iterdir()) == []
        family = session(server.process.pid)
        assert len(family) >= workers
        os.kill(server.pid, number)
        server.process.wait(60)
        end = time.monotonic() + 60
        while left := [pid for pid in family if alive(pid)]:
            assert time.monotonic() < end, left
            time.sleep(0.05)
        assert list(temporary.iterdir()) == []


def session(leader):
    """All processes of a session and of the sessions that its members began."""
    found = {leader}
    while True:
        more = set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                except OSError:
                    continue
                if {int(fields[1]), int(fields[3])} & found:
                    more.add(int(entry.name))
        if more <= found:
            return found
        found |= more
