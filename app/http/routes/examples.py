"""Example responses for OpenAPI."""

import json
from pathlib import Path
from typing import Any

from app.http.schemas import ErrorBody

Responses = dict[int | str, dict[str, Any]]

_TENSOR_IN = {"name": "x", "datatype": "FP32", "shape": [-1, 784]}
_TENSOR_OUT = {"name": "logits", "datatype": "FP32", "shape": [-1, 10]}
_DURATION = {"count": 3, "ns": 412000}

LIVE = {"live": True}
READY = {"ready": True}
MODEL = {
    "name": "digits",
    "version": "1",
    "default": True,
    "state": "READY",
    "reason": None,
    "versions": [{"version": "1", "state": "READY", "reason": None}],
    "provider": "CPUExecutionProvider",
    "savings": {"file_bytes": 903262, "bytes_reduction_percent": 57.86, "ratio_to_dense_twin": 0.997},
    "description": None,
    "preprocessing": "28x28 grey image, 0 = paper and 1 = ink, flattened row by row",
    "inputs": [{**_TENSOR_IN, "description": "rows of 784 features", "columns": None, "sample_rows": None}],
    "outputs": [{**_TENSOR_OUT, "description": "one score per class", "kind": "logits", "labels": ["0", "1", "2"]}],
}
MODELS = {"models": [MODEL]}
STATS = json.loads(Path(__file__).with_name("stats_example.json").read_bytes())
"""A response for the bundled model."""
MODEL_STATS = {"models": STATS["models"]}
OIP_SERVER = {"name": "panther", "version": "0.1.0", "extensions": ["binary_tensor_data", "statistics"]}
OIP_MODEL = {
    "name": "digits",
    "versions": ["1"],
    "platform": "onnx_onnxv1",
    "inputs": [_TENSOR_IN],
    "outputs": [_TENSOR_OUT],
}
OIP_MODEL_READY = {"name": "digits", "ready": True}
OIP_CONFIG = {
    "name": "digits",
    "platform": "onnxruntime_onnx",
    "backend": "onnxruntime",
    "max_batch_size": 256,
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [784]}],
    "output": [{"name": "logits", "data_type": "TYPE_FP32", "dims": [10]}],
    "dynamic_batching": {"preferred_batch_size": [], "max_queue_delay_microseconds": 0},
}
OIP_STATS = {
    "model_stats": [
        {
            "name": "digits",
            "version": "1",
            "last_inference": 1795457861831,
            "inference_count": 5,
            "execution_count": 3,
            "inference_stats": {"success": _DURATION, "fail": {"count": 0, "ns": 0}, "queue": _DURATION},
            "response_stats": {},
            "batch_stats": [{"batch_size": 1, "compute_infer": _DURATION}],
            "memory_usage": [],
        }
    ]
}
OIP_INDEX = [{"name": "digits", "version": "1", "state": "READY", "reason": ""}]
OIP_ANSWER = {
    "model_name": "digits",
    "model_version": "1",
    "id": "42",
    "outputs": [{"name": "logits", "datatype": "FP32", "shape": [1, 3], "data": [-2.1, 0.3, 7.5]}],
}

_NOT_FOUND = {"error": "model 'mnist' is not loaded; loaded: digits"}


def answers(example: Any, *, named: bool = False) -> Responses:
    """OpenAPI responses: success with an example, and 404 and 503 for routes that name a model."""
    found: Responses = {200: {"content": {"application/json": {"example": example}}}}
    if named:
        found[404] = {
            "model": ErrorBody,
            "description": "unknown model or version",
            "content": {"application/json": {"example": _NOT_FOUND}},
        }
        found[503] = {"model": ErrorBody, "description": "the model exists, but is not served now"}
    return found
