"""Real server processes, clients that send requests continuously, and models with a chosen run time."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).parents[2]
WIDTH = 6
ROW = [0.0] * WIDTH
LIMIT_S = 60.0
"""Time limit for a condition; generous, because the machine may be busy."""


def linear(value: float) -> onnx.ModelProto:
    """A batched model with ``value`` in every output, whatever the input: its response identifies the file."""
    nodes = [helper.make_node("MatMul", ["x", "W"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])]
    constants = [
        numpy_helper.from_array(np.zeros((WIDTH, 2), np.float32), "W"),
        numpy_helper.from_array(np.full(2, value, np.float32), "b"),
    ]
    return model(nodes, ("x", TensorProto.FLOAT, ["n", WIDTH]), ("y", TensorProto.FLOAT, ["n", 2]), constants)


def slow() -> onnx.ModelProto:
    """A model that multiplies matrices as often as its input says, one or two milliseconds each; not batched."""
    size = 256
    rng = np.random.default_rng(0)
    matrix = np.linalg.qr(rng.standard_normal((size, size)))[0].astype(np.float32)  # its powers stay finite
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("MatMul", ["state", "W"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [size, size]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [size, size]),
        ],
    )
    nodes = [
        helper.make_node("Squeeze", ["x"], ["times"]),
        helper.make_node("Loop", ["times", "yes", "W"], ["end"], body=body),
        helper.make_node("ReduceMax", ["end"], ["y"], keepdims=0),
    ]
    constants = [numpy_helper.from_array(matrix, "W"), numpy_helper.from_array(np.ones((), np.bool_), "yes")]
    return model(nodes, ("x", TensorProto.INT64, [1]), ("y", TensorProto.FLOAT, []), constants)


def heavy(nbytes: int) -> onnx.ModelProto:
    """A batched model with weights of a given size, and a short run."""
    table = np.random.default_rng(0).standard_normal((nbytes // 4 // WIDTH, WIDTH)).astype(np.float32)
    nodes = [
        helper.make_node("ArgMax", ["x"], ["largest"], axis=1, keepdims=0),
        helper.make_node("Gather", ["table", "largest"], ["row"]),
        helper.make_node("Mul", ["x", "row"], ["y"]),
    ]
    constants = [numpy_helper.from_array(table, "table")]
    return model(nodes, ("x", TensorProto.FLOAT, ["n", WIDTH]), ("y", TensorProto.FLOAT, ["n", WIDTH]), constants)


def wide(count: int) -> onnx.ModelProto:
    """A model with ``count`` numbers of output per row: large responses to small requests."""
    constants = [numpy_helper.from_array(np.ones((1, count), np.float32), "W")]
    node = helper.make_node("MatMul", ["x", "W"], ["y"])
    return model([node], ("x", TensorProto.FLOAT, ["n", 1]), ("y", TensorProto.FLOAT, ["n", count]), constants)


def model(nodes: list, given: tuple, made: tuple, constants: list) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(*given)], [helper.make_tensor_value_info(*made)], constants
    )
    found = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(found)
    return found


def put(root: Path, made: onnx.ModelProto, name: str, version: int | str) -> Path:
    folder = root / name / str(version)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(made.SerializeToString())
    return folder / "model.onnx"


def proc(pid: int) -> Path:
    """A process's folder in /proc."""
    return Path(f"/proc/{pid}")


