"""The Open Inference Protocol v2: everything but inference itself, and inference as OpenAPI sees it."""

import json
from enum import Enum
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

import app
from app.errors import InvalidRequestError
from app.routes import examples
from app.routes.examples import Responses, answers
from app.routes.predict import ERRORS, delegate
from app.schemas import InferAnswer, InferBody
from app.serving import Serving
from app.state import AppState, app_state
from app.statistics import DURATIONS, Statistics
from app.versions import Entry, State

router = APIRouter(prefix="/v2")
Shared = Annotated[AppState, Depends(app_state)]
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
_META: list[str | Enum] = ["v2"]
_CONTROL: list[str | Enum] = ["v2 repository"]
_NOT_SO: Responses = {400: {"description": "it is not", "content": {"application/json": {}}}}


@router.get(
    "", tags=_META, responses=answers(examples.OIP_SERVER), summary="Name, version and extensions of the server"
)
async def server_metadata() -> dict[str, Any]:
    """What the server is and which extensions of the protocol it speaks."""
    return {"name": "panther", "version": app.__version__, "extensions": EXTENSIONS}


@router.get("/health/live", tags=_META, responses=answers(examples.LIVE) | _NOT_SO)
async def live(state: Shared, response: Response) -> dict[str, bool]:
    """Whether the process answers and runs of its models succeed and end; 400 where not (``/health/live`` says why)."""
    is_live = state.stuck_because() is None
    response.status_code = 200 if is_live else 400
    return {"live": is_live}


@router.get("/health/ready", tags=_META, responses=answers(examples.READY) | _NOT_SO)
async def ready(state: Shared, response: Response) -> dict[str, bool]:
    """Whether every model is served; 400 where not (``/health/ready`` says why)."""
    is_ready = state.not_ready_because() is None
    response.status_code = 200 if is_ready else 400
    return {"ready": is_ready}


@router.get("/models/stats", tags=_META, responses=answers(examples.OIP_STATS))
async def all_statistics(state: Shared) -> dict[str, Any]:
    """Statistics of every loaded version."""
    return {"model_stats": [item for entry in state.repository.entries.values() for item in await _stats(state, entry)]}


@router.get("/models/{name}", tags=_META, responses=answers(examples.OIP_MODEL, named=True))
@router.get("/models/{name}/versions/{version}", tags=_META, responses=answers(examples.OIP_MODEL, named=True))
async def model_metadata(state: Shared, name: str, version: str | None = None) -> dict[str, Any]:
    """Inputs and outputs of a model."""
    serving = state.repository.get(name, version)
    model = serving.model
    return {
        "name": name,
        "versions": [item.version for item in state.repository.entry(name).ready()],
        "platform": PLATFORM,
        "inputs": [{"name": s.name, "datatype": s.datatype, "shape": s.wire_shape} for s in model.inputs],
        "outputs": [{"name": s.name, "datatype": s.datatype, "shape": s.wire_shape} for s in model.outputs],
        "parameters": {"execution_provider": model.provider},
    }


_MODEL_READY = answers(examples.OIP_MODEL_READY, named=True) | _NOT_SO


@router.get("/models/{name}/ready", tags=_META, responses=_MODEL_READY)
@router.get("/models/{name}/versions/{version}/ready", tags=_META, responses=_MODEL_READY)
async def model_ready(state: Shared, response: Response, name: str, version: str | None = None) -> dict[str, Any]:
    """Whether a model can answer; 400 where it is known and can't."""
    entry = state.repository.entry(name)
    item = entry.versions.get(version if version is not None else entry.served or "")
    is_ready = item is not None and item.state is State.READY
    response.status_code = 200 if is_ready else 400
    return {"name": name, "ready": is_ready}


@router.get("/models/{name}/config", tags=_META, responses=answers(examples.OIP_CONFIG, named=True))
@router.get("/models/{name}/versions/{version}/config", tags=_META, responses=answers(examples.OIP_CONFIG, named=True))
async def model_config(state: Shared, name: str, version: str | None = None) -> dict[str, Any]:
    """The model's configuration in the form that Triton gives it."""
    return triton_config(state.repository.get(name, version), state.settings.version_policy)


def triton_config(serving: Serving, policy: str) -> dict[str, Any]:
    """A loaded model as Triton's ``ModelConfig``; with batching, ``dims`` leave out the batch dimension."""
    model = serving.model
    skip = 1 if model.batched else 0
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
        "max_batch_size": serving.batcher.max_rows if model.batched else 0,
        "input": [
            {"name": s.name, "data_type": types.get(s.datatype, f"TYPE_{s.datatype}"), "dims": s.wire_shape[skip:]}
            for s in model.inputs
        ],
        "output": [
            {"name": s.name, "data_type": types.get(s.datatype, f"TYPE_{s.datatype}"), "dims": s.wire_shape[skip:]}
            for s in model.outputs
        ],
        "instance_group": [
            {"name": model.name, "kind": "KIND_GPU" if "CUDA" in model.provider else "KIND_CPU", "count": 1}
        ],
        "parameters": {"execution_provider": {"string_value": model.provider}},
    }
    if serving.batcher.together:
        delay_us = serving.batcher.delay_ns // 1000
        config["dynamic_batching"] = {"preferred_batch_size": [], "max_queue_delay_microseconds": delay_us}
    return config


