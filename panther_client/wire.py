"""HTTP requests and responses as bytes, and the tensors of both protocols."""

import io
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from panther_client.errors import InvalidRequestError, ServerError

Array = np.ndarray[Any, np.dtype[Any]]

DTYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BF16": np.float32,
    "BYTES": np.object_,
}
HEADER_LENGTH = "inference-header-content-length"
_LENGTH = struct.Struct("<I")
_BINARY_ONLY = ("FP16", "BF16")


@dataclass(frozen=True)
class InferResult(Mapping[str, Array]):
    """Outputs by name; BF16 as float32, BYTES as Python bytes.

    Attributes:
        model_name, model_version: The model and version that ran.
        outputs: Name to array.
        id: The id of the request.
        parameters: Parameters of the response.
    """

    model_name: str
    model_version: str | None
    outputs: dict[str, Array]
    id: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Array:
        return self.outputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.outputs)

    def __len__(self) -> int:
        return len(self.outputs)


@dataclass(frozen=True)
class Prediction:
    """The most likely label of one row; ``top_k`` ranks (label, probability) if requested."""

    label: str
    probability: float
    top_k: list[tuple[str, float]] | None = None


@dataclass(frozen=True)
class PredictResult:
    """Response of the plain API; ``predictions`` is None if the model has no labels."""

    model: str
    version: str
    outputs: dict[str, Array]
    predictions: list[Prediction] | None = None

    def to_frame(self, like: Any) -> Any:
        """The response as a DataFrame with one row per row of the request.

        Args:
            like: The DataFrame of the request, of pandas or compatible; the result has its class and its index.

        Returns:
            Columns ``label`` and ``probability`` if the model has labels; then a column per output with one
            number per row, and ``NAME_0``, ``NAME_1``, … for an output with several.
        """
        columns: dict[str, Any] = {}
        if self.predictions is not None:
            columns["label"] = [item.label for item in self.predictions]
            columns["probability"] = [item.probability for item in self.predictions]
        for name, array in self.outputs.items():
            rows = array.reshape(len(array), -1)
            names = [name] if rows.shape[1] == 1 else [f"{name}_{number}" for number in range(rows.shape[1])]
            columns.update(zip(names, rows.T, strict=True))
        index = getattr(like, "index", None)
        return type(like)(columns) if index is None else type(like)(columns, index=index)


