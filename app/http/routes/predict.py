"""The plain inference API, for OpenAPI.

The application serves these paths before FastAPI does; the routes document them, and delegate if they are reached
nevertheless, for example when mounted below another application.
"""

from typing import Any

from fastapi import APIRouter, Request, Response

from app.errors import ModelNotFoundError
from app.http.endpoint import Responder
from app.http.schemas import ErrorBody, PredictAnswer, PredictBody
from app.service.state import app_state

router = APIRouter(tags=["predict"])

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {
        "model": ErrorBody,
        "description": text,
        "content": {"application/json": {"example": {"error": "inputs[0] has 783 values; expected 784"}}},
    }
    for status, text in {
        400: "the body is invalid or does not match the model",
        403: "not allowed by the settings",
        404: "unknown model or version",
        413: "the body is over max_body_bytes",
        415: "unknown content type",
        500: "the model failed on this input",
        503: "the model is not ready; Retry-After says when to try again",
        504: "the request waited longer than its timeout",
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
                    "records": {"summary": "rows by column", "value": {"inputs": [{"length": 5.1, "width": 3.5}]}},
                },
            },
            "text/csv": {
                "schema": {"type": "string", "description": "rows of a table; the first line names the columns"},
                "example": "length,width\r\n5.1,3.5\r\n",
            },
            "application/octet-stream": {
                "schema": {"type": "string", "format": "binary", "description": "raw rows, float32 for most models"}
            },
            "application/x-npy": {
                "schema": {"type": "string", "format": "binary", "description": "an array in numpy's .npy format"}
            },
        },
    },
    "parameters": [
        {
            "name": "top_k",
            "in": "query",
            "required": False,
            "schema": {"type": "integer", "minimum": 1, "maximum": 1000},
            "description": "number of labels to rank per row",
            "example": 3,
        },
        {
            "name": "output",
            "in": "query",
            "required": False,
            "schema": {"type": "string"},
            "description": "output of a binary response (`Accept: application/x-npy` or `application/octet-stream`)",
            "example": "logits",
        },
        {
            "name": "nan",
            "in": "query",
            "required": False,
            "schema": {"type": "string", "enum": ["refuse", "allow"], "default": "refuse"},
            "description": 'allow accepts NaN and infinities: in JSON as null, "NaN", "Infinity" and "-Infinity"',
            "example": "refuse",
        },
    ],
}
_ANSWER: dict[str, Any] = {
    "model": PredictAnswer,
    "content": {
        "application/json": {
            "example": {
                "model": "digits",
                "version": "1",
                "outputs": {"logits": [[-2.1, 0.3, 7.5]]},
                "predictions": [{"label": "2", "probability": 0.9992}],
            }
        },
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        "application/x-npy": {"schema": {"type": "string", "format": "binary"}},
        "text/csv": {"schema": {"type": "string"}},
    },
}


async def delegate(request: Request) -> Response:
    """Serve an inference request from FastAPI's routing."""
    state = app_state(request)
    target = state.service.target(request.scope["path"])
    if target is None:
        raise ModelNotFoundError("unknown model")
    return Responder(state.service, target)


def _describe(path: str, name: str, summary: str) -> None:
    router.add_api_route(
        path,
        delegate,
        methods=["POST"],
        name=name,
        summary=summary,
        response_model=None,
        responses={200: _ANSWER, **ERRORS},
        openapi_extra=_BODY,
    )


_describe("/predict", "predict", "Run the default model")
_describe("/models/{name}/predict", "predict_model", "Run a model")
_describe("/models/{name}/versions/{version}/predict", "predict_version", "Run a version of a model")
