"""Metadata, configuration and statistics of the Open Inference Protocol, as JSON objects; gRPC returns the same."""

import asyncio
from collections import Counter
from typing import Any

import app
from app.repository.served_model import Serving
from app.repository.versions import Entry, State
from app.runtime.model import OnnxModel
from app.service.state import AppState
from app.telemetry.statistics import DURATIONS, Statistics

EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
]
PLATFORM = "onnx_onnxv1"


def server_metadata() -> dict[str, Any]:
    """Server metadata: name, version and protocol extensions."""
    return {"name": "panther", "version": app.__version__, "extensions": EXTENSIONS}


def model_metadata(state: AppState, name: str, version: str | None) -> dict[str, Any]:
    """Inputs and outputs of a model.

    Raises:
        ModelNotFoundError, ModelUnavailableError: See ``Repository.get``.
    """
    model = state.repository.get(name, version).model
    return {
        "name": name,
        "versions": [item.version for item in state.repository.entry(name).ready()],
        "platform": PLATFORM,
        "inputs": [{"name": s.name, "datatype": s.datatype, "shape": s.wire_shape} for s in model.inputs],
        "outputs": [{"name": s.name, "datatype": s.datatype, "shape": s.wire_shape} for s in model.outputs],
        "parameters": {"execution_provider": model.provider},
    }


def is_model_ready(state: AppState, name: str, version: str | None) -> bool:
    """Whether a model is ready.

    Raises:
        ModelNotFoundError: There is no such model.
    """
    entry = state.repository.entry(name)
    item = entry.versions.get(version if version is not None else entry.served or "")
    return item is not None and item.state is State.READY


def model_config(state: AppState, name: str, version: str | None) -> dict[str, Any]:
    """The model's configuration in Triton's format.

    Raises:
        ModelNotFoundError, ModelUnavailableError: See ``Repository.get``.
    """
    return _config(state.repository.get(name, version), state.settings.version_policy)


async def model_statistics(state: AppState, name: str, version: str | None) -> dict[str, Any]:
    """Statistics of a model's loaded versions, or of one version.

    Raises:
        ModelNotFoundError, ModelUnavailableError: See ``Repository.get``.
    """
    if version is not None:
        state.repository.get(name, version)
    return {"model_stats": await _stats(state, state.repository.entry(name), version)}


async def all_statistics(state: AppState) -> dict[str, Any]:
    """Statistics of every loaded version."""
    return {"model_stats": [item for entry in state.repository.entries.values() for item in await _stats(state, entry)]}


async def repository_index(state: AppState, *, only_ready: bool) -> list[dict[str, str]]:
    """Every version of the repository with its state and the reason for it."""
    entries = await asyncio.to_thread(state.repository.index)  # reads the folder, which may have many versions
    return [
        {"name": entry.name, "version": item.version, "state": item.state, "reason": item.reason}
        for entry in entries
        for item in entry.versions.values()
        if item.state is State.READY or not only_ready
    ]


def _config(serving: Serving, policy: str) -> dict[str, Any]:
    """A loaded model as Triton's ``ModelConfig``; with batching, ``dims`` omit the batch dimension."""
    model = serving.model
    batched = model.batched and model.batching.rows_first  # Triton batches along the first axis
    skip = 1 if batched else 0
    types = {"BYTES": "TYPE_STRING"}
    policy = serving.settings.version_policy or policy
    named: dict[str, dict[str, Any]] = {"latest": {"latest": {"num_versions": 1}}, "all": {"all": {}}}
    versions: dict[str, Any] = named.get(
        policy, {"specific": {"versions": [int(v) for v in policy.split(",") if v.strip().isdecimal()]}}
    )
    config: dict[str, Any] = {
        "name": model.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "default_model_filename": model.path.name,
        "version_policy": versions,
        "max_batch_size": serving.batcher.options.max_rows if batched else 0,
        "input": [
            {"name": s.name, "data_type": types.get(s.datatype, f"TYPE_{s.datatype}"), "dims": s.wire_shape[skip:]}
            for s in model.inputs
        ],
        "output": [
            {"name": s.name, "data_type": types.get(s.datatype, f"TYPE_{s.datatype}"), "dims": s.wire_shape[skip:]}
            for s in model.outputs
        ],
        "instance_group": _instance_groups(model),
        "parameters": {"execution_provider": {"string_value": model.provider}},
    }
    if batched and serving.batcher.together:
        delay_us = serving.batcher.options.delay_ns // 1000
        config["dynamic_batching"] = {"preferred_batch_size": [], "max_queue_delay_microseconds": delay_us}
    return config


def _instance_groups(model: OnnxModel) -> list[dict[str, Any]]:
    """A group for each number of instances that devices have."""
    counts = Counter(instance.device for instance in model.instances)
    groups: list[dict[str, Any]] = []
    for count in dict.fromkeys(counts.values()):
        devices = [device for device, found in counts.items() if found == count and device != "cpu"]
        gpus = [int(device.removeprefix("cuda:")) for device in devices]
        if gpus:
            groups.append({"kind": "KIND_GPU", "count": count, "gpus": gpus})
    if "cpu" in counts:
        groups.append({"kind": "KIND_CPU", "count": counts["cpu"]})
    return [
        {"name": model.name if not index else f"{model.name}_{index}", **group} for index, group in enumerate(groups)
    ]


async def _stats(state: AppState, entry: Entry, version: str | None = None) -> list[dict[str, Any]]:
    wanted = [item for item in entry.ready() if version is None or item.version == version]
    counters = await state.statistics()
    return [
        _version_statistics(item.serving, counters[entry.name, item.version])
        for item in wanted
        if item.serving is not None
    ]


def _duration(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}


def _version_statistics(serving: Serving, statistics: Statistics) -> dict[str, Any]:
    """Counters of a version in Triton's form."""
    model = serving.model
    inference = {name: _duration(getattr(statistics, name).count, getattr(statistics, name).ns) for name in DURATIONS}
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": statistics.last_inference_ms,
        "inference_count": statistics.rows,
        "execution_count": statistics.executions,
        "inference_stats": {**inference, "cache_hit": _duration(0, 0), "cache_miss": _duration(0, 0)},
        "response_stats": {},
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": _duration(runs, input_ns),
                "compute_infer": _duration(runs, infer_ns),
                "compute_output": _duration(runs, output_ns),
            }
            for rows, (runs, input_ns, infer_ns, output_ns) in sorted(statistics.batches.items())
        ],
        "memory_usage": []
        if serving.resident_bytes is None
        else [{"type": "CPU", "id": 0, "byte_size": serving.resident_bytes}],
    }
