"""Validation of the JSON header of a request of the Open Inference Protocol v2."""

from dataclasses import dataclass
from typing import Any

from app.engine.codec.binary import element_count
from app.engine.codec.casting import declared, is_castable
from app.engine.codec.described import DescribedModel
from app.engine.codec.values import describe
from app.errors import InvalidRequestError
from app.runtime.tensors import TensorSpec

MAX_ID_LENGTH = 1024
BINARY_ONLY = ("FP16", "BF16")
MOST_ELEMENTS = 2**48  # numpy counts bytes in 63 bits, ignoring empty dimensions
EXPECTED = '{"inputs": [{"name": …, "shape": […], "datatype": …, "data": […]}, …]}'
KEYS = {"model_name", "model_version", "id", "parameters", "inputs", "outputs"}
"""Supported members; others are ignored, like on the protocol's other servers."""
ARRAY = "np"
"""Content type of MLServer's numpy codec."""


@dataclass(frozen=True, slots=True)
class ResponseOptions:
    """The response options of a request: id, outputs, format."""

    output_names: tuple[str, ...]
    binary: tuple[bool, ...]
    classes: tuple[int, ...]
    id: str | None = None
    priority: int = 0
    timeout_us: int = 0
    nan: bool = False

    @property
    def all_json(self) -> bool:
        """Whether no output is binary."""
        return not any(self.binary)


@dataclass(frozen=True, slots=True)
class Input:
    """One input of the JSON header; ``data`` is missing for binary data.

    ``given`` is the input in the datatype of the request, if it must be cast to the model's datatype.
    """

    spec: TensorSpec
    shape: tuple[int, ...]
    size: int | None = None
    data: Any = None
    given: TensorSpec | None = None


@dataclass(frozen=True, slots=True)
class JsonHeader:
    """A validated JSON header."""

    inputs: tuple[Input, ...]
    options: ResponseOptions


def read_header(model: DescribedModel, document: Any, *, casts: bool = False) -> JsonHeader:
    """Validate the JSON header of a request.

    Args:
        model: The model of the request.
        document: The parsed JSON.
        casts: Whether to cast tensors of content type "np" from other datatypes; a request
            of that content type may use any name for the only input of a model.

    Raises:
        InvalidRequestError: The header is invalid; the message names the place and the rule.
    """
    if not isinstance(document, dict):
        raise InvalidRequestError(f"the body is {describe(document)}; expected {EXPECTED}")
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise InvalidRequestError(f"'inputs' is {describe(inputs)}; expected {EXPECTED}")
    if len(inputs) > len(model.input_by_name):
        raise InvalidRequestError(
            f"the request has {len(inputs)} inputs; model {model.name!r} has: {', '.join(model.input_by_name)}"
        )
    array = casts and content_type(document, "the request") == ARRAY
    if array and len(inputs) == len(model.inputs) == 1 and isinstance(inputs[0], dict):
        inputs = [{**inputs[0], "name": model.inputs[0].name}]
    read = tuple(
        _read_input(model, item, f"inputs[{position}]", casts=casts, array=array)
        for position, item in enumerate(inputs)
    )
    names = [item.spec.name for item in read]
    required = {spec.name for spec in model.inputs}
    for name in model.input_by_name:
        if names.count(name) > 1 or (name in required and name not in names):
            what = "missing" if name not in names else "given more than once"
            raise InvalidRequestError(
                f"input {name!r} is {what}; model {model.name!r} has: {', '.join(model.input_by_name)}"
            )
    return JsonHeader(read, read_options(model, document))


def content_type(item: dict[str, Any], where: str) -> object:
    """The content type that MLServer's clients set for a request or a tensor."""
    return _parameters(item, where).get("content_type")


