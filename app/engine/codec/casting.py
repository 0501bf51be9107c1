"""Casting of arrays to the model's type, which may lose only the last digits of a number."""

from dataclasses import replace

import numpy as np

from app.errors import InvalidRequestError
from app.runtime.tensors import ELEMENTS, Array, TensorSpec

_DTYPES = {datatype: dtype for datatype, dtype in ELEMENTS.values() if datatype not in ("BYTES", "BF16")}


def is_castable(datatype: object, spec: TensorSpec) -> bool:
    """Whether numbers of a datatype may be cast to an input's type."""
    return datatype in _DTYPES and spec.datatype in _DTYPES


def declared(spec: TensorSpec, datatype: str) -> TensorSpec:
    """An input with the castable datatype that a request declares."""
    return replace(spec, datatype=datatype, dtype=_DTYPES[datatype])


def cast(array: Array, spec: TensorSpec) -> Array:
    """Cast an array to the type of an input.

    Raises:
        InvalidRequestError: The type cannot hold a number: it is out of range or not an integer.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        found: Array = array.astype(spec.dtype, order="C")
    kept = np.isfinite(found) == np.isfinite(array) if spec.dtype.kind == "f" else found == array
    if not np.all(kept):
        place = [int(index) for index in np.unravel_index(int(np.argmin(kept)), array.shape)]
        raise InvalidRequestError(
            f"input {spec.name!r} holds {array[tuple(place)]} at {place}, beyond what {spec.datatype} can hold"
        )
    return found
