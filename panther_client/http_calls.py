"""Calls over HTTP: the Open Inference Protocol and the plain API."""

import json
from dataclasses import asdict
from typing import Any
from urllib.parse import quote

from panther_client import wire
from panther_client.calls import Call, InferOptions, Reply
from panther_client.errors import InvalidRequestError, ServerError


class HttpCalls:
    """See ``Calls``."""

    def metadata(self, model: str, version: str | None) -> Call:
        """See ``Calls``."""
        return Call("GET", _model_path(model, version), _json)

    def infer(self, metadata: Any, model: str, version: str | None, inputs: Any, options: InferOptions) -> Call:
        """See ``Calls``."""
        headers, content = wire.encode_infer(metadata, inputs, **asdict(options))
        path = _model_path(model, version) + "/infer"
        return Call("POST", path, lambda reply: wire.decode_infer(reply.headers, reply.body), headers, content)

    def needs_metadata(self) -> bool:
        """Predictions for rows, which the server decodes by the metadata of its model."""
        return False

    def predict(self, _: Any, model: str | None, version: str | None, inputs: Any, top_k: int | None) -> Call:
        """See ``Calls``."""
        if version is not None and model is None:
            raise InvalidRequestError("a version requires the name of its model")
        path = "/predict" if model is None else _model_path(model, version).removeprefix("/v2") + "/predict"
        if top_k is not None:
            path += f"?top_k={top_k}"
        content_type, content = wire.encode_rows(inputs)
        headers = {"content-type": content_type, "accept": "application/json"}
        return Call("POST", path, lambda reply: wire.decode_predict(reply.body), headers, content)

    def ready(self) -> Call:
        """See ``Calls``."""
        return Call("GET", "/v2/health/ready", lambda _: True)

    def models(self) -> Call:
        """See ``Calls``."""
        return Call("GET", "/models", lambda reply: _json(reply)["models"])

    def stats(self, model: str | None) -> Call:
        """See ``Calls``."""
        return Call("GET", "/stats" if model is None else f"/models/{quote(model, safe='')}/stats", _json)

    def control(self, action: str, model: str) -> Call:
        """See ``Calls``."""
        path = f"/v2/repository/models/{quote(model, safe='')}/{action}"
        return Call("POST", path, lambda _: None, repeatable=False)


def _json(reply: Reply) -> Any:
    try:
        return json.loads(reply.body)
    except ValueError:
        text = reply.body[:200].decode(errors="replace")
        raise ServerError(f"the server responded with {reply.status}, but without JSON: {text}") from None


def _model_path(model: str, version: str | None) -> str:
    path = f"/v2/models/{quote(model, safe='')}"
    return path if version is None else f"{path}/versions/{quote(version, safe='')}"
