"""Binary forms of the plain API: raw rows, and numpy's .npy format, for requests and responses."""

import io

import numpy as np

from app.engine.codec import Body, binary
from app.engine.codec.casting import cast
from app.engine.codec.described import DescribedModel
from app.engine.codec.oip import raw_feeds
from app.engine.codec.preferences import preferences
from app.errors import InvalidRequestError
from app.runtime.tensors import Array

OCTETS = b"application/octet-stream"
NPY = (b"application/x-npy", b"application/npy")
_READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def wanted_form(accept: bytes) -> bytes | None:
    """The form other than JSON that an Accept header prefers; None for JSON.

    Among equally preferred forms, numpy's comes first and JSON last.
    """
    accept = accept.lower()
    if b"octet-stream" not in accept and b"npy" not in accept and b"csv" not in accept:
        return None
    weights = dict(preferences(accept))
    form = max((*NPY, OCTETS, b"text/csv"), key=lambda name: weights.get(name, 0.0))
    liked = weights.get(form, 0.0)
    return form if liked > 0 and liked >= weights.get(b"application/json", 0.0) else None


def from_octets(model: DescribedModel, body: Body, *, nan: bool = False) -> dict[str, Array]:
    """Decode the only input of a model from raw rows in its type (float32 for most models).

    Raises:
        InvalidRequestError: The model has several inputs, a row is incomplete, or a number is NaN or infinite.
    """
    if len(model.inputs) != 1:
        raise InvalidRequestError(f"raw rows require a model with one input; {model.name!r} has {len(model.inputs)}")
    feeds = raw_feeds(model, body)
    if not nan:
        _require_finite(feeds[model.inputs[0].name])
    return feeds


def from_npy(model: DescribedModel, body: Body, *, nan: bool = False) -> dict[str, Array]:
    """Decode the only input of a model from an array in numpy's format.

    Raises:
        InvalidRequestError: The format or shape is wrong, or the model's type cannot hold a number.
    """
    if len(model.inputs) != 1:
        raise InvalidRequestError(f".npy requires a model with one input; {model.name!r} has {len(model.inputs)}")
    spec = model.inputs[0]
    array = _read_npy(body)
    if not spec.accepts(array.shape):
        raise InvalidRequestError(f"the array has shape {list(array.shape)}; expected {spec.readable_shape}")
    if spec.datatype in ("BF16", "BYTES") or not np.can_cast(array.dtype, spec.dtype, "same_kind"):
        raise InvalidRequestError(f"the array is {array.dtype}; input {spec.name!r} requires {spec.datatype}")
    found = cast(array, spec)
    if not nan:
        _require_finite(found)
    return {spec.name: found}


def _read_npy(body: Body) -> Array:
    """A view of the array in the body; its header is validated first."""
    stream = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(stream)
        if version not in _READ_HEADER:
            raise ValueError(f"format version {version} is not one of {', '.join(map(str, _READ_HEADER))}")
        shape, by_columns, dtype = _READ_HEADER[version](stream)
        if dtype.kind not in "?biufc":
            raise ValueError(f"the elements are {dtype}; expected numbers")
        size, there = binary.element_count(shape) * dtype.itemsize, len(body) - stream.tell()
        if min(shape, default=1) < 0 or size != there:
            raise ValueError(f"{dtype} of shape {list(shape)} needs {size} bytes, but {there} follow the header")
        flat = np.frombuffer(body, dtype, binary.element_count(shape), stream.tell() if size else 0)
        return flat.reshape(shape, order="F" if by_columns else "C")
    except Exception as error:  # noqa: BLE001 - evaluating the header, a Python literal, may raise anything
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InvalidRequestError(f"the body is not an array in numpy's .npy format: {reason}") from None


def to_npy(array: Array) -> bytes:
    """Encode an output as a .npy file.

    Raises:
        InvalidRequestError: The output holds strings, which that format stores only as Python objects.
    """
    if array.dtype.kind == "O":
        array = array.astype(str)
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array, order="C"), allow_pickle=False)
    return buffer.getvalue()


def to_octets(array: Array, datatype: str) -> bytes:
    """Encode an output as raw bytes."""
    return binary.to_bytes(array, datatype)


def _require_finite(array: Array) -> None:
    if array.dtype.kind == "f":
        finite = np.isfinite(array)
        if not finite.all():
            place = [int(index) for index in np.unravel_index(int(np.argmin(finite)), array.shape)]
            raise InvalidRequestError(
                f"the number at {place} is {array[tuple(place)]}; numbers must be finite, unless ?nan=allow is given"
            )