def encode_infer(
    metadata: Mapping[str, Any],
    inputs: Any,
    *,
    outputs: Sequence[str] | None,
    request_id: str | None,
    priority: int | None,
    timeout_us: int | None,
    binary: bool,
) -> tuple[dict[str, str], bytes]:
    """Headers and body of an inference request.

    Args:
        metadata: Metadata of the model from ``v2/models/NAME``; arrays are cast to its datatypes.
        inputs: An array for the only input, or a mapping of input names to arrays.
        outputs: Names of the outputs to return; None for all.
        request_id, priority, timeout_us: See the protocol.
        binary: Whether to send tensors as bytes or as JSON numbers; float16 and bfloat16 are always bytes.

    Raises:
        InvalidRequestError: The inputs do not match the model's metadata.
    """
    tensors: list[dict[str, Any]] = []
    tails: list[bytes] = []
    for spec, array in matched(metadata, inputs):
        item, tail = _tensor(spec, array, binary=binary)
        tensors.append(item)
        if tail is not None:
            tails.append(tail)
    parameters: dict[str, Any] = {"binary_data_output": True} if binary else {}
    if priority is not None:
        parameters["priority"] = priority
    if timeout_us is not None:
        parameters["timeout"] = timeout_us
    document: dict[str, Any] = {"inputs": tensors}
    if request_id is not None:
        document["id"] = request_id
    if parameters:
        document["parameters"] = parameters
    wanted = _wanted(metadata, outputs, binary=binary)
    if wanted is not None:
        document["outputs"] = wanted
    try:
        head = json.dumps(document, allow_nan=False).encode()
    except ValueError:
        raise InvalidRequestError("JSON does not support NaN or infinity; send binary tensors") from None
    if not tails:
        return {"content-type": "application/json"}, head
    headers = {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return headers, b"".join((head, *tails))


def _wanted(metadata: Mapping[str, Any], names: Sequence[str] | None, *, binary: bool) -> list[dict[str, Any]] | None:
    """The requested outputs; None for all of them in the default form."""
    types = {spec["name"]: spec["datatype"] for spec in metadata.get("outputs") or ()}
    forced = set() if binary else {name for name in types if types[name] in _BINARY_ONLY}
    if names is None and not forced:
        return None
    return [
        {"name": name, "parameters": {"binary_data": True}} if name in forced else {"name": name}
        for name in (types if names is None else names)
    ]


def _tensor(spec: Mapping[str, Any], array: Array, *, binary: bool) -> tuple[dict[str, Any], bytes | None]:
    datatype = spec["datatype"]
    item: dict[str, Any] = {"name": spec["name"], "shape": list(array.shape), "datatype": datatype}
    try:
        if binary or datatype in _BINARY_ONLY:
            tail = to_bytes(array, datatype)
            item["parameters"] = {"binary_data_size": len(tail)}
            return item, tail
        flat = array.reshape(-1)
        item["data"] = [_text(element) for element in flat] if datatype == "BYTES" else flat.tolist()
    except UnicodeError as error:
        raise InvalidRequestError(f"input {spec['name']!r} holds text that is not UTF-8: {error}") from None
    return item, None


def matched(metadata: Mapping[str, Any], inputs: Any) -> Iterator[tuple[Mapping[str, Any], Array]]:
    """The tensors of a request: metadata of each input, and its array in the input's type.

    Raises:
        InvalidRequestError: The inputs do not match the model's metadata.
    """
    specs = {spec["name"]: spec for spec in metadata["inputs"]}
    if not isinstance(inputs, Mapping):
        if len(specs) != 1:
            names = f"several inputs; give a mapping of {', '.join(specs)} to arrays" if specs else "no inputs; give {}"
            raise InvalidRequestError(f"the model has {names}")
        inputs = {next(iter(specs)): inputs}
    for name in inputs:
        if name not in specs:
            raise InvalidRequestError(f"the model has no input {name!r}; its inputs: {', '.join(specs)}")
    for name, value in inputs.items():
        yield specs[name], _cast(np.asarray(value), specs[name])


def _cast(array: Array, spec: Mapping[str, Any]) -> Array:
    datatype = spec["datatype"]
    if datatype not in DTYPES:
        raise InvalidRequestError(f"input {spec['name']!r} is {datatype}, which this client does not support")
    if datatype == "BYTES":
        return array.astype(object)
    if datatype == "BF16":
        if array.dtype.name == "bfloat16":
            return array
        wanted = np.dtype(np.float32)
    else:
        wanted = np.dtype(DTYPES[datatype])
    # Python integers arrive as int64; only their values must fit.
    fits = np.can_cast(array.dtype, wanted, "same_kind") or (array.dtype.kind in "iu" and wanted.kind in "iuf")
    with np.errstate(over="ignore", invalid="ignore"):
        cast = np.ascontiguousarray(array, dtype=wanted).reshape(array.shape) if fits else array
    if not fits or (not np.array_equal(cast, array) if wanted.kind in "iu" else _overflows(cast, array)):
        raise InvalidRequestError(
            f"input {spec['name']!r} requires {datatype}, which cannot hold the array of {array.dtype}"
        )
    return cast


def _overflows(cast: Array, array: Array) -> bool:
    """Whether finite numbers became infinite."""
    if cast.dtype.kind != "f" or cast.dtype == array.dtype:
        return False
    infinite = np.isinf(cast)
    return bool(infinite.any()) and bool(np.isfinite(array[infinite]).any())


def _text(element: Any) -> str:
    return element.decode() if isinstance(element, bytes) else str(element)


def to_bytes(array: Array, datatype: str) -> bytes:
    """Encode a tensor as the protocol's bytes."""
    if datatype == "BYTES":
        parts: list[bytes] = []
        for element in array.reshape(-1):
            data = element if isinstance(element, bytes) else str(element).encode()
            parts += (_LENGTH.pack(len(data)), data)
        return b"".join(parts)
    if datatype == "BF16" and array.dtype.name != "bfloat16":
        bits = array.view(np.uint32).astype(np.uint64)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to nearest even
        # The low bits of a NaN must not carry over into its sign and exponent.
        return np.where(np.isnan(array), bits >> 16 | 0x40, nearest).astype("<u2").tobytes()
    return array.tobytes()


def from_bytes(data: bytes, datatype: str, shape: Sequence[int]) -> Array:
    """Decode a tensor from the protocol's bytes.

    Raises:
        ServerError: The number of bytes does not match the shape.
    """
    try:
        if datatype == "BYTES":
            elements, at = [], 0
            while at < len(data):
                (length,) = _LENGTH.unpack_from(data, at)
                elements.append(data[at + 4 : at + 4 + length])
                at += 4 + length
            array = np.empty(len(elements), dtype=object)
            array[:] = elements
            return array.reshape(shape)
        if datatype == "BF16":
            bits = np.frombuffer(data, np.uint16).astype(np.uint32) << 16
            return bits.view(np.float32).reshape(shape)
        return np.frombuffer(data, DTYPES[datatype]).reshape(shape)
    except (ValueError, KeyError, struct.error) as error:
        raise ServerError(f"the response holds an invalid tensor ({datatype}, {list(shape)}): {error}") from None


def decode_infer(headers: Mapping[str, str], body: bytes) -> InferResult:
    """Parse the response to an inference request.

    Raises:
        ServerError: The response is invalid.
    """
    try:
        length = int(headers.get(HEADER_LENGTH, len(body)))
        document = json.loads(body[:length])
        outputs: dict[str, Array] = {}
        at = length
        for item in document["outputs"]:
            size = (item.get("parameters") or {}).get("binary_data_size")
            if size is not None:
                outputs[item["name"]] = from_bytes(body[at : at + size], item["datatype"], item["shape"])
                at += size
            elif item["datatype"] == "BYTES":
                flat = np.array(item["data"], dtype=object).reshape(-1)  # it may be nested
                texts = [text.encode() for text in flat]
                outputs[item["name"]] = np.array(texts, dtype=object).reshape(item["shape"])
            else:
                outputs[item["name"]] = np.array(item["data"], DTYPES[item["datatype"]]).reshape(item["shape"])
        return InferResult(
            document["model_name"],
            document.get("model_version"),
            outputs,
            document.get("id"),
            document.get("parameters") or {},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ServerError(f"the response does not follow the Open Inference Protocol: {error!r}") from None


def encode_npy(array: Any) -> bytes:
    """Encode an array as a .npy file.

    Raises:
        InvalidRequestError: The array holds Python objects, which that format does not support.
    """
    array = np.asarray(array)
    if array.dtype.hasobject:
        raise InvalidRequestError("the plain API requires numbers; the array holds Python objects")
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def encode_rows(inputs: Any) -> tuple[str, bytes]:
    """The body for the plain API, and its content type: CSV for text, JSON for a table, .npy for anything else.

    Raises:
        InvalidRequestError: A value cannot be sent.
    """
    if isinstance(inputs, str):
        return "text/csv", inputs.encode()
    inputs = columns_of(inputs)
    records = isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], Mapping)
    if not records and not isinstance(inputs, Mapping):
        return "application/x-npy", encode_npy(inputs)
    try:
        return "application/json", json.dumps({"inputs": inputs}, default=_number, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"the table can't be sent as JSON: {error}") from None