@router.get("/models/{name}/stats", tags=_META, responses=answers(examples.OIP_STATS, named=True))
@router.get("/models/{name}/versions/{version}/stats", tags=_META, responses=answers(examples.OIP_STATS, named=True))
async def model_statistics(state: Shared, name: str, version: str | None = None) -> dict[str, Any]:
    """Statistics of a model's loaded versions, or of one of them."""
    if version is not None:
        state.repository.get(name, version)
    return {"model_stats": await _stats(state, state.repository.entry(name), version)}


async def _stats(state: AppState, entry: Entry, version: str | None = None) -> list[dict[str, Any]]:
    wanted = [item for item in entry.ready() if version is None or item.version == version]
    figures = await state.statistics()
    return [
        triton_statistics(item.serving, figures[entry.name, item.version])
        for item in wanted
        if item.serving is not None
    ]


def _duration(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}


def triton_statistics(serving: Serving, statistics: Statistics) -> dict[str, Any]:
    """Live figures in the form that Triton gives them."""
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


async def _object(request: Request) -> dict[str, Any]:
    """The body as a JSON object; an empty one counts as empty."""
    body = await request.body()
    if not body.strip():
        return {}
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidRequestError("the body is not valid JSON; expected an object") from None
    if not isinstance(value, dict):
        raise InvalidRequestError("the body is not an object")
    return value


def load_policy(document: dict[str, Any]) -> str | None:
    """The version policy that a request to load asks for; None where it asks for none.

    Raises:
        InvalidRequestError: it asks for something else.
    """
    parameters = document.get("parameters") or {}
    if not isinstance(parameters, dict) or set(parameters) - {"config"}:
        raise InvalidRequestError("load takes no parameter but 'config': models come from the folder alone")
    if not parameters:
        return None
    rule = """must be JSON such as {"version_policy": {"specific": {"versions": [1]}}}, with nothing else"""
    try:
        config = json.loads(parameters["config"])
        (policy,) = config.pop("version_policy").items()
        if config:
            raise ValueError(next(iter(config)))
        return _policies(*policy)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        raise InvalidRequestError(f"parameter 'config' {rule}") from None


def _policies(kind: str, value: dict[str, Any]) -> str:
    if kind == "all" or (kind == "latest" and value.get("num_versions", 1) == 1):
        return kind
    versions = value["versions"] if kind == "specific" else None
    if not isinstance(versions, list) or not versions:
        raise ValueError(kind)
    for version in versions:
        # Protocol buffers write whole numbers as texts, too.
        if isinstance(version, bool) or (isinstance(version, float) and not version.is_integer()):
            raise ValueError(version)
    return ",".join(str(int(version)) for version in versions)


_INDEX_BODY = {
    "requestBody": {"content": {"application/json": {"schema": {"type": "object"}, "example": {"ready": True}}}}
}
_DONE: dict[int | str, dict[str, Any]] = {200: {"description": "done; the body is empty"}, **ERRORS}


@router.post("/repository/index", tags=_CONTROL, responses=answers(examples.OIP_INDEX), openapi_extra=_INDEX_BODY)
async def repository_index(state: Shared, request: Request) -> JSONResponse:
    """Every model of the repository with its versions, states and reasons; ``{"ready": true}`` for the ready ones."""
    only_ready = (await _object(request)).get("ready", False)
    if not isinstance(only_ready, bool):
        raise InvalidRequestError("'ready' must be true or false")
    return JSONResponse(
        [
            {"name": entry.name, "version": item.version, "state": item.state, "reason": item.reason}
            for entry in state.repository.index()
            for item in entry.versions.values()
            if item.state is State.READY or not only_ready
        ]
    )


@router.post("/repository/models/{name}/load", tags=_CONTROL, responses=_DONE, response_class=Response)
async def load(state: Shared, request: Request, name: str) -> Response:
    """Load a model anew from the folder, beside the version that is served, and swap it in.

    The parameter ``config`` may hold ``version_policy`` in Triton's form, to load other versions than the settings say:
    so one goes back to an older one.
    """
    await state.control("load", name, load_policy(await _object(request)))
    return Response(status_code=200)


@router.post("/repository/models/{name}/unload", tags=_CONTROL, responses=_DONE, response_class=Response)
async def unload(state: Shared, request: Request, name: str) -> Response:
    """Stop serving a model; what it has in hand is finished."""
    await _object(request)
    await state.control("unload", name)
    return Response(status_code=200)


_INFER_BODY: dict[str, Any] = {
    "parameters": [
        {
            "name": "Inference-Header-Content-Length",
            "in": "header",
            "required": False,
            "schema": {"type": "integer", "minimum": 0},
            "description": "bytes of the JSON part, where binary tensors follow it; 0 for raw mode",
        }
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": InferBody.model_json_schema(),
                "example": {
                    "id": "42",
                    "inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [0.0, 0.5, 1.0]}],
                    "outputs": [{"name": "logits", "parameters": {"binary_data": False}}],
                },
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    },
}
_INFER_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": InferAnswer,
        "content": {
            "application/json": {"example": examples.OIP_ANSWER},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    },
    **ERRORS,
}
for _path in ("/models/{name}/infer", "/models/{name}/versions/{version}/infer"):
    router.add_api_route(
        _path,
        delegate,
        methods=["POST"],
        name="infer" if "versions" not in _path else "infer_version",
        summary="Ask a model" if "versions" not in _path else "Ask a version of a model",
        tags=["v2 inference"],
        response_model=None,
        responses=_INFER_ANSWERS,
        openapi_extra=_INFER_BODY,
    )
