"""Models and sessions that the export tests share."""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import functools

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from panther.export import export_onnx
from panther.nn import SKLinear


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def sketched():
    """A small sketched layer: sketched(in_features, out_features)."""
    return lambda i, o, L=1, k=8, **options: SKLinear(i, o, L, k, **options)


@pytest.fixture
def mlp(sketched):
    return nn.Sequential(sketched(64, 48), nn.ReLU(), sketched(48, 32))


@pytest.fixture
def export(tmp_path):
    """Export quickly into tmp_path/models: one thread, one batch size, a fixed plan unless the test says otherwise."""
    settings = {"name": "m", "num_threads": 1, "batch_sizes": (1,), "plan": "two_products"}
    return lambda model, x, to=tmp_path / "models", **options: export_onnx(model, x, to, **(settings | options))


@pytest.fixture
def optimized(tmp_path):
    """The graph that onnxruntime runs, by its own account, constants included."""

    @functools.cache
    def load(path):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return onnx.load(tmp_path / "optimized.onnx").graph

    return load


@pytest.fixture
def products(optimized):
    """Shapes of the constants that the products of the running graph multiply by, in its order."""

    def shapes(path):
        graph = optimized(path)
        constants = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        found = []
        for node in graph.node:
            if "MatMul" in node.op_type or "Gemm" in node.op_type:
                shape = constants.get(node.input[1])
                if shape is not None:
                    transposed = any(a.name == "transB" and a.i for a in node.attribute)
                    found.append(shape[::-1] if transposed else shape)
        return found

    return shapes
