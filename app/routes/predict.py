"""The plain inference API, as OpenAPI sees it.

The application answers these paths before FastAPI does; the routes describe them, and delegate when they are reached
after all (mounted below another application, say).
"""

from typing import Any

from fastapi import APIRouter, Request, Response

from app.asgi import Responder
from app.errors import ModelNotFoundError
from app.schemas import ErrorBody, PredictAnswer, PredictBody
from app.state import app_state

router = APIRouter(tags=["predict"])

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        400: "the body can't be understood or doesn't fit the model",
        404: "unknown model or version",
        413: "the body is over max_body_bytes",
        415: "unknown content type",
        500: "the model failed on this input",
        503: "the model is not ready",
    }.items()
}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": PredictBody.model_json_schema(),
                "examples": {
                    "rows": {"summary": "rows of the only input", "value": {"inputs": [[0.0, 0.5, 1.0]]}},
                    "named": {"summary": "inputs by name", "value": {"inputs": {"x": [[0.0, 0.5, 1.0]]}, "top_k": 3}},
                },
            }
        },
    }
}


async def delegate(request: Request) -> Response:
    """Answer an inference request that came through FastAPI's routing."""
    state = app_state(request)
    target = state.service.target(request.scope["path"])
    if target is None:
        raise ModelNotFoundError("no such model")
    return Responder(state.service, target)


def _describe(path: str, name: str, summary: str) -> None:
    router.add_api_route(
        path,
        delegate,
        methods=["POST"],
        name=name,
        summary=summary,
        response_model=None,
        responses={200: {"model": PredictAnswer}, **ERRORS},
        openapi_extra=_BODY,
    )


_describe("/predict", "predict", "Ask the default model")
_describe("/models/{name}/predict", "predict_model", "Ask a model")
_describe("/models/{name}/versions/{version}/predict", "predict_version", "Ask a version of a model")