def columns_of(inputs: Any) -> Any:
    """The columns of a DataFrame (pandas or compatible); other values unchanged."""
    return inputs.to_dict("list") if hasattr(inputs, "to_dict") and hasattr(inputs, "columns") else inputs


def _number(value: Any) -> Any:
    """A numpy number or array as a JSON value."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"a value of type {type(value).__name__} is neither a number nor a string")


def decode_predict(body: bytes) -> PredictResult:
    """Parse the response of the plain API.

    Raises:
        ServerError: The response is invalid.
    """
    try:
        document = json.loads(body)
        outputs = {name: _array(values) for name, values in document["outputs"].items()}
        predictions = None
        if "predictions" in document:
            predictions = [_prediction(item) for item in document["predictions"]]
        return PredictResult(document["model"], document["version"], outputs, predictions)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ServerError(f"the response does not follow the plain API: {error!r}") from None


def _array(values: Any) -> Array:
    array: Array = np.array(values)
    if array.dtype.kind == "f" and (np.abs(array) >= 2.0**63).any():
        # numpy converts mixed small integers and large unsigned 64-bit integers to floats.
        exact = np.array(values, dtype=object)
        if all(type(item) is int for item in exact.reshape(-1)):
            return exact.astype(np.uint64)
    return array


def _prediction(item: Mapping[str, Any]) -> Prediction:
    ranked = item.get("top_k")
    top_k = None if ranked is None else [(entry["label"], entry["probability"]) for entry in ranked]
    return Prediction(item["label"], item["probability"], top_k)
