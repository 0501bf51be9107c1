"""A server in a separate process, which hostile models must not crash."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from helpers.onnx_models import onnx_model

ROOT = Path(__file__).parents[2]

WIDTH = 4


def model(*parts: list) -> onnx.ModelProto:
    """Nodes, inputs, outputs and constants, whether they form a model or not."""
    return onnx_model(*parts, valid=False)


def matrix(rows: int = WIDTH, columns: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def product(weights: np.ndarray, card: str | None = None) -> onnx.ModelProto:
    """A model that multiplies by a matrix, with a known result."""
    made = model(
        [helper.make_node("MatMul", ["x", "W"], ["y"])],
        [("x", TensorProto.FLOAT, ["n", weights.shape[0]])],
        [("y", TensorProto.FLOAT, ["n", weights.shape[1]])],
        [numpy_helper.from_array(weights, "W")],
    )
    if card is not None:
        helper.set_model_props(made, {"panther.card": card})
    return made


class Server:
    """``python -m app`` with one good model, ``good``, and explicit control."""

    def __init__(self, folder: Path, *arguments: str, ready: str = "ready: serving good") -> None:
        self.models = folder / "models"
        self.weights = matrix()
        self.put("good", product(self.weights).SerializeToString())
        self._log = folder / "log"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PANTHER_")}
        with self._log.open("w") as stream:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "app", "--port", "0", "--device", "cpu", "--num-threads", "2"),
                    *("--model-dir", str(self.models), "--model-control", "explicit", *arguments),
                ],
                cwd=ROOT, stderr=stream, env=clean, start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + 60
        while ready not in self.log:
            assert time.monotonic() < end, self.log
            assert self.process.poll() is None, self.log
            time.sleep(0.05)
        url = re.search(r"listening on (http://127.0.0.1:\d+)", self.log)[1]
        self.client = httpx.Client(base_url=url, timeout=60)
        self.memory_before = self.memory()

    @property
    def log(self) -> str:
        return self._log.read_text()

    def put(self, name: str, content: bytes) -> Path:
        path = self.models / name / "1" / "model.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def load(self, name: str) -> httpx.Response:
        return self.client.post(f"/v2/repository/models/{name}/load")

    def ask(self, name: str, rows: np.ndarray) -> httpx.Response:
        return self.client.post(f"/models/{name}/predict", json={"inputs": rows.tolist()})

    def memory(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(re.search(r"RssAnon:\s+(\d+)", status)[1])

    def assert_unharmed(self) -> None:
        """Check that the good model responds correctly, in the original process."""
        rows = np.arange(8, dtype=np.float32).reshape(2, 4) / 8
        answer = self.ask("good", rows)
        assert answer.status_code == 200, answer.text
        np.testing.assert_allclose(answer.json()["outputs"]["y"], rows @ self.weights, rtol=1e-4, atol=1e-5)
        assert self.process.poll() is None, self.log
        assert "Traceback" not in self.log, self.log

    def assert_refused(self, name: str, match: str) -> str:
        """Check that loading fails with a matching message, without harm to others; return the message."""
        answer = self.load(name)
        assert answer.status_code == 500, (answer.status_code, answer.text)
        message = answer.json()["error"]
        assert re.search(match, message), message
        assert str(self.models) not in message
        assert self.ask(name, np.zeros((1, WIDTH))).status_code == 503
        self.assert_unharmed()
        return message

    def assert_tame(self, name: str) -> bool:
        """Check that every response is JSON and no other model is harmed. Return whether the model was loaded."""
        answer = self.load(name)
        assert answer.status_code in (200, 500), answer.text
        if answer.status_code == 500:
            assert "is not loaded: " in answer.text or "model " in answer.json()["error"]
        for path in (f"/models/{name}", f"/models/{name}/stats", f"/v2/models/{name}"):
            json.loads(self.client.get(path).content)
        self.assert_unharmed()
        return answer.status_code == 200

    def end(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(60)
