"""The server calls nobody: no connection of its own, no name looked up, seen by the kernel's own calls.

onnxruntime's telemetry is native code with threads of its own, which no hook in Python sees, and it stays silent where
the variable CI is set. So the system calls of all processes are traced, in an environment without it. The same runtime
with its telemetry left on is traced beside: only once that one was caught calling out, the server's silence means much.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from helpers import processes

ROOT = Path(__file__).parents[3]
STRACE = shutil.which("strace")
CALLS = "connect,sendto,sendmsg,sendmmsg"
# An address beyond this machine's own files, or a question to the daemon that looks up names.
CALLING_OUT = re.compile(r"\b(?:connect|sendto|sendmsg|sendmmsg)\(.*(?:AF_INET6?|nscd)")
CAUGHT_WITHIN_S = 90
LONGER_S = 4

TALKATIVE = """
import sys, time
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
session.run(None, {session.get_inputs()[0].name: np.zeros((1, 6), np.float32)})
time.sleep(600)
"""


def traced(file, environment, *arguments):
    home = file.parent / f"home-{file.name}"
    home.mkdir()
    return subprocess.Popen(
        [STRACE, "-f", "-qq", "-e", f"trace={CALLS}", "-o", file, sys.executable, *map(str, arguments)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"], "HOME": str(home), **environment},
        start_new_session=True,
    )


def called_out(file):
    return [line for line in file.read_text().splitlines() if CALLING_OUT.search(line)]


def stop(process):
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)
    process.stderr.close()


@pytest.fixture(scope="module")
def can_trace(tmp_path_factory):
    if STRACE is None:
        pytest.skip("no strace; on Debian: apt-get install strace")
    file = tmp_path_factory.mktemp("trace") / "trace"
    program = "import socket; socket.socket(type=socket.SOCK_DGRAM).connect(('127.0.0.1', 9))"
    tried = subprocess.run(
        [STRACE, "-f", "-qq", "-e", f"trace={CALLS}", "-o", file, sys.executable, "-W", "ignore", "-c", program],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if tried.returncode:
        pytest.skip(f"processes can't be traced here: {tried.stderr.strip()[:200]}")
    assert len(called_out(file)) == 1


# Takes about 20 seconds: the telemetry that is to be caught sends its first message after nine.
def test_the_server_makes_no_connection_of_its_own(can_trace, tmp_path):
    models = tmp_path / "models"
    path = processes.put(models, processes.linear(7.0), "m", 1)
    talks, serves = tmp_path / "talks", tmp_path / "serves"
    talkative = traced(talks, {}, "-c", TALKATIVE, path)
    server = traced(
        # An operator who says nothing, or the contrary, is protected too.
        serves, {"ORT_DISABLE_TELEMETRY": "0"},
        "-m", "app", "--port", 0, "--model-dir", models, "--workers", 2, "--device", "cpu", "--num-threads", 1,
        "--model-control", "explicit",
    )  # fmt: skip
    try:
        lines = []
        while len([line for line in lines if "ready: " in line]) < 2:
            lines.append(server.stderr.readline())
            assert lines[-1], "".join(lines)
        port = re.search(r"listening on http://127.0.0.1:(\d+)", "".join(lines))[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            for _ in range(3):
                assert client.post("/predict", json={"inputs": [[0] * 6]}).status_code == 200
            assert client.post("/predict", json={"inputs": 3}).status_code == 400
            assert client.post("/v2/repository/models/m/load").status_code == 200
            for page in ("/", "/docs", "/stats", "/metrics", "/v2/models/stats"):
                assert client.get(page).status_code == 200
        deadline = time.monotonic() + CAUGHT_WITHIN_S
        while not called_out(talks):
            assert time.monotonic() < deadline, (
                "onnxruntime was not caught calling out although its telemetry was on, so this test can't tell"
            )
            assert talkative.poll() is None, talkative.stderr.read()
            time.sleep(0.2)
        time.sleep(LONGER_S)
        assert server.poll() is None
    finally:
        stop(server)
        stop(talkative)
    assert "sendto(" in serves.read_text()  # the workers talk to their parent: it was traced
    assert called_out(serves) == []
