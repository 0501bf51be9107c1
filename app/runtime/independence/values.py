"""Abstract values of the proof: row axis, shape, and the elements of shape tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.runtime.independence.decisions import Finding, mixes, unproven
from app.runtime.independence.graph import MAX_ELEMENTS, Array
from app.runtime.independence.sizes import Algebra, Element, Number, Size, counts

_MAX_RANK = 64
Shape = tuple[Number, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """The axis that carries the rows: its size is ``outer`` · number of rows · ``inner``.

    In the view (outer, rows, inner), the graph computes the block of a row from that row only. Both factors are
    1 unless a reshape merged axes, or rows were repeated.
    """

    axis: int
    outer: Number = 1
    inner: Number = 1

    @property
    def is_plain(self) -> bool:
        """Whether the axis holds only the rows."""
        return self.outer == 1 and self.inner == 1

    def on(self, axis: int) -> "Batch":
        """A copy on another axis."""
        return Batch(axis, self.outer, self.inner)


@dataclass(frozen=True, slots=True)
class Places:
    """Elements that are computed from the index of the row.

    Attributes:
        stride: Each element is the index times ``stride``, plus an offset if ``offset`` is set; None if unknown.
        offset: Whether a non-negative value is added that is not a position.
        parts: The positions along the last axis that hold the index itself; the others do not depend on it.
    """

    stride: Number | None = None
    offset: bool = False
    parts: tuple[bool, ...] = ()

    @property
    def is_exact(self) -> bool:
        """Whether each element is the index of its row."""
        return self.stride == 1 and not self.offset


@dataclass(frozen=True, slots=True)
class Picked:
    """Items of the batch axis that a condition on them chose, see ``picked``.

    Attributes:
        choice: A symbol of the condition.
        index: Whether the elements are the positions of the items along the axis.
    """

    choice: Size
    index: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A tensor in a run with any number of rows.

    Attributes:
        shape: Its sizes, or None if the rank is unknown.
        batch: The axis of the rows; without one the tensor does not depend on the rows, unless ``counted``.
        elements: Its elements if they are few and computed from constants and sizes.
        counted: Whether an element depends on the number of rows.
        places: How the elements are computed from the index of the row, if they are.
        is_index: Whether the elements are known to be non-negative.
        padding: The string that pads rows to the longest one after a tokenizer; else None.
        picked: The choice, if the batch axis holds only items chosen by the data; else None.
    """

    shape: Shape | None
    batch: Batch | None = None
    elements: Array | None = None
    counted: bool = False
    places: "Places | None" = None
    padding: str | None = None
    is_index: bool = False
    picked: Picked | None = None

    @property
    def rank(self) -> int:
        """Number of axes.

        Raises:
            Decision: The rank is unknown.
        """
        return len(self.sizes)

    @property
    def sizes(self) -> Shape:
        """The shape.

        Raises:
            Decision: The rank is unknown.
        """
        if self.shape is None:
            raise unproven("has an input of unknown rank")
        return self.shape

    @property
    def is_shared(self) -> bool:
        """Whether it depends neither on the rows nor on their number."""
        return self.batch is None and not self.counted

    @property
    def is_plain(self) -> bool:
        """Whether an axis holds all rows and only rows, and the elements are neither positions nor padding."""
        whole = self.places is None and self.padding is None and self.picked is None
        return self.batch is not None and self.batch.is_plain and whole


@dataclass(frozen=True, slots=True, eq=False)
class Listed:
    """A sequence of tensors with separate facts for each."""

    items: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Maps:
    """A sequence of maps, one for each row."""


@dataclass(frozen=True, slots=True, eq=False)
class Failure:
    """A value that a node has found not to consist of one block per row."""

    finding: Finding
    node: str
    op_type: str
    reason: str
    ragged: bool = False


Value = Tensor | Listed | Maps | Failure
SHARED = Tensor(None)