def _read_input(model: DescribedModel, item: Any, where: str, *, casts: bool, array: bool) -> Input:
    if not isinstance(item, dict):
        raise InvalidRequestError(f"{where} is {describe(item)}; expected an object: {EXPECTED}")
    name = item.get("name")
    spec = model.input_by_name.get(name) if isinstance(name, str) else None
    if spec is None:
        names = ", ".join(model.input_by_name)
        raise InvalidRequestError(f"{where}: model {model.name!r} has no input {str(name)[:40]!r}; its inputs: {names}")
    datatype = item.get("datatype")
    if datatype != spec.datatype and casts and (array or content_type(item, f"input {name!r}") == ARRAY):
        if not is_castable(datatype, spec):
            shown = str(datatype)[:40]
            raise InvalidRequestError(f"input {name!r} has datatype {shown!r}, which can't be cast to {spec.datatype}")
        given = declared(spec, str(datatype))
        return Input(spec, _read_shape(item.get("shape"), spec), _read_size(item, given), item.get("data"), given)
    if datatype != spec.datatype:
        shown = str(datatype)[:40]
        raise InvalidRequestError(f"input {name!r} has datatype {shown!r}; expected {spec.datatype}")
    return Input(spec, _read_shape(item.get("shape"), spec), _read_size(item, spec), item.get("data"))


def _read_shape(shape: Any, spec: TensorSpec) -> tuple[int, ...]:
    if isinstance(shape, list) and -1 in shape:
        raise InvalidRequestError(
            f"input {spec.name!r}: 'shape' is {str(shape)[:80]}; -1 is only valid in a model's metadata; "
            "a request gives the actual sizes, such as [2, 4] for two rows of four numbers"
        )
    if not isinstance(shape, list) or any(type(size) is not int or size < 0 for size in shape):
        raise InvalidRequestError(
            f"input {spec.name!r}: 'shape' is {describe(shape)}; expected a list of whole numbers"
        )
    shown = str(shape)[:80]
    if not spec.accepts(tuple(shape)):
        raise InvalidRequestError(f"input {spec.name!r} has shape {shown}; expected {spec.readable_shape}")
    if element_count(tuple(size or 1 for size in shape)) > MOST_ELEMENTS:
        raise InvalidRequestError(f"input {spec.name!r} has shape {shown}; the maximum is {MOST_ELEMENTS} elements")
    return tuple(shape)


def _read_size(item: dict[str, Any], spec: TensorSpec) -> int | None:
    """Size of the binary data of an input, or None if its data is in the JSON header."""
    parameters = _parameters(item, f"input {spec.name!r}")
    if "shared_memory_region" in parameters:
        raise InvalidRequestError("shared memory is not supported")
    size = parameters.get("binary_data_size")
    if size is not None:
        if type(size) is not int or size < 0:
            shown = describe(size)
            raise InvalidRequestError(f"input {spec.name!r}: binary_data_size is {shown}; expected a number of bytes")
        if item.get("data") is not None:
            raise InvalidRequestError(f"input {spec.name!r} has both 'data' and binary_data_size; give one")
        return size
    if "data" not in item:
        raise InvalidRequestError(f"input {spec.name!r} has neither 'data' nor the parameter binary_data_size")
    if spec.datatype in BINARY_ONLY:
        raise InvalidRequestError(f"input {spec.name!r} is {spec.datatype}, which must be sent as binary data")
    return None


