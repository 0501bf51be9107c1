"""Abstract values of the proof: row axis, shape, and elements if they are sizes."""

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

    Seen as (outer, rows, inner), the block of a row is what the graph computes from that row alone. Both factors are
    1 unless a reshape merged axes, or rows were repeated.
    """

    axis: int
    outer: Number = 1
    inner: Number = 1

    @property
    def is_plain(self) -> bool:
        """Whether the axis holds the rows and nothing else."""
        return self.outer == 1 and self.inner == 1

    def on(self, axis: int) -> "Batch":
        """A copy on another axis."""
        return Batch(axis, self.outer, self.inner)


@dataclass(frozen=True, slots=True)
class Places:
    """Elements that follow from the index of the row.

    Attributes:
        stride: each element is the index times this, and what ``offset`` says more; None where that is not known.
        offset: whether something is added that is not negative, and no position.
        parts: which places along the last axis are the index itself; the others have nothing to do with it.
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
    """Items of the batch axis that a condition over them chose, see ``picked``.

    Attributes:
        choice: a symbol of the condition.
        index: whether the elements are the places of the items along the axis.
    """

    choice: Size
    index: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A tensor in a run of any number of rows.

    Attributes:
        shape: its sizes, or None where the rank is not known.
        batch: the axis of the rows; without one the tensor is the same whatever the rows are, unless ``counted``.
        elements: its elements where they are few and follow from constants and sizes.
        counted: whether an element depends on the number of rows.
        places: how the elements follow from the index of the row, if they do.
        is_index: whether the elements are known not to be negative.
        padding: the text that fills rows up to the longest one, where a tokenizer did that; else None.
        picked: the choice where the batch axis has only the items that the data choose, however its shape says; else
            None.
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
        """How many axes it has.

        Raises:
            Decision: that is not known.
        """
        return len(self.sizes)

    @property
    def sizes(self) -> Shape:
        """Its shape.

        Raises:
            Decision: that is not known.
        """
        if self.shape is None:
            raise unproven("takes a tensor of a rank that is not known")
        return self.shape

    @property
    def is_shared(self) -> bool:
        """Whether it is the same whatever the rows are and how many."""
        return self.batch is None and not self.counted

    @property
    def is_plain(self) -> bool:
        """Whether an axis holds all rows and nothing else, and the elements are no positions and no padding."""
        whole = self.places is None and self.padding is None and self.picked is None
        return self.batch is not None and self.batch.is_plain and whole


@dataclass(frozen=True, slots=True, eq=False)
class Listed:
    """A sequence of tensors, each known by itself."""

    items: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Maps:
    """A sequence of maps, one for each row."""


@dataclass(frozen=True, slots=True, eq=False)
class Failure:
    """A value of which a node has decided that it is not one block for each row."""

    finding: Finding
    node: str
    op_type: str
    reason: str
    ragged: bool = False


Value = Tensor | Listed | Maps | Failure
SHARED = Tensor(None)


def tensor_of(algebra: Algebra, shape: Sequence[Number], batch: Batch | None = None) -> Tensor:
    """A tensor of a shape; the size of its batch axis is taken from ``batch``.

    Raises:
        Decision: another axis depends on the number of rows.
    """
    sizes = list(shape)
    if len(sizes) > _MAX_RANK:
        raise unproven(f"makes a tensor of {len(sizes)} axes")
    if batch is not None:
        if counts(batch.outer) or counts(batch.inner):
            raise mixes("merges the rows with another axis of the size of the batch")
        sizes[batch.axis] = algebra.times(algebra.times(batch.outer, algebra.rows), batch.inner)
    for axis, size in enumerate(sizes):
        if counts(size) and (batch is None or axis != batch.axis):
            if batch is not None:
                raise mixes("gives a second axis of the size of the batch, so that rows meet one another")
            raise mixes("gives a tensor whose size follows the number of rows, but not one block for each row")
    return Tensor(tuple(sizes), batch)


def elements_of(elements: Array | Sequence[Element] | Element) -> Tensor:
    """A tensor whose elements are known."""
    array = as_elements(elements)
    if array.size > MAX_ELEMENTS:
        if any(counts(value) for value in array.flat):
            raise unproven("gives more sizes than are followed")
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
        Decision: rows meet other rows, or a shape is not known.
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
            raise mixes("combines rows with other rows, as the batch is on another axis of each input")
        if other != batch:
            raise unproven("combines tensors that hold different numbers of parts for each row")
    for tensor in tensors:
        if tensor.batch is None:
            check_no_rows(tensor, batch.axis - (rank - tensor.rank))
    return tuple(sizes), batch


def check_no_rows(tensor: Tensor, axis: int) -> None:
    """Check that a shared tensor says the same of each row: it lacks the axis, or has the size 1 there.

    Raises:
        Decision: it doesn't.
    """
    if axis < 0 or tensor.sizes[axis] == 1:
        return
    size = tensor.sizes[axis]
    if isinstance(size, int):
        raise mixes(f"combines the batch axis with a tensor of {size} rows that does not come from the batch")
    raise unproven("combines the batch axis with a tensor that may have several rows and does not come from the batch")


def meet(algebra: Algebra, left: Number, right: Number) -> Number:
    """The size of an axis of two tensors that are broadcast to one another."""
    if right in {left, 1}:
        return left
    if left == 1:
        return right
    # An axis cut at an end that lies beyond it would not fit one that reaches that end.
    if algebra.end_of(left) == right or algebra.end_of(right) == left:
        return right if algebra.end_of(left) == right else left
    if counts(left) != counts(right):
        return left if counts(left) else right
    if isinstance(left, int) or isinstance(right, int):
        return left if isinstance(left, int) else right
    return algebra.opaque("broadcast", *sorted((left, right), key=lambda size: [atom.number for atom in size.atoms]))
