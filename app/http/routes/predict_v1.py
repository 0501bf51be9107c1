"""KServe's v1 protocol, also used by TensorFlow Serving's clients; inference only for OpenAPI."""

from typing import Any

from fastapi import APIRouter

from app.http.routes.dependencies import SharedState
from app.http.routes.examples import answers
from app.http.routes.predict import ERRORS, delegate
from app.repository.versions import State

router = APIRouter(prefix="/v1", tags=["v1"])

_ROW = [0.0, 0.5, 1.0]
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "instances": {"type": "array", "items": {}, "description": "one element per row"},
                        "inputs": {"description": "tensors by name, or a single tensor"},
                        "signature_name": {"type": "string", "description": "ignored"},
                    },
                },
                "example": {"instances": [_ROW]},
            }
        },
    }
}
_ANSWER: dict[str, Any] = {
    "content": {
        "application/json": {
            "schema": {"type": "object"},
            "example": {"predictions": [[-2.1, 0.3, 7.5]]},
        }
    }
}
_MODEL = {
    "name": "digits",
    "ready": True,
    "model_version_status": [
        {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    ],
}


@router.get("/models", responses=answers({"models": ["digits"]}))
async def list_models(state: SharedState) -> dict[str, list[str]]:
    """Names of the served models."""
    return {"models": list(state.repository.names)}


@router.get("/models/{name}", responses=answers(_MODEL, named=True))
async def show_model(state: SharedState, name: str) -> dict[str, Any]:
    """Status of a ready model, in the format of KServe and TensorFlow Serving; 503 if it is not ready."""
    state.repository.get(name)
    return {
        "name": name,
        "ready": True,
        "model_version_status": [
            {
                "version": item.version,
                "state": "AVAILABLE" if item.state is State.READY else "END",
                "status": {
                    "error_code": "OK" if item.state is State.READY else "UNAVAILABLE",
                    "error_message": item.reason or "",
                },
            }
            for item in state.repository.entry(name).versions.values()
        ],
    }


for _path, _name in (
    ("/models/{name}:predict", "predict_v1"),
    ("/models/{name}/versions/{version}:predict", "predict_v1_version"),
):
    router.add_api_route(
        _path,
        delegate,
        methods=["POST"],
        name=_name,
        summary="Run a model",
        response_model=None,
        responses={200: _ANSWER, **ERRORS},
        openapi_extra=_BODY,
    )
