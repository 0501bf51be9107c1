"""Tables in JSON: records, columns, and the 'split' form of pandas."""

from collections.abc import Mapping
from typing import Any

from app.engine.codec import Body
from app.engine.codec.described import DescribedModel
from app.engine.codec.structure import measure
from app.engine.codec.table import Table
from app.engine.codec.values import describe
from app.errors import InvalidRequestError
from app.runtime.tensors import Array

SPLIT_KEYS = ("columns", "data", "index")
_FREE = 4096


def check_size(body: Body, columns: int, max_rows: int) -> None:
    """Refuse a body with more objects, lists or strings than a table of ``max_rows`` rows needs, before parsing it.

    Raises:
        InvalidRequestError: A limit is exceeded; the message names it.
    """
    found = measure(body)
    for what, count, most in (
        ("lists", found.lists, max_rows + columns + _FREE),
        ("objects", found.objects, max_rows + _FREE),
        ("strings", found.strings, 2 * max_rows * columns + _FREE),
    ):
        if count > most:
            raise InvalidRequestError(
                f"the body holds {count} {what}; the maximum for {max_rows} rows and {columns} columns is {most}"
            )


def is_table(value: Any, model: DescribedModel, table: Table | None) -> bool:
    """Whether the rows of a request are a table in one of the three forms, rather than tensors."""
    names = {spec.name for spec in model.inputs}
    if is_whole_table(value) and not {"columns", "data"} <= names:
        return True
    if table is None or not value or not isinstance(value, dict):
        return False
    if set(value) & names:
        # Inputs by name are tensors; inputs of one column each may also be flat lists.
        return set(value) <= {column.name for column in table.columns} and all(map(_is_flat, value.values()))
    return True


def is_whole_table(document: Any) -> bool:
    """Whether a whole body is a table: records, or the 'split' form."""
    if isinstance(document, list):
        return bool(document) and isinstance(document[0], dict)
    return isinstance(document, dict) and "columns" in document and "data" in document


def _is_flat(value: Any) -> bool:
    return isinstance(value, list) and not any(isinstance(item, list) for item in value)


def read_table(value: Any, model: DescribedModel, table: Table | None, where: str, *, nan: bool) -> dict[str, Array]:
    """Decode the inputs of a model from a table.

    Args:
        value: A value for which `is_table` is true.
        model: The model.
        table: Its columns.
        where: Place of the value in the body; empty for the body itself.
        nan: Whether to accept NaN and infinities.

    Raises:
        InvalidRequestError: The table is invalid; the message names the row, the column, the value and the rule.
    """
    if table is None:
        raise InvalidRequestError(
            f"{where or 'the body'} is a table, but model {model.name!r} has no column names; send rows of numbers"
        )
    if isinstance(value, list):
        return _records(value, table, where, nan=nan)
    if "columns" in value and "data" in value:
        return _split(value, table, where, nan=nan)
    return _columns(value, table, where, nan=nan)


def _records(records: list[Any], table: Table, where: str, *, nan: bool) -> dict[str, Array]:
    for row, record in enumerate(records):
        if not isinstance(record, dict):
            raise InvalidRequestError(f"{where}[{row}] is {describe(record)}; expected an object, one value per column")
        table.check(tuple(record), f"{where}[{row}]")
    values = {column.name: [record[column.name] for record in records] for column in table.columns}
    return table.feeds(values, lambda name, row: f"{where}[{row}].{name}", nan=nan)


def _split(value: Mapping[str, Any], table: Table, where: str, *, nan: bool) -> dict[str, Array]:
    dot = f"{where}." if where else ""
    unknown = [key for key in value if key not in SPLIT_KEYS]
    if unknown:
        raise InvalidRequestError(f"{dot}{unknown[0][:40]} is an unknown key; known: {', '.join(SPLIT_KEYS)}")
    columns, data = value["columns"], value["data"]
    if not isinstance(columns, list):
        raise InvalidRequestError(f"{dot}columns is {describe(columns)}; expected a list of names")
    table.check(columns, f"{dot}columns")
    if not isinstance(data, list):
        raise InvalidRequestError(f"{dot}data is {describe(data)}; expected a list of rows")
    for row, cells in enumerate(data):
        if not isinstance(cells, list) or len(cells) != len(columns):
            found = f"{len(cells)} values" if isinstance(cells, list) else describe(cells)
            raise InvalidRequestError(f"{dot}data[{row}] has {found}; expected a list of {len(columns)} values")
    position = {name: index for index, name in enumerate(columns)}
    values = {name: [cells[index] for cells in data] for name, index in position.items()}
    return table.feeds(values, lambda name, row: f"{dot}data[{row}][{position[name]}] ({name})", nan=nan)


def _columns(value: Mapping[str, Any], table: Table, where: str, *, nan: bool) -> dict[str, Array]:
    table.check(tuple(value), where or "the body")
    for name, items in value.items():
        if not isinstance(items, list):
            raise InvalidRequestError(f"{where}.{name[:40]} is {describe(items)}; expected a list with a value per row")
    return table.feeds(value, lambda name, row: f"{where}.{name}[{row}]", nan=nan)
