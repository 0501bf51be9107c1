"""Table columns in requests of the Open Inference Protocol, in the format of MLServer's pandas codec ("pd")."""

from typing import Any

from app.engine.codec.described import DescribedModel
from app.engine.codec.table import Table
from app.engine.codec.values import describe
from app.errors import InvalidRequestError
from app.runtime.tensors import Array

PANDAS = "pd"


def read_columns(
    model: DescribedModel, table: Table | None, document: dict[str, Any], *, nan: bool
) -> dict[str, Array]:
    """Decode the inputs of a model from a request with one input per table column, of shape (rows,) or (rows, 1).

    Args:
        model: The model.
        table: Its columns, or None for a model without column names.
        document: The request.
        nan: Whether to accept NaN and infinities.

    Raises:
        InvalidRequestError: The request is invalid; the message names the column, the row and the rule.
    """
    if table is None:
        raise InvalidRequestError(f"the request has content_type 'pd', but model {model.name!r} has no column names")
    items = document.get("inputs")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise InvalidRequestError(f"'inputs' is {describe(items)}; expected a list with an object per column")
    table.check([item.get("name") for item in items], "'inputs'")
    values = {item["name"]: _values(item) for item in items}
    return table.feeds(values, lambda name, row: f"inputs.{name}.data[{row}]", nan=nan)


def _values(item: dict[str, Any]) -> list[Any]:
    name, shape, data = item["name"], item.get("shape"), item.get("data")
    if not isinstance(data, list):
        raise InvalidRequestError(f"column {name!r}: 'data' is {describe(data)}; expected a list")
    if data and all(isinstance(cell, list) and len(cell) == 1 for cell in data):
        data = [cell[0] for cell in data]
    if shape not in ([len(data)], [len(data), 1]):
        raise InvalidRequestError(
            f"column {name!r} has the shape {str(shape)[:80]} and {len(data)} values; expected [{len(data)}, 1]"
        )
    return data
