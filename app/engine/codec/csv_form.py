"""Tables as CSV (RFC 4180), in requests and responses."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from app.engine.codec import Body, HeaderList
from app.engine.codec.described import DescribedModel
from app.engine.codec.table import Table, TableColumn
from app.engine.codec.values import array_from_list
from app.engine.results import InferenceResult
from app.errors import InvalidRequestError
from app.runtime.tensors import Array

CSV = b"text/csv"
_HEADER = (b"content-type", b"text/csv; charset=utf-8")
_INTEGER = re.compile(r"[+-]?\d{1,19}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
_NOT_FINITE = {
    "": None,
    "nan": "NaN",
    "na": "NaN",
    "inf": "Infinity",
    "infinity": "Infinity",
    "-inf": "-Infinity",
    "-infinity": "-Infinity",
}
_TRUTH = {"true": True, "1": True, "false": False, "0": False}


def read_csv(model: DescribedModel, table: Table | None, body: Body, max_rows: int, *, nan: bool) -> dict[str, Array]:
    """Decode the inputs of a model from CSV.

    The first line names the columns, in any order; for a model without column names, every line is a row of numbers. An
    unnamed first column, the index of pandas, is ignored.

    Args:
        model: The model.
        table: Its columns, or None for a model without column names.
        body: The text, in UTF-8.
        max_rows: Maximum rows of a request.
        nan: Whether to accept NaN and infinities, and empty cells as NaN.

    Raises:
        InvalidRequestError: The CSV is invalid; the message names the line, the column, the value and the rule.
    """
    try:
        text = bytes(body).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"the CSV is not valid UTF-8 at byte {error.start}") from None
    lines: list[int] = []
    rows: list[list[str]] = []
    header: list[str] | None = None
    for line, cells in _lines(text):
        if header is None and table is not None:
            header = cells
            continue
        if len(rows) >= max_rows:
            raise InvalidRequestError(f"the CSV has more than {max_rows} rows, the maximum of a request")
        rows.append(cells)
        lines.append(line)
    if table is None:
        return _numbers(model, rows, lines, nan=nan)
    if header is None:
        raise InvalidRequestError(f"the CSV is empty; its first line must name the columns: {table.names}")
    return _named(table, header, rows, lines, nan=nan)


def _lines(text: str) -> Iterator[tuple[int, list[str]]]:
    """Non-empty lines, each with its number."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise InvalidRequestError(f"line {reader.line_num} of the CSV: {error}") from None


def _named(
    table: Table, header: list[str], rows: Sequence[list[str]], lines: Sequence[int], *, nan: bool
) -> dict[str, Array]:
    names = [name.strip() for name in header]
    skipped = 1 if names[0] == "" and len(names) == len(table.columns) + 1 else 0
    table.check(names[skipped:], "the first line of the CSV")
    _check_widths(rows, lines, len(names))
    position = {name: index for index, name in enumerate(names)}
    values = {column.name: [_value(row[position[column.name]], column) for row in rows] for column in table.columns}
    return table.feeds(values, lambda name, row: f"line {lines[row]}, column {name!r},", nan=nan)


def _numbers(model: DescribedModel, rows: Sequence[list[str]], lines: Sequence[int], *, nan: bool) -> dict[str, Array]:
    """Rows of numbers, for a model without column names."""
    inputs = model.inputs
    if len(inputs) != 1 or len(inputs[0].shape) != 2 or inputs[0].datatype == "BYTES":
        raise InvalidRequestError(
            f"CSV requires a model with named columns or with one input of rows; {model.name!r} has neither"
        )
    spec = inputs[0]
    width = spec.shape[1] if spec.shape[1] is not None else len(rows[0]) if rows else 0
    _check_widths(rows, lines, width)
    column = TableColumn(spec.name, "number", spec)
    flat = [_value(cell, column) for row in rows for cell in row]
    if rows and isinstance(flat[0], str) and flat[0] not in _NOT_FINITE.values():
        raise InvalidRequestError(
            f"line {lines[0]} of the CSV begins with {rows[0][0][:40]!r}; model {model.name!r} has no column names, so "
            "send only rows of numbers, without a line of names"
        )
    found = array_from_list(
        flat, spec, spec.name, lambda at: f"line {lines[at // width]}, cell {at % width + 1},", nan=nan
    )
    return {spec.name: found.reshape(len(rows), width)}


def _check_widths(rows: Sequence[list[str]], lines: Sequence[int], width: int) -> None:
    for line, cells in zip(lines, rows, strict=True):
        if len(cells) != width:
            raise InvalidRequestError(f"line {line} of the CSV has {len(cells)} cells; expected {width}")


def _value(cell: str, column: TableColumn) -> Any:
    """The JSON value of a cell in its column; a string if it is not a valid value."""
    if column.kind in ("category", "text"):
        return cell
    cell = cell.strip()
    if column.kind == "boolean":
        return _TRUTH.get(cell.lower(), cell)
    if _INTEGER.fullmatch(cell):
        return int(cell)
    if _NUMBER.fullmatch(cell):
        return float(cell)
    return _NOT_FINITE.get(cell.lower(), cell)


@dataclass(frozen=True, slots=True)
class CsvResponse:
    """A request for a response in CSV.

    Attributes:
        indices: Indices of the outputs to write, among the computed outputs.
    """

    indices: tuple[int, ...]

    def encode(self, model: DescribedModel, result: InferenceResult) -> tuple[HeaderList, bytes]:
        """Write the response to one request: the most likely label if the model has labels, then a column per number.

        Raises:
            InvalidRequestError: The outputs do not form one table.
        """
        batch, start, stop = result.batch, result.start, result.stop
        names: list[str] = []
        columns: list[list[Any]] = []
        if model.labelled is not None and model.labelled.labels and batch.probabilities is not None:
            best = batch.best()[slice(None) if batch.whole else slice(start, stop)]
            names += ["label", "probability"]
            columns += [[model.labelled.labels[label] for label, _ in best], [text.decode() for _, text in best]]
        for index in self.indices:
            name, array = batch.output_names[index], batch.values(index, start, stop)
            if array.ndim not in (1, 2):
                raise InvalidRequestError(
                    f"output {name!r} has {array.ndim} dimensions, CSV at most 2; choose another with ?output=NAME"
                )
            if columns and len(array) != len(columns[0]):
                raise InvalidRequestError(
                    f"output {name!r} has {len(array)} rows, others {len(columns[0])}; choose one with ?output=NAME"
                )
            wide = array.reshape(len(array), array.shape[1] if array.ndim == 2 else 1)
            ends = model.output_labels.get(name, ())
            if len(ends) != wide.shape[1]:
                ends = [str(position) for position in range(wide.shape[1])]
            names += [name] if wide.shape[1] == 1 else [f"{name}[{end}]" for end in ends]
            columns += [_texts(column) for column in wide.T]
        stream = io.StringIO()
        writer = csv.writer(stream)
        writer.writerow(names)
        writer.writerows(zip(*columns, strict=True))
        return [_HEADER], stream.getvalue().encode()


def _texts(column: Array) -> list[Any]:
    """The shortest decimal representations that parse to the same numbers."""
    if column.dtype.kind == "b":
        return ["true" if value else "false" for value in column]
    return list(map(str, column)) if column.dtype.kind == "f" else list(column.tolist())