def child_of(pid: int) -> int:
    """The only child of a process."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


class Server:
    """``python -m app`` in a separate process, or as the child of the program ``before``.

    ``through`` is a program that becomes the server, as ``setpriv`` does.
    """

    def __init__(
        self,
        model_dir: Path,
        folder: Path,
        workers: int,
        arguments: tuple,
        environment: dict,
        before: tuple = (),
        through: tuple = (),
    ) -> None:
        self.workers = workers
        self.log_path = folder / "log"
        self._arguments = [
            *("--port", "0", "--model-dir", str(model_dir), "--num-threads", "1", "--workers", str(workers)),
            *("--device", "cpu", *map(str, arguments)),
        ]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PANTHER_")}
        with self.log_path.open("w") as stream:
            self.process = subprocess.Popen(
                [*before, *through, sys.executable, "-m", "app", *self._arguments],
                cwd=ROOT, stderr=stream, env={**clean, **environment}, start_new_session=True,
            )  # fmt: skip
        self.wait_for(lambda: "listening on" in self.log)
        self.pid = self.process.pid if not before else child_of(self.process.pid)
        self.port = int(re.search(r"listening on http://127.0.0.1:(\d+)", self.log)[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def wait_until_ready(self) -> None:
        self.wait_for(lambda: self.log.count("ready: ") == self.workers)

    @property
    def grpc(self) -> str:
        """Address of the port for gRPC."""
        return re.search(r"for gRPC on (127.0.0.1:\d+)", self.log)[1]

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def wait_for(self, condition, seconds: float = LIMIT_S):
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, self.log
            assert self.process.poll() is None, self.log
            time.sleep(0.02)
        return found

    def ask(self, method: str, path: str, **more) -> httpx.Response:
        with httpx.Client(base_url=self.url, timeout=LIMIT_S, verify=False) as client:
            return client.request(method, path, **more)

    def value(self, name: str = "m") -> float | int:
        """The response of the served model ``linear``; the status if it is not 200."""
        answer = self.ask("POST", f"/models/{name}/predict", json={"inputs": [[0] * WIDTH]})
        return answer.json()["outputs"]["y"][0][0] if answer.status_code == 200 else answer.status_code

    def runs_for(self, seconds: float) -> int:
        """Number of multiplications by the model ``slow`` that take at least an amount of processor time."""
        count = 400
        before = self.cpu_seconds()
        assert self.ask("POST", "/models/slow/predict", json={"inputs": [count]}).status_code == 200
        return int(count * seconds / max(0.01, self.cpu_seconds() - before)) + 1

    def cpu_seconds(self) -> float:
        """Processor time of the server, including its workers."""
        ticks = 0
        for pid in (self.pid, *self.children()):
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def begin_slow_run(self, pool: ThreadPoolExecutor, seconds: float) -> "Future[httpx.Response]":
        """Run the model ``slow`` for an amount of processor time; returns once it has started."""
        count = self.runs_for(seconds)
        before = self.cpu_seconds()
        ended = pool.submit(self.ask, "POST", "/models/slow/predict", json={"inputs": [count]})
        self.wait_for(lambda: self.cpu_seconds() > before + min(0.2, seconds / 4))
        assert not ended.done()
        return ended

    def index(self) -> dict[tuple[str, str], tuple[str, str]]:
        found = self.ask("POST", "/v2/repository/index").json()
        return {(item["name"], item["version"]): (item["state"], item["reason"]) for item in found}

    def metric(self, line: str) -> float | None:
        """The value of the line of /metrics with that prefix."""
        found = re.search(rf"^{re.escape(line)} (\S+)$", self.ask("GET", "/metrics").text, re.MULTILINE)
        return float(found[1]) if found else None

    def children(self) -> list[int]:
        """Worker processes: those that listen, not multiprocessing's helper."""
        return [pid for pid, state, command in self._family() if state != "Z" and "spawn_main" in command]

    def _family(self) -> Iterator[tuple[int, str, str]]:
        """Number, state and command of each child."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                    command = (entry / "cmdline").read_text()
                except OSError:
                    continue
                if int(fields[1]) == self.pid:
                    yield int(entry.name), fields[0], command

    def resident_bytes(self) -> int:
        """Private memory of the server's single process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(re.search(r"RssAnon:\s+(\d+)", status)[1])

    def end(self, seconds: float = LIMIT_S) -> int:
        os.kill(self.pid, signal.SIGTERM)
        return self.process.wait(seconds)


class Load:
    """Clients that send one request after the other, each on a persistent connection.

    Attributes:
        answers: Status and body of each.
        lost: Failures of requests without a response.
        refused: Number of refused connections.
    """

    def __init__(self, port: int, path: str, document: dict, clients: int = 8) -> None:
        self.answers: list[tuple[int, bytes]] = []
        self.lost: list[str] = []
        self.closed = 0
        self.refused = 0
        self._port, self._path, self._body = port, path, json.dumps(document).encode()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(LIMIT_S)
            assert not thread.is_alive()

    def _run(self) -> None:
        connection = None
        while not self._stop.is_set():
            if connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=LIMIT_S)
                try:
                    connection.connect()
                except ConnectionRefusedError:
                    self.refused += 1
                    connection = None
                    time.sleep(0.01)
                    continue
                except ConnectionResetError as error:  # a killed worker had not accepted it yet
                    self.lost.append(repr(error))
                    connection = None
                    continue
            try:
                connection.request("POST", self._path, self._body, {"content-type": "application/json"})
                answer = connection.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.lost.append(repr(error))
                connection.close()
                connection = None
                continue
            self.answers.append((answer.status, content))
            if answer.will_close:
                self.closed += 1
                connection.close()
                connection = None
        if connection is not None:
            connection.close()

    def statuses(self) -> set[int]:
        return {status for status, _ in self.answers}


@contextmanager
def running(
    model_dir: Path,
    *arguments,
    workers: int = 1,
    wait: bool = True,
    before: tuple = (),
    through: tuple = (),
    **environment: str,
) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        server = None
        try:
            server = Server(model_dir, Path(folder), workers, arguments, environment, before, through)
            if wait:
                server.wait_until_ready()
            yield server
            assert "Traceback" not in server.log, server.log
        finally:
            if server is not None:
                if server.process.poll() is None:
                    os.killpg(server.process.pid, signal.SIGKILL)
                server.process.wait(LIMIT_S)
