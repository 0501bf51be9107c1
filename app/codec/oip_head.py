"""The JSON part of a request of the Open Inference Protocol v2, checked."""

from dataclasses import dataclass
from typing import Any

from app.codec.binary import element_count
from app.codec.values import describe
from app.errors import InvalidRequestError
from app.model import Model
from app.tensors import TensorSpec

MAX_ID_LENGTH = 1024
BINARY_ONLY = ("FP16", "BF16")
MOST_ELEMENTS = 2**48  # numpy counts bytes in 63 bits, empty dimensions aside
EXPECTED = '{"inputs": [{"name": …, "shape": […], "datatype": …, "data": […]}, …]}'
KEYS = {"id", "parameters", "inputs", "outputs"}
_MAX_SHOWN = 8  # dimensions
_INPUT_KEYS = {"name", "shape", "datatype", "parameters", "data"}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request wants back, and how."""

    output_names: tuple[str, ...]
    binary: tuple[bool, ...]
    classes: tuple[int, ...]
    id: str | None = None
    priority: int = 0
    timeout_us: int = 0

    @property
    def all_json(self) -> bool:
        """Whether no output is binary."""
        return not any(self.binary)


@dataclass(frozen=True, slots=True)
class Input:
    """One input as the JSON part announces it; ``data`` is missing where it comes as binary."""

    spec: TensorSpec
    shape: tuple[int, ...]
    size: int | None = None
    data: Any = None


@dataclass(frozen=True, slots=True)
class Head:
    """The JSON part of a request, checked."""

    inputs: tuple[Input, ...]
    asked: Asked


def read_head(model: Model, document: Any) -> Head:
    """Check the JSON part of a request.

    Raises:
        InvalidRequestError: names the place and the rule.
    """
    if not isinstance(document, dict):
        raise InvalidRequestError(f"the body is {describe(document)}; expected {EXPECTED}")
    for key in document:
        if key not in KEYS:
            raise InvalidRequestError(f"unknown key {key[:40]!r}; known: {', '.join(sorted(KEYS))}")
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise InvalidRequestError(f"'inputs' is {describe(inputs)}; expected {EXPECTED}")
    if len(inputs) > len(model.input_by_name):
        raise InvalidRequestError(
            f"the request has {len(inputs)} inputs; model {model.name!r} takes: {', '.join(model.input_by_name)}"
        )
    read = tuple(_read_input(model, item, f"inputs[{position}]") for position, item in enumerate(inputs))
    names = [item.spec.name for item in read]
    for name in model.input_by_name:
        if names.count(name) != 1:
            what = "missing" if name not in names else "given more than once"
            raise InvalidRequestError(
                f"input {name!r} is {what}; model {model.name!r} takes: {', '.join(model.input_by_name)}"
            )
    return Head(read, read_asked(model, document))


def _read_input(model: Model, item: Any, where: str) -> Input:
    if not isinstance(item, dict):
        raise InvalidRequestError(f"{where} is {describe(item)}; expected an object: {EXPECTED}")
    for key in item:
        if key not in _INPUT_KEYS:
            raise InvalidRequestError(f"{where}: unknown key {key[:40]!r}; known: {', '.join(sorted(_INPUT_KEYS))}")
    name = item.get("name")
    spec = model.input_by_name.get(name) if isinstance(name, str) else None
    if spec is None:
        names = ", ".join(model.input_by_name)
        raise InvalidRequestError(f"{where}: model {model.name!r} has no input {str(name)[:40]!r}; its inputs: {names}")
    datatype = item.get("datatype")
    if datatype != spec.datatype:
        shown = str(datatype)[:40]
        raise InvalidRequestError(f"input {name!r} has datatype {shown!r}; the model takes {spec.datatype}")
    return Input(spec, _read_shape(item.get("shape"), spec), _read_size(item, spec), item.get("data"))


def _read_shape(shape: Any, spec: TensorSpec) -> tuple[int, ...]:
    if not isinstance(shape, list) or any(type(size) is not int or size < 0 for size in shape):
        raise InvalidRequestError(
            f"input {spec.name!r}: 'shape' is {describe(shape)}; expected a list of whole numbers"
        )
    shown = str(shape)[:80]
    if not spec.accepts(tuple(shape)):
        raise InvalidRequestError(f"input {spec.name!r} has shape {shown}; the model takes {spec.readable_shape}")
    if element_count(tuple(size or 1 for size in shape)) > MOST_ELEMENTS:
        raise InvalidRequestError(f"input {spec.name!r} has shape {shown}, which is more than a tensor can hold")
    return tuple(shape)


def _read_size(item: dict[str, Any], spec: TensorSpec) -> int | None:
    """The bytes that follow for an input, or None where it carries its data itself."""
    parameters = _parameters(item, f"input {spec.name!r}")
    if "shared_memory_region" in parameters:
        raise InvalidRequestError("shared memory is not supported")
    size = parameters.get("binary_data_size")
    if size is not None:
        if type(size) is not int or size < 0:
            shown = describe(size)
            raise InvalidRequestError(f"input {spec.name!r}: binary_data_size is {shown}; expected a number of bytes")
        if "data" in item:
            raise InvalidRequestError(f"input {spec.name!r} has both 'data' and binary_data_size; give one")
        return size
    if "data" not in item:
        raise InvalidRequestError(f"input {spec.name!r} has neither 'data' nor the parameter binary_data_size")
    if spec.datatype in BINARY_ONLY:
        raise InvalidRequestError(f"input {spec.name!r} is {spec.datatype}, which travels as binary data only")
    return None


def read_asked(model: Model, document: dict[str, Any]) -> Asked:
    """What a request wants back: id, outputs, and the parameters with a meaning.

    Raises:
        InvalidRequestError: names the place and the rule.
    """
    parameters = _parameters(document, "the request")
    by_default = _flag(parameters, "binary_data_output", "the request", otherwise=False)
    identity = document.get("id")
    if identity is not None and not isinstance(identity, str):
        raise InvalidRequestError(f"'id' is {describe(identity)}; expected a text")
    if identity is not None and len(identity) > MAX_ID_LENGTH:
        raise InvalidRequestError(f"'id' has {len(identity)} characters; at most {MAX_ID_LENGTH} are echoed")
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
    return Asked(names, binaries, tuple(ranked for _, _, ranked in outputs), identity, priority, timeout_us)


def _read_output(model: Model, item: Any, by_default: bool) -> tuple[str, bool, int]:
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
            f"output {name!r} is {spec.datatype}, which travels as binary data only; set its parameter binary_data"
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


def _whole(parameters: dict[str, Any], name: str) -> int:
    value = parameters.get(name, 0)
    if type(value) is not int or value < 0:
        raise InvalidRequestError(f"parameter {name} is {describe(value)}; expected a whole number, 0 or more")
    return value
