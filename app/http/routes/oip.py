"""The Open Inference Protocol v2: metadata, health and control; inference only for OpenAPI."""

import json
from enum import Enum
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from app.errors import InvalidRequestError
from app.http.routes import examples
from app.http.routes.dependencies import SharedState
from app.http.routes.examples import Responses, answers
from app.http.routes.predict import ERRORS, delegate
from app.http.schemas import InferAnswer, InferBody
from app.reports import oip
from app.service.load_policy import load_request

router = APIRouter(prefix="/v2")
_META: list[str | Enum] = ["v2"]
_CONTROL: list[str | Enum] = ["v2 repository"]
_NOT_SO: Responses = {400: {"description": "not live or not ready", "content": {"application/json": {}}}}


@router.get(
    "", tags=_META, responses=answers(examples.OIP_SERVER), summary="Name, version and extensions of the server"
)
async def server_metadata() -> dict[str, Any]:
    """Server metadata: name, version and protocol extensions."""
    return oip.server_metadata()


@router.get("/health/live", tags=_META, responses=answers(examples.LIVE) | _NOT_SO)
async def live(state: SharedState, response: Response) -> dict[str, bool]:
    """Whether the process responds and model runs succeed and end; 400 if not (``/health/live`` gives the reason)."""
    is_live = state.stuck_because() is None
    response.status_code = 200 if is_live else 400
    return {"live": is_live}


@router.get("/health/ready", tags=_META, responses=answers(examples.READY) | _NOT_SO)
async def ready(state: SharedState, response: Response) -> dict[str, bool]:
    """Whether the required models are served; 400 if not (``/health/ready`` gives the reason)."""
    is_ready = state.not_ready_because() is None
    response.status_code = 200 if is_ready else 400
    return {"ready": is_ready}


@router.get("/models/stats", tags=_META, responses=answers(examples.OIP_STATS))
async def all_statistics(state: SharedState) -> dict[str, Any]:
    """Statistics of every loaded version."""
    return await oip.all_statistics(state)


@router.get("/models/{name}", tags=_META, responses=answers(examples.OIP_MODEL, named=True))
@router.get("/models/{name}/versions/{version}", tags=_META, responses=answers(examples.OIP_MODEL, named=True))
async def model_metadata(state: SharedState, name: str, version: str | None = None) -> dict[str, Any]:
    """Inputs and outputs of a model."""
    return oip.model_metadata(state, name, version)


_MODEL_READY = answers(examples.OIP_MODEL_READY, named=True) | _NOT_SO


@router.get("/models/{name}/ready", tags=_META, responses=_MODEL_READY)
@router.get("/models/{name}/versions/{version}/ready", tags=_META, responses=_MODEL_READY)
async def model_ready(state: SharedState, response: Response, name: str, version: str | None = None) -> dict[str, Any]:
    """Whether a model is ready; 400 if it exists but is not ready."""
    is_ready = oip.is_model_ready(state, name, version)
    response.status_code = 200 if is_ready else 400
    return {"name": name, "ready": is_ready}


@router.get("/models/{name}/config", tags=_META, responses=answers(examples.OIP_CONFIG, named=True))
@router.get("/models/{name}/versions/{version}/config", tags=_META, responses=answers(examples.OIP_CONFIG, named=True))
async def model_config(state: SharedState, name: str, version: str | None = None) -> dict[str, Any]:
    """The model's configuration in Triton's format."""
    return oip.model_config(state, name, version)


@router.get("/models/{name}/stats", tags=_META, responses=answers(examples.OIP_STATS, named=True))
@router.get("/models/{name}/versions/{version}/stats", tags=_META, responses=answers(examples.OIP_STATS, named=True))
async def model_statistics(state: SharedState, name: str, version: str | None = None) -> dict[str, Any]:
    """Statistics of a model's loaded versions, or of one version."""
    return await oip.model_statistics(state, name, version)


async def _object(request: Request) -> dict[str, Any]:
    """The body as a JSON object; an empty body counts as an empty object."""
    body = await request.body()
    if not body.strip():
        return {}
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidRequestError("the body is not valid JSON; expected an object") from None
    if not isinstance(value, dict):
        raise InvalidRequestError("the body is not a JSON object")
    return value


_INDEX_BODY = {
    "requestBody": {"content": {"application/json": {"schema": {"type": "object"}, "example": {"ready": True}}}}
}
_DONE: dict[int | str, dict[str, Any]] = {200: {"description": "done; the body is empty"}, **ERRORS}


@router.post("/repository/index", tags=_CONTROL, responses=answers(examples.OIP_INDEX), openapi_extra=_INDEX_BODY)
async def repository_index(state: SharedState, request: Request) -> JSONResponse:
    """Every model of the repository with its versions, states and reasons; ``{"ready": true}`` for the ready ones."""
    only_ready = (await _object(request)).get("ready", False)
    if not isinstance(only_ready, bool):
        raise InvalidRequestError("'ready' must be true or false")
    return JSONResponse(await oip.repository_index(state, only_ready=only_ready))


@router.post("/repository/models/{name}/load", tags=_CONTROL, responses=_DONE, response_class=Response)
async def load(state: SharedState, request: Request, name: str) -> Response:
    """Load a model again from the repository, beside the served version, and swap it in.

    The parameter ``config`` may hold ``version_policy`` in Triton's format, to load other versions than the settings
    select, for example for a rollback. ``instance_group`` places the model's instances until the next load. Other
    members have no effect, and the response names them in a warning.
    """
    wanted = load_request(await _object(request))
    await state.control.request("load", name, wanted.policy, wanted.placement)
    return JSONResponse({"warning": wanted.warning}) if wanted.warning else Response(status_code=200)


@router.post("/repository/models/{name}/unload", tags=_CONTROL, responses=_DONE, response_class=Response)
async def unload(state: SharedState, request: Request, name: str) -> Response:
    """Stop serving a model after it has finished its requests."""
    await _object(request)
    await state.control.request("unload", name)
    return Response(status_code=200)


_INFER_BODY: dict[str, Any] = {
    "parameters": [
        {
            "name": "Inference-Header-Content-Length",
            "in": "header",
            "required": False,
            "schema": {"type": "integer", "minimum": 0},
            "description": "length of the JSON header in bytes, if binary tensors follow it; 0 for raw mode",
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
        summary="Run a model" if "versions" not in _path else "Run a version of a model",
        tags=["v2 inference"],
        response_model=None,
        responses=_INFER_ANSWERS,
        openapi_extra=_INFER_BODY,
    )
