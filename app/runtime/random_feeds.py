"""Random inputs for trial runs."""

from collections.abc import Mapping, Sequence

import numpy as np

from app.runtime.tensors import Array, TensorSpec

_SIZE = 2  # size of a dynamic dimension other than the rows


def random_feeds(
    inputs: Sequence[TensorSpec], rows: int, axes: Mapping[str, int | None] | None = None
) -> dict[str, Array]:
    """Random inputs with a fixed seed; dynamic dimensions other than the rows have size 2.

    Args:
        inputs: Inputs of the graph.
        rows: Number of rows.
        axes: The axis of the rows in each input; None selects the first axis if it is dynamic.

    Raises:
        MemoryError, OverflowError, ValueError: An input of that shape cannot be made.
    """
    rng = np.random.default_rng(0)
    return {spec.name: _random_tensor(spec, rows, 0 if axes is None else axes[spec.name], rng) for spec in inputs}


def _random_tensor(spec: TensorSpec, rows: int, axis: int | None, rng: np.random.Generator) -> Array:
    sizes = [_SIZE if size is None else size for size in spec.shape]
    if axis is not None and axis < len(sizes) and spec.shape[axis] is None:
        sizes[axis] = rows
    shape = tuple(sizes)
    if spec.datatype == "BF16":
        return (rng.standard_normal(shape).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if spec.dtype.kind == "f":
        return rng.standard_normal(shape).astype(spec.dtype)
    numbers = rng.integers(0, 2, shape)
    if axis == 0 and shape and shape[0] > 1:
        numbers[0] = 1 - numbers[1]  # equal rows would hide that the model mixes them
    return numbers.astype(str).astype(object) if spec.datatype == "BYTES" else numbers.astype(spec.dtype)