def read_options(model: DescribedModel, document: dict[str, Any]) -> ResponseOptions:
    """Read the response options of a request: id, outputs, and known parameters.

    Raises:
        InvalidRequestError: The options are invalid, or the request names another model.
    """
    if "model_name" in document or "model_version" in document:
        _check_name(document, "model_name", model.name)
        _check_name(document, "model_version", model.version)
    parameters = _parameters(document, "the request")
    by_default = _flag(parameters, "binary_data_output", "the request", otherwise=False)
    identity = document.get("id")
    if identity is not None and not isinstance(identity, str):
        raise InvalidRequestError(f"'id' is {describe(identity)}; expected a string")
    if identity is not None and len(identity) > MAX_ID_LENGTH:
        raise InvalidRequestError(f"'id' has {len(identity)} characters; the maximum is {MAX_ID_LENGTH}")
    priority = _whole(parameters, "priority")
    timeout_us = _whole(parameters, "timeout")
    wanted = document.get("outputs")
    if wanted is not None and not isinstance(wanted, list):
        raise InvalidRequestError(f"'outputs' is {describe(wanted)}; expected a list of objects with a name")
    if wanted is not None and len(wanted) > len(model.output_names):
        raise InvalidRequestError(
            f"'outputs' has {len(wanted)} entries; model {model.name!r} has: {', '.join(model.output_names)}"
        )
    outputs = [_read_output(model, item, by_default) for item in wanted or [{"name": n} for n in model.output_names]]
    names = tuple(name for name, _, _ in outputs)
    if len(set(names)) != len(names):
        raise InvalidRequestError(f"'outputs' names an output more than once: {', '.join(names)}")
    binaries = tuple(as_binary for _, as_binary, _ in outputs)
    ranks = tuple(ranked for _, _, ranked in outputs)
    return ResponseOptions(names, binaries, ranks, identity, priority, timeout_us, _nan(parameters))


def _check_name(document: dict[str, Any], key: str, expected: str) -> None:
    """Check that a model named in the body is the model in the URL."""
    found = document.get(key)
    if found is not None and not isinstance(found, str):
        raise InvalidRequestError(f"{key!r} is {describe(found)}; expected a string, or no value")
    if found and found != expected:  # KServe's client sends an empty version if it has none
        raise InvalidRequestError(f"{key!r} is {found[:40]!r}; the URL of the request names {expected!r}")


def _read_output(model: DescribedModel, item: Any, by_default: bool) -> tuple[str, bool, int]:
    name = item.get("name") if isinstance(item, dict) else None
    spec = model.output_by_name.get(name) if isinstance(name, str) else None
    if spec is None:
        shown = describe(name if isinstance(item, dict) else item)
        raise InvalidRequestError(f"'outputs' has {shown}; model {model.name!r} has: {', '.join(model.output_names)}")
    given = _parameters(item, f"output {name!r}")
    if "shared_memory_region" in given:
        raise InvalidRequestError("shared memory is not supported")
    as_binary = _flag(given, "binary_data", f"output {name!r}", otherwise=by_default)
    ranked = _whole(given, "classification")
    if ranked and (spec.dtype.kind not in "fiu" or spec.datatype == "BF16"):
        raise InvalidRequestError(f"output {name!r} is {spec.datatype}, which can't be ranked by 'classification'")
    if spec.datatype in BINARY_ONLY and not as_binary and not ranked:
        raise InvalidRequestError(
            f"output {name!r} is {spec.datatype}, which is sent as binary data only; set its parameter binary_data"
        )
    return spec.name, as_binary, ranked


def _parameters(item: dict[str, Any], where: str) -> dict[str, Any]:
    parameters = item.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidRequestError(f"'parameters' of {where} is {describe(parameters)}; expected an object")
    return parameters


def _flag(parameters: dict[str, Any], name: str, where: str, *, otherwise: bool) -> bool:
    value = parameters.get(name, otherwise)
    if not isinstance(value, bool):
        raise InvalidRequestError(f"parameter {name} of {where} is {describe(value)}; expected true or false")
    return value


def _nan(parameters: dict[str, Any]) -> bool:
    value = parameters.get("nan", "refuse")
    if value not in ("allow", "refuse"):
        raise InvalidRequestError(f"parameter nan of the request is {describe(value)}; expected 'allow' or 'refuse'")
    return bool(value == "allow")


def _whole(parameters: dict[str, Any], name: str) -> int:
    value = parameters.get(name, 0)
    if type(value) is not int or value < 0:
        raise InvalidRequestError(f"parameter {name} is {describe(value)}; expected a whole number, 0 or more")
    return value
