"""What goes wrong around the server: memory that runs out, a worker that is stopped, no network, a clock that jumps."""

import gzip
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import httpx
import pytest
from helpers import processes

MIB = 2**20


def test_a_worker_that_is_stopped_for_a_while_goes_on_and_loses_nothing(tmp_path):
    processes.put(tmp_path, processes.linear(3.0), "m", 1)
    with processes.running(tmp_path, workers=2) as server:
        stopped = server.children()[0]
        with processes.Load(server.port, "/predict", {"inputs": [processes.ROW]}, clients=8) as load:
            server.wait_for(lambda: len(load.answers) > 200)
            os.kill(stopped, signal.SIGSTOP)
            time.sleep(1)
            before = len(load.answers)
            server.wait_for(lambda: len(load.answers) > before + 20)  # the clients of the other worker notice nothing
            os.kill(stopped, signal.SIGCONT)
            resumed = len(load.answers)
            server.wait_for(lambda: len(load.answers) > resumed + 200)
        assert load.statuses() == {200}
        assert load.lost == []
        assert stopped in server.children()


def test_where_memory_runs_out_a_request_fails_and_the_server_does_not(tmp_path):
    processes.put(tmp_path, processes.linear(3.0), "m", 1)
    # In the event loop: on a busy machine a run would be sent to a thread, for which there is no memory.
    with processes.running(tmp_path, "--inline-run-us", "1000000000") as server:
        assert server.value() == 3.0
        pid = server.process.pid
        pages = int((processes.proc(pid) / "statm").read_text().split()[0])
        used = pages * resource.getpagesize()
        unlimited = resource.prlimit(pid, resource.RLIMIT_AS, (used + 4 * MIB, resource.RLIM_INFINITY))
        statuses = set()
        bomb = gzip.compress(b" " * (60 * MIB), 1)
        rows = [[0.25] * 6] * 60_000
        for _ in range(3):
            statuses.add(server.ask("POST", "/predict", content=bomb, headers={"content-encoding": "gzip"}).status_code)
            statuses.add(server.ask("POST", "/predict", json={"inputs": rows}).status_code)
            server.wait_for(lambda: server.value() == 3.0)
        assert statuses & {500, 503}
        assert statuses <= {200, 400, 413, 500, 503}
        resource.prlimit(pid, resource.RLIMIT_AS, unlimited)
        assert server.ask("POST", "/predict", json={"inputs": rows}).status_code == 200
        assert server.end() == 0


@pytest.mark.skipif(shutil.which("unshare") is None or os.geteuid() != 0, reason="needs root and unshare")
def test_without_names_and_networks_it_serves_on_the_loopback_interface(tmp_path):
    processes.put(tmp_path, processes.linear(3.0), "m", 1)
    program = (
        "import os, re, subprocess, sys, time, urllib.request\n"
        "server = subprocess.Popen([sys.executable, '-m', 'app', '--port', '0', '--device', 'cpu', '--model-dir',"
        " sys.argv[1]], stderr=subprocess.PIPE, text=True)\n"
        "for line in server.stderr:\n"
        "    port = re.search(r'http://127.0.0.1:(\\d+)', line) or locals().get('port')\n"
        "    if 'ready: ' in line: break\n"
        "request = urllib.request.Request(f'http://127.0.0.1:{port[1]}/predict', b'{\"inputs\": [[0,0,0,0,0,0]]}')\n"
        "print(urllib.request.urlopen(request, timeout=60).read().decode())\n"
        "server.terminate(); print(server.wait(60))\n"
    )
    command = ["unshare", "--net", "sh", "-c", 'ip link set lo up 2>/dev/null || ifconfig lo up; exec "$@"', "sh"]
    probe = subprocess.run([*command, "true"], check=False, capture_output=True)
    if probe.returncode or shutil.which("ip") is None:
        pytest.skip("no network namespace can be made here")
    ended = subprocess.run(
        [*command, sys.executable, "-c", program, str(tmp_path)],
        cwd=processes.ROOT, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert '"y":[[3.0,3.0]]' in ended.stdout, ended.stderr
    assert ended.stdout.endswith("0\n")


@pytest.mark.parametrize("jump_s", [-86_400 * 365, 86_400 * 365])
def test_a_clock_that_jumps_harms_no_deadline_and_no_connection(tmp_path, jump_s):
    """The wall clock is shifted within the process, from outside of the application."""
    processes.put(tmp_path / "models", processes.linear(3.0), "m", 1)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import signal, time\n"
        "real, shift = time.time, [0]\n"
        "time.time = lambda: real() + shift[0]\n"
        "def jump(*_):\n"
        f"    shift[0] = {jump_s}\n"
        f"    open({str(tmp_path / 'jumped')!r}, 'w').close()\n"
        "signal.signal(signal.SIGUSR1, jump)\n"
    )
    request = {"inputs": [{"name": "x", "shape": [1, 6], "datatype": "FP32", "data": [0] * 6}]}
    with (
        processes.running(tmp_path / "models", PYTHONPATH=str(tmp_path / "site")) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        for jumped in (False, True):
            answer = client.post("/v2/models/m/infer", json={**request, "parameters": {"timeout": 5_000_000}})
            assert answer.status_code == 200
            assert client.get("/health/live").status_code == 200
            if not jumped:
                server.process.send_signal(signal.SIGUSR1)
                server.wait_for((tmp_path / "jumped").exists)
        last_ms = client.get("/v2/models/m/stats").json()["model_stats"][0]["last_inference"]
        assert abs(last_ms / 1000 - time.time() - jump_s) < 60
        assert server.end() == 0
