"""Inference requests from validated input tensors."""

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
    """Make an inference request from valid tensors; check the constraints between them.

    Args:
        model: The model to run.
        feeds, output_names, priority, timeout_us: See ``InferenceRequest``.

    Raises:
        InvalidRequestError: The inputs differ in rows, have none, or are empty although the model forbids that.
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
                    "all inputs must have the same number of rows"
                )
    if rows == 0 and not model.takes_no_rows:
        raise InvalidRequestError("the inputs have no rows; at least 1 is required")
    if rows == 0 or optional:
        # Run alone: an empty request cannot share a run, and an optional input's value applies to all rows of a run.
        return InferenceRequest(feeds, output_names, rows, object(), priority, timeout_us)
    if signature.fixed_rows:
        return InferenceRequest(feeds, output_names, rows, output_names, priority, timeout_us)
    # In the order of the model, independent of the order in the request.
    key = (output_names, *(feeds[spec.name].shape[1:] for spec in inputs))
    return InferenceRequest(feeds, output_names, rows, key, priority, timeout_us)


def _require_values(feeds: dict[str, Array]) -> None:
    for name, array in feeds.items():
        if not array.size:
            raise InvalidRequestError(
                f"input {name!r} has the empty shape {list(array.shape)}; this model requires values"
            )


def _prepare_by_axes(
    axes: Mapping[str, int | None],
    feeds: dict[str, Array],
    output_names: tuple[str, ...],
    priority: int,
    timeout_us: int,
) -> InferenceRequest:
    """Make a request for a model with rows on an axis other than the first, or with inputs that requests share."""
    rows, first = None, ""
    key: list[Hashable] = [output_names]
    for name, axis in axes.items():
        if name not in feeds:  # an optional input that the request omits
            continue
        array = feeds[name]
        if axis is None:
            # Only requests with equal values may share a run.
            key.append((array.shape, array.tobytes() if array.dtype.kind != "O" else tuple(array.reshape(-1).tolist())))
            continue
        if rows is None:
            rows, first = array.shape[axis], name
        elif array.shape[axis] != rows:
            raise InvalidRequestError(
                f"input {name!r} has {array.shape[axis]} rows (axis {axis}) and input {first!r} has {rows}; "
                "all inputs must have the same number of rows"
            )
        key.append(array.shape[:axis] + array.shape[axis + 1 :])
    if not rows:
        raise InvalidRequestError("the inputs have no rows; at least 1 is required")
    return InferenceRequest(feeds, output_names, rows, tuple(key), priority, timeout_us)
