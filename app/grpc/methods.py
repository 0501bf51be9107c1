"""Methods of the protocol besides inference: metadata of the server and its models, and model control.

Each method requires the same API key as the corresponding HTTP request.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format  # type: ignore[import-untyped]

from app.errors import InvalidRequestError
from app.grpc.messages import message_class, methods
from app.reports import oip
from app.service.load_policy import load_request
from app.service.state import AppState

log = logging.getLogger(__name__)

Handler = Callable[[AppState, Any], Awaitable[dict[str, Any]]]
"""Makes the response: the message in the JSON form of HTTP."""


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        request, response: Classes of its messages.
        same_as: HTTP method and path that require the same key.
        handle: See ``Handler``.
    """

    request: Any
    response: Any
    same_as: tuple[str, str]
    handle: Handler

    async def __call__(self, state: AppState, request: Any) -> Any:
        """Make the response.

        Raises:
            AppError: The request failed; the message gives the reason.
        """
        document = await self.handle(state, request)
        return json_format.ParseDict(document, self.response(), ignore_unknown_fields=True)


async def _live(state: AppState, _: Any) -> dict[str, Any]:
    return {"live": state.stuck_because() is None}


async def _ready(state: AppState, _: Any) -> dict[str, Any]:
    return {"ready": state.not_ready_because() is None}


async def _server_metadata(_: AppState, __: Any) -> dict[str, Any]:
    return oip.server_metadata()


async def _model_ready(state: AppState, request: Any) -> dict[str, Any]:
    return {"ready": oip.is_model_ready(state, request.name, request.version or None)}


async def _model_metadata(state: AppState, request: Any) -> dict[str, Any]:
    return oip.model_metadata(state, request.name, request.version or None)


async def _model_config(state: AppState, request: Any) -> dict[str, Any]:
    return {"config": oip.model_config(state, request.name, request.version or None)}


async def _model_statistics(state: AppState, request: Any) -> dict[str, Any]:
    if request.name:
        return await oip.model_statistics(state, request.name, request.version or None)
    return await oip.all_statistics(state)


async def _repository_index(state: AppState, request: Any) -> dict[str, Any]:
    _check_repository(request)
    return {"models": await oip.repository_index(state, only_ready=request.ready)}


async def _load(state: AppState, request: Any) -> dict[str, Any]:
    _check_repository(request)
    parameters = {name: getattr(value, value.WhichOneof("parameter_choice") or "string_param")
                  for name, value in request.parameters.items()}  # fmt: skip
    wanted = load_request({"parameters": parameters})
    await state.control.request("load", request.model_name, wanted.policy, wanted.placement)
    if wanted.warning:
        log.warning("load of model %s: %s", request.model_name, wanted.warning)  # the response has no field for it
    return {}


async def _unload(state: AppState, request: Any) -> dict[str, Any]:
    _check_repository(request)
    await state.control.request("unload", request.model_name)
    return {}


def _check_repository(request: Any) -> None:
    if request.repository_name:
        raise InvalidRequestError(
            f"repository_name is {request.repository_name[:40]!r}; this server has one repository, without a name"
        )


_MODEL = "/v2/models/NAME"
_REPOSITORY = "/v2/repository"
_TABLE: dict[str, tuple[str, str, Handler]] = {
    "ServerLive": ("GET", "/v2/health/live", _live),
    "ServerReady": ("GET", "/v2/health/ready", _ready),
    "ServerMetadata": ("GET", "/v2", _server_metadata),
    "ModelReady": ("GET", f"{_MODEL}/ready", _model_ready),
    "ModelMetadata": ("GET", _MODEL, _model_metadata),
    "ModelConfig": ("GET", f"{_MODEL}/config", _model_config),
    "ModelStatistics": ("GET", f"{_MODEL}/stats", _model_statistics),
    "RepositoryIndex": ("POST", f"{_REPOSITORY}/index", _repository_index),
    "RepositoryModelLoad": ("POST", f"{_REPOSITORY}/models/NAME/load", _load),
    "RepositoryModelUnload": ("POST", f"{_REPOSITORY}/models/NAME/unload", _unload),
}


def served_methods() -> dict[str, Method]:
    """The served methods, by name."""
    described = methods()
    return {
        name: Method(
            message_class(described[name].input_type.name),
            message_class(described[name].output_type.name),
            (verb, path),
            handle,
        )
        for name, (verb, path, handle) in _TABLE.items()
    }
