"""Real server processes: one and several workers, signals, and figures that add up."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from helpers import build

ROOT = Path(__file__).parents[2]
ROW = [0.5, -1.0, 2.0, 0.25, 0.0, 1.5]


class Log:
    """What the server wrote so far."""

    def __init__(self, path):
        self.path = path

    def __str__(self):
        return self.path.read_text()

    def ready(self):
        return str(self).count("ready: serving")


@contextmanager
def server(model_dir, *arguments, workers=1):
    """``python -m app`` in a process of its own; yields it, a client, and its log."""
    command = [sys.executable, "-m", "app", "--port", "0", "--model-dir", str(model_dir), "--num-threads", "1"]
    with tempfile.TemporaryDirectory() as folder:
        log = Log(Path(folder) / "log")
        with log.path.open("w") as stream:
            process = subprocess.Popen([*command, "--workers", str(workers), *arguments], cwd=ROOT, stderr=stream)
        try:
            wait_for(lambda: log.ready() == workers, log)
            port = re.search(r"listening on http://127.0.0.1:(\d+)", str(log))[1]
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                yield process, client, log
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(60)


def wait_for(condition, log, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, str(log)
        time.sleep(0.02)


def children(process):
    """Worker processes: those that listen, not multiprocessing's helper."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                command = (entry / "cmdline").read_text()
            except OSError:
                continue
            if int(fields[1]) == process.pid and fields[0] != "Z" and "spawn_main" in command:
                found.append(int(entry.name))
    return found


def test_one_process_serves_and_ends_well(tiny_dir, tiny):
    with server(tiny_dir) as (process, client, log):
        answer = client.post("/predict", json={"inputs": [ROW]}).json()
        np.testing.assert_allclose(answer["outputs"]["logits"], tiny.logits([ROW]), rtol=1e-4, atol=1e-5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert "Traceback" not in str(log)


def test_figures_add_up_over_workers_and_a_killed_one_is_replaced(tiny_dir):
    with server(tiny_dir, workers=2) as (process, client, log):
        assert len(children(process)) == 2
        # A connection stays with its worker: many connections reach both.
        for _ in range(40):
            with httpx.Client(base_url=client.base_url, timeout=60) as one:
                assert one.post("/predict", json={"inputs": [ROW] * 2}).status_code == 200
        seen = set()
        for _ in range(20):
            with httpx.Client(base_url=client.base_url, timeout=60) as one:
                live = one.get("/stats").json()["models"][0]["live"]
                seen.add((live["requests"], live["rows"]))
                stats = one.get("/v2/models/tiny/stats").json()["model_stats"][0]
                assert stats["inference_count"] == 80
                assert stats["inference_stats"]["success"]["count"] == 40
        assert seen == {(40, 80)}

        victim = children(process)[0]
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: len(set(children(process)) - {victim}) == 2 and log.ready() == 3, log)
        for _ in range(10):
            with httpx.Client(base_url=client.base_url, timeout=60) as one:
                assert one.post("/predict", json={"inputs": [ROW]}).status_code == 200
                assert one.get("/v2/models/stats").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_model_control_reaches_every_worker_and_later_ones(tmp_path):
    build.put(tmp_path, build.Tiny().graph(), "m", "1")
    with server(tmp_path, "--model-control", "explicit", workers=2) as (process, client, log):

        def versions():
            found = set()
            for _ in range(24):
                with httpx.Client(base_url=client.base_url, timeout=60) as one:
                    answer = one.post("/models/m/predict", json={"inputs": [ROW]})
                    found.add(answer.json().get("version", answer.status_code))
            return found

        assert versions() == {"1"}
        build.put(tmp_path, build.Tiny(seed=2).graph(), "m", "2")
        assert client.post("/v2/repository/models/m/load").status_code == 200
        assert versions() == {"2"}
        assert client.post("/v2/repository/models/m/unload").status_code == 200
        assert versions() == {503}
        os.kill(children(process)[0], signal.SIGKILL)
        wait_for(lambda: len(children(process)) == 2 and log.ready() == 3, log)
        assert versions() == {503}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_taken_port_ends_it_with_a_word(tiny_dir, workers):
    with server(tiny_dir, workers=workers) as (_, client, _):
        command = [sys.executable, "-m", "app", "--port", str(client.base_url.port), "--workers", str(workers)]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert "Address already in use; choose another with --host and --port" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_without_standard_streams_it_serves_and_ends_well(tiny_dir, workers):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = f"exec {sys.executable} -m app --port {port} --workers {workers} --model-dir '{tiny_dir}' 0<&- >&- 2>&-"
    with subprocess.Popen(["bash", "-c", command], cwd=ROOT) as process:
        try:

            def ready():
                with contextlib.suppress(httpx.TransportError):
                    return httpx.get(f"http://127.0.0.1:{port}/health/ready", timeout=60).status_code == 200
                return False

            wait_for(ready, "no log")
            for pid in (process.pid, *children(process)):
                opened = [str(Path(f"/proc/{pid}/fd/{number}").readlink()) for number in range(3)]
                assert opened == 3 * [os.devnull]  # no client is at the other end
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()


def has_ipv6():
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("workers", [1, 2])
def test_an_address_of_ipv6_is_told_as_urls_have_it(tiny_dir, workers):
    command = [sys.executable, "-m", "app", "--host", "::1", "--port", "0", "--workers", str(workers)]
    with subprocess.Popen(
        [*command, "--model-dir", str(tiny_dir)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            told = next(line for line in process.stderr if "listening on" in line)
            url = re.search(r"listening on (http://\[::1\]:\d+) ", told)[1]
            again = [*command[:-3], url.rpartition(":")[2], "--workers", "1"]
            ended = subprocess.run(again, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
            assert f"error: can't listen on {url.removeprefix('http://')}: Address already in use" in ended.stderr
            process.terminate()
            process.stderr.read()
        finally:
            process.kill()


def test_threads_are_shared_out_among_workers(monkeypatch):
    from app.config import settings as settings_module

    monkeypatch.setattr(settings_module, "available_cores", lambda: 8)
    made = settings_module.Settings
    assert [made(workers=count).threads() for count in (1, 2, 3, 8, 16)] == [8, 4, 2, 1, 1]
    assert made(workers=4, num_threads=3).threads() == 3


def test_workers_end_when_their_parent_is_killed(tiny_dir):
    with server(tiny_dir, workers=2) as (process, _, log):
        workers = children(process)
        process.kill()
        process.wait(60)
        wait_for(lambda: not any(Path(f"/proc/{worker}/cmdline").exists() for worker in workers), log)
