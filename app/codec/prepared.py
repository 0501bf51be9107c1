"""Input tensors that were checked against their model."""

from app.calls import Call
from app.errors import InvalidRequestError
from app.model import Model
from app.tensors import Array


def prepare(model: Model, feeds: dict[str, Array], output_names: tuple[str, ...]) -> Call:
    """Make a call of tensors that fit the model one by one; checks what only shows when all are there.

    Raises:
        InvalidRequestError: inputs of different numbers of rows, none at all, or empty where the model can't have that.
    """
    if not model.takes_empty:
        for name, array in feeds.items():
            if not array.size:
                raise InvalidRequestError(
                    f"input {name!r} is empty, of shape {list(array.shape)}; this model needs values"
                )
    if not model.batched:
        return Call(feeds, output_names, 1, None)
    arrays = [feeds[spec.name] for spec in model.inputs]  # in one order, whatever order the request has them in
    rows = arrays[0].shape[0]
    if len(arrays) > 1:
        for name, array in feeds.items():
            if array.shape[0] != rows:
                first = model.inputs[0].name
                raise InvalidRequestError(
                    f"input {name!r} has {array.shape[0]} rows and input {first!r} has {rows}; "
                    "all must have the same number"
                )
    if rows == 0:
        raise InvalidRequestError("the inputs hold no rows; at least 1 is needed")
    if model.fixed_rows:
        return Call(feeds, output_names, rows, output_names)
    return Call(feeds, output_names, rows, (output_names, *(array.shape[1:] for array in arrays)))
