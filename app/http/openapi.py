"""Complete FastAPI's OpenAPI schema: path parameters and the errors that any route can return."""

import re
from typing import Any

_ERROR = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
_VARIABLE = re.compile(r"\{(\w+)\}")
_METHODS = ("get", "post", "put", "patch", "delete", "head", "options")
# FastAPI's schemas of validation errors; this server has one schema for every error.
_UNUSED = ("HTTPValidationError", "ValidationError")


def complete(schema: dict[str, Any]) -> None:
    """Add path parameters, 400 to routes that read input, and 413 to routes that read a body."""
    for path, operations in schema.get("paths", {}).items():
        for method in set(operations) & set(_METHODS):
            operation = operations[method]
            parameters = operation.setdefault("parameters", [])
            described = {item["name"] for item in parameters if item["in"] == "path"}
            parameters[:0] = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
                for name in _VARIABLE.findall(path)
                if name not in described
            ]
            if not parameters:
                del operation["parameters"]
            responses = operation["responses"]
            wrong = responses.pop("422", None) is not None
            if wrong or "requestBody" in operation:
                responses.setdefault("400", {"description": "the request is malformed", "content": _ERROR})
            if "requestBody" in operation:
                responses.setdefault("413", {"description": "the body is over max_body_bytes", "content": _ERROR})
    for name in _UNUSED:
        schema.get("components", {}).get("schemas", {}).pop(name, None)
