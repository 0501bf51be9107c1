"""Tables: rows of named columns, checked by name and converted to the inputs of a model."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from app.engine.codec.described import Column, DescribedModel
from app.engine.codec.values import array_from_list, describe
from app.errors import InvalidRequestError
from app.runtime.tensors import Array, TensorSpec

Kind = Literal["number", "integer", "boolean", "category", "text"]
Place = Callable[[str, int], str]
"""The place of a value in the body, for messages: by column name and row."""

_SHOWN = 20


@dataclass(frozen=True)
class TableColumn:
    """A column of a table.

    Attributes:
        name: Name of the column.
        kind: Type of its values.
        spec: Spec of the tensor that holds the values.
        categories: The allowed strings of a categorical column, in the order of their codes 0, 1, …
    """

    name: str
    kind: Kind
    spec: TensorSpec
    categories: tuple[str, ...] = ()

    def array(self, values: Sequence[Any], place: Callable[[int], str], *, nan: bool) -> Array:
        """The values as an array of shape (rows,) in the type of the input; whole numbers are cast if this is lossless.

        Raises:
            InvalidRequestError: A value has the wrong type, or the input's type cannot hold it.
        """
        if self.categories:
            codes = {category: code for code, category in enumerate(self.categories)}
            coded = [codes.get(value, -1) if isinstance(value, str) else -1 for value in values]
            if -1 in coded:
                row = coded.index(-1)
                shown = ", ".join(self.categories[:_SHOWN]) + (", …" if len(self.categories) > _SHOWN else "")
                raise InvalidRequestError(f"{place(row)} is {describe(values[row])}; expected one of: {shown}")
            return np.array(coded, self.spec.dtype)
        if self.kind == "boolean" and self.spec.datatype != "BOOL":
            for row, value in enumerate(values):
                if not isinstance(value, bool):
                    raise InvalidRequestError(f"{place(row)} is {describe(value)}; expected true or false")
            return np.array(values, self.spec.dtype)
        if self.kind == "integer":
            for row, value in enumerate(values):
                if isinstance(value, float) and math.isfinite(value) and not value.is_integer():
                    raise InvalidRequestError(f"{place(row)} is {value}; expected a whole number")
        if self.spec.dtype.kind in "iu" and self.spec.datatype != "BF16":
            values = [int(value) if isinstance(value, float) and value.is_integer() else value for value in values]
        return array_from_list(list(values), self.spec, self.name, place, nan=nan)


class Table:
    """The columns of a model that takes rows of a table.

    Args:
        columns: Columns in the order of the model.
        spec: The only input, of shape (rows, columns), that holds the columns; None if each column is an input.
    """

    def __init__(self, columns: Sequence[TableColumn], spec: TensorSpec | None) -> None:
        self.columns = tuple(columns)
        self._spec = spec
        self._names = {column.name for column in columns}

    @property
    def names(self) -> str:
        """Names of the columns, for a message."""
        shown = [column.name for column in self.columns[:_SHOWN]]
        more = len(self.columns) - len(shown)
        return ", ".join(shown) + (f" and {more} more" if more else "")

    def check(self, given: Sequence[Any], where: str) -> None:
        """Check that the names are those of the model, in any order.

        Args:
            given: The names.
            where: Their place in the body, for messages.

        Raises:
            InvalidRequestError: A name is missing, unknown, or given twice.
        """
        if len(given) == len(self._names) and set(map(str, given)) == self._names:
            return
        seen: set[str] = set()
        for name in given:
            if not isinstance(name, str) or name not in self._names:
                shown = repr(name[:40]) if isinstance(name, str) else describe(name)
                raise InvalidRequestError(f"{where} has an unknown column {shown}; the columns are: {self.names}")
            if name in seen:
                raise InvalidRequestError(f"{where} has the column {name[:40]!r} twice")
            seen.add(name)
        missing = [column.name for column in self.columns if column.name not in seen]
        if missing:
            raise InvalidRequestError(
                f"{where} lacks the column {missing[0][:40]!r}; the columns are: {self.names}"
                + (f" ({len(missing)} are missing)" if len(missing) > 1 else "")
            )

    def feeds(self, values: Mapping[str, Sequence[Any]], place: Place, *, nan: bool) -> dict[str, Array]:
        """Build the inputs of the model.

        Args:
            values: Values of each column, in equal numbers; the names have been checked.
            place: Returns the place of a value in the body.
            nan: Whether to accept NaN and infinities.

        Raises:
            InvalidRequestError: A value has the wrong type, or columns differ in length.
        """
        first = self.columns[0].name
        for column in self.columns:
            if len(values[column.name]) != len(values[first]):
                raise InvalidRequestError(
                    f"column {column.name!r} has {len(values[column.name])} values and column {first!r} has "
                    f"{len(values[first])}; all must have the same number"
                )
        arrays = [
            column.array(values[column.name], lambda row, name=column.name: place(name, row), nan=nan)  # type: ignore[misc]
            for column in self.columns
        ]
        if self._spec is not None:
            return {self._spec.name: np.stack(arrays, axis=1)}
        return {
            column.name: array.reshape(-1, *(1,) * (len(column.spec.shape) - 1))
            for column, array in zip(self.columns, arrays, strict=True)
        }


def table_of(model: DescribedModel) -> Table | None:
    """The table that a model takes, or None: from the columns of its card, or because each input is a column."""
    inputs = model.inputs
    if model.columns is not None:
        return Table([_described(column, inputs[0]) for column in model.columns], inputs[0])
    if not inputs or not all(spec.shape in ((None,), (None, 1)) and not spec.any_rank for spec in inputs):
        return None
    return Table([TableColumn(spec.name, _kind(spec), spec) for spec in inputs], None)


def _described(column: Column, spec: TensorSpec) -> TableColumn:
    return TableColumn(column.name, column.type, spec, tuple(column.categories or ()))


def _kind(spec: TensorSpec) -> Kind:
    if spec.datatype == "BF16":
        return "number"
    by_dtype: dict[str, Kind] = {"b": "boolean", "O": "text", "i": "integer", "u": "integer"}
    return by_dtype.get(spec.dtype.kind, "number")
