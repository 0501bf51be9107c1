"""Inputs, outputs and training of a model, as the caller describes them for its card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

# meanings of the last axis of an output
KINDS = ("logits", "probabilities", "multilabel", "regression")
# types of the values of a column
COLUMN_TYPES = ("number", "integer", "boolean", "category")


@dataclass(frozen=True)
class Column:
    """A column of an input whose rows are those of a table.

    Attributes:
        name: as clients use it.
        type: "number", "integer", "boolean" or "category", which goes into the model as its place among the categories.
        description: what it means.
        unit: of the numbers, such as "cm".
        categories: the texts that a category may be, in the order of their codes 0, 1, …
    """

    name: str
    type: str = "number"
    description: str | None = None
    unit: str | None = None
    categories: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"name ({self.name!r}) of a column must be a text that is not empty")
        if self.type not in COLUMN_TYPES:
            known = ", ".join(map(repr, COLUMN_TYPES))
            raise ValueError(f"type ({self.type!r}) of column {self.name!r} must be one of {known}")
        if (self.categories is None) == (self.type == "category"):
            raise ValueError(
                f"column {self.name!r} of type {self.type!r}: a category needs categories, and no other type has them"
            )
        if self.categories is not None and len(set(self.categories)) < max(1, len(self.categories)):
            raise ValueError(f"categories of column {self.name!r} must differ, and be at least one")


@dataclass(frozen=True)
class Input:
    """An input of the model.

    Attributes:
        name: as in the graph.
        description: of the expected values.
        columns: of an input of shape (rows, columns), so that rows can be sent by the names of their columns.
        sample_rows: real rows, a value a column as a client sends it.
    """

    name: str
    description: str | None = None
    columns: tuple[Column, ...] | None = None
    sample_rows: tuple[tuple[float | str, ...], ...] | None = None

    def __post_init__(self) -> None:
        if self.columns is not None:
            names = [column.name for column in self.columns]
            if len(set(names)) < max(1, len(names)):
                raise ValueError(f"columns of input {self.name!r} must have names that differ, and be at least one")
        width = len(self.columns or ())
        for row in self.sample_rows or ():
            if len(row) != width:
                raise ValueError(
                    f"sample_rows of input {self.name!r} hold a row of {len(row)} values; the input has {width} columns"
                )

    def check_width(self, shape: Sequence[int]) -> None:
        """Check that the columns match an example input.

        Raises:
            ValueError: the input is no table, or has another number of columns.
        """
        if self.columns is not None and (len(shape) != 2 or shape[1] != len(self.columns)):
            raise ValueError(
                f"input {self.name!r} names {len(self.columns)} columns; its example has the shape {tuple(shape)}, "
                f"which must be (rows, {len(self.columns)})"
            )


@dataclass(frozen=True)
class Output:
    """An output of the model.

    Attributes:
        name: as in the graph.
        description: what it means.
        kind: meaning of the last axis: "logits" or "probabilities" of classes, exactly one of which is right;
            "multilabel", a logit for each label, any number of which is right; "regression", predicted numbers.
        labels: the names of the classes, labels or numbers, one for each entry of the last axis.
        unit: of the numbers of a regression, such as "mg/dL".
    """

    name: str
    description: str | None = None
    kind: str | None = None
    labels: tuple[str, ...] | None = None
    unit: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in (None, *KINDS):
            known = ", ".join(map(repr, KINDS))
            raise ValueError(f"kind ({self.kind!r}) of output {self.name!r} must be one of {known}, or None")
        if self.unit is not None and self.kind != "regression":
            raise ValueError(f"unit ({self.unit!r}) of output {self.name!r} needs kind='regression', not {self.kind!r}")
        if self.unit is not None and not (isinstance(self.unit, str) and self.unit.strip()):
            raise ValueError(f"unit ({self.unit!r}) of output {self.name!r} must be a text such as 'mg/dL', or None")
        if self.labels is not None and not self.labels:
            raise ValueError(f"labels of output {self.name!r} must not be empty")


@dataclass(frozen=True)
class Training:
    """Training data and settings, and held-out metrics of the model and its dense twin."""

    dataset: str | None = None
    train_rows: int | None = None
    test_rows: int | None = None
    epochs: int | None = None
    seed: int | None = None
    duration_s: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    dense_twin_metrics: dict[str, float] = field(default_factory=dict)
