"""What the tests on a real GPU share: the shipped model, what it answers on the CPU, and a server in a process."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import onnxruntime as ort

ROOT = Path(__file__).parents[2]
DIGITS = sorted(ROOT.glob("models/digits/*/model.onnx"))[-1]


def on_cpu(path, feeds):
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feeds)


def close(mine, expected, limit=1e-5):
    assert np.abs(mine - expected).max() <= limit * np.abs(expected).max()


class Server:
    """``python -m app`` in a process."""

    def __init__(self, *arguments, models=ROOT / "models", **environment):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "app",
            "--port",
            str(self.port),
            "--model-dir",
            str(models),
            *arguments,
        ]
        self.process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, stderr=subprocess.PIPE)

    def get(self, path, body=None):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", body, {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def settled(self):
        """Readiness once the models are loaded or given up."""
        for _ in range(600):
            try:
                status, answer = self.get("/health/ready")
            except (urllib.error.URLError, ConnectionError):
                assert self.process.poll() is None, self.process.stderr.read().decode()
            else:
                if answer.get("error") != "models are loading":
                    return status, answer
            time.sleep(0.1)
        raise TimeoutError

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=60)
