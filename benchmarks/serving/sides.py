"""The compared servers: start command, request and response of each."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PEERS = Path(os.environ.get("PEERS_DIR", HERE.parent / ".peers"))
JSON = {"Content-Type": "application/json"}
OCTETS = "application/octet-stream"
TRITON = {
    "triton": {},
    "triton-2-instances": {"TRITON_INSTANCES": "2"},
    "triton-500-us": {"TRITON_QUEUE_DELAY_US": "500"},
    "triton-8-threads": {"TRITON_HTTP_THREADS": "8"},
}
"""Its tunings: with what differs from the first."""


def rows_json(x, text):
    """``{"inputs": …}``; text is "float64" (as tolist() writes them) or "float32" (shortest)."""
    values = x.tolist() if text == "float64" else [[float(str(value)) for value in row] for row in x]
    return JSON, json.dumps({"inputs": values}).encode()


def oip_json(x, text):
    values = x.reshape(-1).tolist() if text == "float64" else [float(str(value)) for value in x.reshape(-1)]
    item = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": values}
    return JSON, json.dumps({"inputs": [item]}).encode()


def oip_binary(x):
    data = x.tobytes()
    item = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [item], "parameters": {"binary_data_output": True}}).encode()
    return {"Content-Type": OCTETS, "Inference-Header-Content-Length": str(len(head))}, head + data


def read_outputs(_headers, body):
    return np.array(json.loads(body)["outputs"]["logits"], np.float64)


def read_list(_headers, body):
    return np.array(json.loads(body), np.float64)


def read_floats(_headers, body):
    return np.frombuffer(body, np.float32).reshape(-1, 10).astype(np.float64)


def read_oip(headers, body):
    length = int(headers.get("Inference-Header-Content-Length", len(body)))
    item = json.loads(body[:length])["outputs"][0]
    values = np.frombuffer(body[length:], np.float32) if "data" not in item else np.array(item["data"], np.float64)
    return values.reshape(item["shape"]).astype(np.float64)


@dataclass
class Side:
    """One server.

    Attributes:
        command: what starts it; ``{port}`` and ``{grpc_port}`` are filled in.
        make: a kind of cell ("json", "binary") to (path, encoder, decoder); what is missing is not measured.
        check: whether its answers are the model's.
        start_limit_s: how long it may take to start.
        meanwhile: called again and again until it answers.
    """

    name: str
    command: list[str]
    make: dict[str, tuple[str, Callable, Callable]]
    environment: dict[str, str] = field(default_factory=dict)
    folder: Path = HERE
    ready_path: str | None = None
    check: bool = True
    start_limit_s: float = 60
    meanwhile: Callable[[], None] = lambda: None
    process: subprocess.Popen | None = None
    port: int = 0
    grpc_port: int = 0
    ready_s: float = 0.0

    def start(self, model, core, log):
        """Start it on one core and wait until it answers; notes how long that took."""
        with socket.create_server(("127.0.0.1", 0)) as probe, socket.create_server(("127.0.0.1", 0)) as other:
            self.port, self.grpc_port = probe.getsockname()[1], other.getsockname()[1]
        values = {"port": str(self.port), "grpc_port": str(self.grpc_port)}
        environment = {
            **os.environ,
            "MODEL": str(model),
            "PORT": values["port"],
            "ORT_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
            **{name: value.format(**values) for name, value in self.environment.items()},
        }
        began = time.perf_counter()
        self.process = subprocess.Popen(
            ["taskset", "-c", str(core), *[part.format(**values) for part in self.command]],
            cwd=self.folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        deadline = began + self.start_limit_s
        while not self._answers():
            if self.process.poll() is not None or time.perf_counter() > deadline:
                raise RuntimeError(f"{self.name} did not start; see the log {log.name}")
            self.meanwhile()
            time.sleep(0.01)
        self.ready_s = time.perf_counter() - began

    def _answers(self):
        try:
            if self.ready_path is not None:
                with urllib.request.urlopen(self.url(self.ready_path), timeout=1) as answer:
                    return answer.status == 200
            self.ask("json", np.zeros((1, 784), np.float32))
        except (urllib.error.URLError, OSError, KeyError, ValueError):
            return False
        return True

    def url(self, path):
        return f"http://127.0.0.1:{self.port}{path}"

    def ask(self, kind, x, *text):
        path, encode, decode = self.make[kind]
        headers, body = encode(x, *text) if kind == "binary" else encode(x, *(text or ("float64",)))
        request = urllib.request.Request(self.url(path), body, headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return decode(answer.headers, answer.read())

    def cpu_s(self):
        """Processor seconds of all its processes that are alive."""
        found = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rsplit(")", 1)[1].split()
            except OSError:  # it has just ended
                continue
            if int(fields[3]) == self.process.pid:  # of its session
                found += int(fields[11]) + int(fields[12])
        return found / os.sysconf("SC_CLK_TCK")

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(5)


def ours(model_dir, workers=1):
    return Side(
        "ours" if workers == 1 else f"ours, {workers} workers",
        [
            sys.executable,
            "-m",
            "app",
            "--port",
            "{port}",
            "--model-dir",
            str(model_dir),
            "--num-threads",
            "1",
            "--workers",
            str(workers),
            "--device",
            "cpu",
            "--log-level",
            "warning",
        ],
        {
            "json": ("/predict", rows_json, read_outputs),
            "binary": ("/v2/models/digits/infer", oip_binary, read_oip),
        },
        folder=ROOT,
        ready_path="/health/ready",
    )


def uvicorn_side(name, target, environment=None, *, check=True, binary=False):
    command = [sys.executable, "-m", "uvicorn", target, "--port", "{port}", "--loop", "uvloop", "--http", "httptools"]
    make = {"json": ("/predict", rows_json, read_outputs)}
    if binary:
        make["binary"] = ("/", lambda x: ({"Content-Type": OCTETS}, x.tobytes()), read_floats)
    flags = ["--no-access-log", "--log-level", "error"]
    return Side(name, [*command, *flags], make, environment or {}, check=check)


class Echo(Side):
    """A gRPC service that answers a constant; it is ready when its port is open."""

    def _answers(self):
        try:
            socket.create_connection(("127.0.0.1", self.grpc_port), timeout=1).close()
        except OSError:
            return False
        return True


def echo(name, *command):
    return Echo(name, [sys.executable, *command, "{grpc_port}"], {}, check=False)


def peer(name):
    """A peer that benchmarks/peers.sh installed, or None."""
    installed = PEERS / ("triton" if name in TRITON else name)
    python = installed / "bin" / "python"
    if not (installed / "installed").exists():
        return None
    if name == "litserve":
        return Side(name, [str(python), "litserve_server.py"], {"json": ("/predict", rows_json, read_outputs)})
    if name == "bentoml":
        bento = str(python.parent / "bentoml")
        command = [bento, "serve", "bentoml_service:Digits", "--port", "{port}", "--host", "127.0.0.1"]
        return Side(name, command, {"json": ("/predict", rows_json, read_list)}, {"BENTOML_DO_NOT_TRACK": "True"})
    if name == "mlserver":
        work = PEERS / "mlserver-run"
        shutil.copytree(HERE / "mlserver", work, dirs_exist_ok=True)
        environment = {"MLSERVER_HTTP_PORT": "{port}", "MLSERVER_GRPC_PORT": "0", "MLSERVER_METRICS_PORT": "0"}
        make = {"json": ("/v2/models/digits/infer", oip_json, read_oip)}
        return Side(name, [str(python.parent / "mlserver"), "start", "."], make, environment, work)
    if name == "rayserve":
        return Side(name, [str(python), "rayserve_server.py"], {"json": ("/predict", rows_json, read_outputs)})
    if name in TRITON:
        command = [str(python), "triton_server.py", "{port}", "{grpc_port}", str(PEERS / f"{name}-run")]
        make = {
            "json": ("/v2/models/digits/infer", oip_json, read_oip),
            "binary": ("/v2/models/digits/infer", oip_binary, read_oip),
        }
        return Side(name, command, make, TRITON[name], ready_path="/v2/health/ready")
    raise KeyError(name)
