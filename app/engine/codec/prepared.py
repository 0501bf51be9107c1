"""Input tensors that were checked against their model."""

from collections.abc import Hashable, Mapping

from app.engine.codec.described import DescribedModel
from app.engine.request import InferenceRequest
from app.errors import InvalidRequestError
from app.runtime.tensors import Array


def prepare(
    model: DescribedModel,
    feeds: dict[str, Array],
    output_names: tuple[str, ...],
    priority: int = 0,
    timeout_us: int = 0,
) -> InferenceRequest:
    """Make an inference request of valid tensors; check the constraints between them.

    Args:
        model: the model to run.
        feeds, output_names, priority, timeout_us: see ``InferenceRequest``.

    Raises:
        InvalidRequestError: inputs of different numbers of rows, none at all, or empty where the model can't have that.
    """
    if not model.takes_empty:
        _require_values(feeds)
    batching = model.batching
    if not batching.batched:
        rows = (batching.rows_of(feeds) or 1) if batching.input_axes else 1
        return InferenceRequest(feeds, output_names, rows, None, priority, timeout_us)
    signature = model.signature
    optional = bool(signature.optional_inputs) and any(spec.name in feeds for spec in signature.optional_inputs)
    if not batching.rows_first:
        request = _prepare_by_axes(batching.input_axes, feeds, output_names, priority, timeout_us)
        return request._replace(key=object()) if optional else request
    inputs = signature.inputs
    first = inputs[0].name
    rows = feeds[first].shape[0]
    if len(inputs) > 1:
        for spec in inputs:
            name, array = spec.name, feeds[spec.name]
            if array.shape[0] != rows:
                raise InvalidRequestError(
                    f"input {name!r} has {array.shape[0]} rows and input {first!r} has {rows}; "
                    "all must have the same number"
                )
    if rows == 0 and not model.takes_no_rows:
        raise InvalidRequestError("the inputs hold no rows; at least 1 is needed by this model")
    if rows == 0 or optional:
        # Alone: no rows need no company, and the value of an optional input holds for all rows of a run.
        return InferenceRequest(feeds, output_names, rows, object(), priority, timeout_us)
    if signature.fixed_rows:
        return InferenceRequest(feeds, output_names, rows, output_names, priority, timeout_us)
    # In the order of the model, whatever order the request has them in.
    key = (output_names, *(feeds[spec.name].shape[1:] for spec in inputs))
    return InferenceRequest(feeds, output_names, rows, key, priority, timeout_us)


def _require_values(feeds: dict[str, Array]) -> None:
    for name, array in feeds.items():
        if not array.size:
            raise InvalidRequestError(f"input {name!r} is empty, of shape {list(array.shape)}; this model needs values")


def _prepare_by_axes(
    axes: Mapping[str, int | None],
    feeds: dict[str, Array],
    output_names: tuple[str, ...],
    priority: int,
    timeout_us: int,
) -> InferenceRequest:
    """The same for a model whose rows are another axis than the first, or whose requests share an input."""
    rows, first = None, ""
    key: list[Hashable] = [output_names]
    for name, axis in axes.items():
        if name not in feeds:  # an optional input that the request leaves out
            continue
        array = feeds[name]
        if axis is None:
            # Only requests that give it alike may share a run.
            key.append((array.shape, array.tobytes() if array.dtype.kind != "O" else tuple(array.reshape(-1).tolist())))
            continue
        if rows is None:
            rows, first = array.shape[axis], name
        elif array.shape[axis] != rows:
            raise InvalidRequestError(
                f"input {name!r} has {array.shape[axis]} rows (axis {axis}) and input {first!r} has {rows}; "
                "all must have the same number"
            )
        key.append(array.shape[:axis] + array.shape[axis + 1 :])
    if not rows:
        raise InvalidRequestError("the inputs hold no rows; at least 1 is needed")
    return InferenceRequest(feeds, output_names, rows, tuple(key), priority, timeout_us)