def tensor_of(algebra: Algebra, shape: Sequence[Number], batch: Batch | None = None) -> Tensor:
    """Make a tensor of a shape; the size of its batch axis is taken from ``batch``.

    Raises:
        Decision: Another axis depends on the number of rows.
    """
    sizes = list(shape)
    if len(sizes) > _MAX_RANK:
        raise unproven(f"makes a tensor of rank {len(sizes)}; the analysis supports at most {_MAX_RANK}")
    if batch is not None:
        if counts(batch.outer) or counts(batch.inner):
            raise mixes("merges the batch axis with another axis of its size")
        sizes[batch.axis] = algebra.times(algebra.times(batch.outer, algebra.rows), batch.inner)
    for axis, size in enumerate(sizes):
        if counts(size) and (batch is None or axis != batch.axis):
            if batch is not None:
                raise mixes("makes a second axis of the batch size, which combines rows with other rows")
            raise mixes("makes a tensor that grows with the number of rows but not by one block per row")
    return Tensor(tuple(sizes), batch)


def elements_of(elements: Array | Sequence[Element] | Element) -> Tensor:
    """A tensor with known elements."""
    array = as_elements(elements)
    if array.size > MAX_ELEMENTS:
        if any(counts(value) for value in array.flat):
            raise unproven("makes more sizes than the analysis supports")
        return Tensor(array.shape)
    return Tensor(array.shape, elements=array, counted=any(counts(value) for value in array.flat))


def as_elements(values: Array | Sequence[Element] | Element) -> Array:
    """Elements as an array of objects."""
    if isinstance(values, np.ndarray):
        return values
    if not isinstance(values, Sequence):
        single = np.empty((), object)
        single[()] = values
        return single
    found = np.empty(len(values), object)
    for place, value in enumerate(values):
        found[place] = value
    return found


def broadcast(algebra: Algebra, tensors: Sequence[Tensor]) -> tuple[Shape, Batch | None]:
    """The shape and batch axis of tensors that are combined element by element.

    Raises:
        Decision: Rows are combined with other rows, or a shape is unknown.
    """
    rank = max((tensor.rank for tensor in tensors), default=0)
    sizes: list[Number] = [1] * rank
    for tensor in tensors:
        offset = rank - tensor.rank
        for axis, size in enumerate(tensor.sizes):
            sizes[offset + axis] = meet(algebra, sizes[offset + axis], size)
    found = [tensor.batch.on(rank - tensor.rank + tensor.batch.axis) for tensor in tensors if tensor.batch is not None]
    if not found:
        return tuple(sizes), None
    batch = found[0]
    for other in found[1:]:
        if other.axis != batch.axis:
            raise mixes("combines rows with other rows, because the batch is on a different axis of each input")
        if other != batch:
            raise unproven("combines tensors with different numbers of blocks per row")
    for tensor in tensors:
        if tensor.batch is None:
            check_no_rows(tensor, batch.axis - (rank - tensor.rank))
    return tuple(sizes), batch


def check_no_rows(tensor: Tensor, axis: int) -> None:
    """Check that a shared tensor is the same for each row: it lacks the axis, or has size 1 there.

    Raises:
        Decision: It may differ between rows.
    """
    if axis < 0 or tensor.sizes[axis] == 1:
        return
    size = tensor.sizes[axis]
    if isinstance(size, int):
        raise mixes(f"combines the batch axis with a tensor of {size} rows that is not part of the batch")
    raise unproven("combines the batch axis with a tensor outside the batch that may have several rows")


def meet(algebra: Algebra, left: Number, right: Number) -> Number:
    """The broadcast size of an axis of two tensors."""
    if right in {left, 1}:
        return left
    if left == 1:
        return right
    # An axis cut at an end beyond its size would not match one that reaches that end.
    if algebra.end_of(left) == right or algebra.end_of(right) == left:
        return right if algebra.end_of(left) == right else left
    if counts(left) != counts(right):
        return left if counts(left) else right
    if isinstance(left, int) or isinstance(right, int):
        return left if isinstance(left, int) else right
    return algebra.opaque("broadcast", *sorted((left, right), key=lambda size: [atom.number for atom in size.atoms]))
