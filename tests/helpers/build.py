"""Tiny models with a known answer, model folders, and a server in a thread."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import onnx
import uvicorn
from onnx import TensorProto, helper, numpy_helper

from app.application import create_app
from app.config.settings import Settings
from app.process.sockets import bind
from app.process.worker import make_config
from helpers.onnx_models import onnx_model

__all__ = ["ROOT", "SCHEMA", "Tiny", "onnx_model", "put", "running", "sketched_card", "slow_graph"]

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs" / "model-card.schema.json").read_text())
WIDTH, HIDDEN, LABELS = 6, 5, 3


def sketched_card(layers: list[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    """A card of one sketched layer 6 -> 5 (L=1, k=2) and a dense head 5 -> 3, counted by hand.

    Sketched layer: dense 6*5+5 = 35, learnable 1*2*(6+5)+5 = 27, fixed 22. Head: 5*3+3 = 18.
    """
    card = {
        "schema_version": "1.0",
        "name": "tiny",
        "description": "a model for tests",
        "created_at": "2026-01-02T03:04:05Z",
        "inputs": [{"name": "x", "description": "six numbers"}],
        "outputs": [{"name": "logits", "kind": "logits", "labels": ["ant", "bee", "cat"], "description": "scores"}],
        "layers": layers
        if layers is not None
        else [
            {
                "name": "fc1",
                "in_features": 6,
                "out_features": 5,
                "num_terms": 1,
                "low_rank": 2,
                "bias": True,
                "sketch": "rademacher",
                "plan": "two_products",
                "parameters": {"dense": 35, "learnable": 27, "fixed": 22},
                "multiply_adds_per_row": {"dense": 30, "planned": 44},
            }
        ],
        "totals": {
            "sketched_layers": {"dense": 35, "learnable": 27, "fixed": 22},
            "model": {"dense": 53, "learnable": 45, "fixed": 22},
        },
        "dense_twin": {"weight_bytes": 212},
        "check": {
            "reference": "torch 2.13.0",
            "runtime": "onnxruntime 1.32.0",
            "rows": 64,
            "max_absolute_error": 1e-6,
            "max_relative_error": 1e-6,
            "mean_relative_error": 1e-7,
            "tolerance": 1e-4,
        },
        "training": {"dataset": "made up", "train_rows": 100, "metrics": {"test_accuracy": 0.98}},
        "versions": {"torch": "2.13.0"},
    }
    card.update(changes)
    return card


class Tiny:
    """The network of the tests, and its computation in numpy."""

    def __init__(self, seed: int = 0, scale: float = 1.0) -> None:
        rng = np.random.default_rng(seed)
        self.A = rng.standard_normal((WIDTH, 4)).astype(np.float32)
        self.B = rng.standard_normal((4, HIDDEN)).astype(np.float32)
        self.b = rng.standard_normal(HIDDEN).astype(np.float32)
        self.W = (scale * rng.standard_normal((HIDDEN, LABELS))).astype(np.float32)
        self.c = rng.standard_normal(LABELS).astype(np.float32)

    def logits(self, x: np.ndarray) -> np.ndarray:
        x = np.asarray(x, np.float64)
        hidden = np.maximum(x @ self.A.astype(np.float64) @ self.B.astype(np.float64) + self.b, 0)
        return hidden @ self.W.astype(np.float64) + self.c

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        powers = np.exp(self.logits(x))
        return powers / powers.sum(axis=1, keepdims=True)

    def graph(self, batch: str | int = "batch") -> onnx.ModelProto:
        constants = [numpy_helper.from_array(getattr(self, name), name) for name in "ABbWc"]
        nodes = [
            helper.make_node("MatMul", ["x", "A"], ["p"]),
            helper.make_node("MatMul", ["p", "B"], ["q"]),
            helper.make_node("Add", ["q", "b"], ["s"]),
            helper.make_node("Relu", ["s"], ["h"]),
            helper.make_node("MatMul", ["h", "W"], ["t"]),
            helper.make_node("Add", ["t", "c"], ["logits"]),
        ]
        return onnx_model(
            nodes,
            [("x", TensorProto.FLOAT, [batch, WIDTH])],
            [("logits", TensorProto.FLOAT, [batch, LABELS])],
            constants,
        )


def put(root: Path, model: onnx.ModelProto, name: str, version: str = "1", card: Any = None) -> Path:
    """Write a model into a repository; a card given as a dict is validated against the schema first."""
    if isinstance(card, dict):
        jsonschema.validate(card, SCHEMA)
        card = json.dumps(card)
    if card is not None:
        helper.set_model_props(model, {"panther.card": card})
    folder = root / name / version
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def slow_graph() -> onnx.ModelProto:
    """A loop of matrix products, slow enough that requests queue behind it."""
    n = helper.make_tensor("n", TensorProto.INT64, [], [60])
    keep = helper.make_tensor("keep", TensorProto.BOOL, [], [True])
    inner = helper.make_graph(
        [
            helper.make_node("Identity", ["c"], ["c_out"]),
            helper.make_node("MatMul", ["v", "v"], ["w"]),
            helper.make_node("Tanh", ["w"], ["v_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, ["batch", 256, 256]),
        ],
        [
            helper.make_tensor_value_info("c_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v_out", TensorProto.FLOAT, ["batch", 256, 256]),
        ],
    )
    shape = helper.make_tensor("shape", TensorProto.INT64, [3], [-1, 1, 1])
    tile = helper.make_tensor("tile", TensorProto.INT64, [3], [1, 256, 256])
    row = helper.make_tensor("row", TensorProto.INT64, [2], [1, 2])
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["r"]),
        helper.make_node("Tile", ["r", "tile"], ["t"]),
        helper.make_node("Loop", ["n", "keep", "t"], ["z"], body=inner),
        helper.make_node("ReduceMean", ["z", "row"], ["y"], keepdims=0),
    ]
    return onnx_model(
        nodes, [("x", TensorProto.FLOAT, ["batch"])], [("y", TensorProto.FLOAT, ["batch"])], [n, keep, shape, tile, row]
    )


@contextmanager
def running(model_dir: Path, **settings: Any) -> Iterator[httpx.Client]:
    """A real server in a thread, and a client for it; models load in the background, so wait for the end of that."""
    sock = bind("127.0.0.1", 0)
    chosen = Settings(model_dir=model_dir, **settings)
    server = uvicorn.Server(make_config(create_app(chosen), chosen))
    thread = threading.Thread(target=server.run, args=([sock],))
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{sock.getsockname()[1]}", timeout=60) as client:
            while client.get("/health/ready").json().get("error") == "models are loading":
                time.sleep(0.005)  # leave the processor to the load
            yield client
    finally:
        server.should_exit = True
        thread.join()
