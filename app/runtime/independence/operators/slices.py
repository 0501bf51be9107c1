"""Operators that concatenate, slice or pad along axes."""

from collections.abc import Sequence

from app.runtime.independence.call import Call, Result, listed, operator
from app.runtime.independence.decisions import mixes, unproven
from app.runtime.independence.operators.shapes import numbers
from app.runtime.independence.sizes import Element, Number, Size, counts, is_known, lower
from app.runtime.independence.values import Batch, Places, Tensor, check_no_rows

_UNBOUNDED = 1_000_000_000  # TensorFlow's converter writes this for "to the end"


@operator("Concat", places=True)
@operator("QLinearConcat", domain="com.microsoft")
def concat(call: Call) -> Result:
    """Tensors concatenated along an axis."""
    if call.node.op_type == "QLinearConcat":
        call.shared(0, 1, *(index for index in range(2, len(call.inputs)) if index % 3 != 2))
        tensors = [call.data(index) for index in range(2, len(call.inputs), 3)]
    else:
        tensors = call.tensors()
    return joined(call, tensors, call.integer("axis", 1 if call.version < 4 and not call.node.domain else 0))


def joined(call: Call, tensors: Sequence[Tensor], axis: int) -> Tensor:
    """Tensors concatenated along an axis; along the batch axis all of them must have that batch axis."""
    rank = max(tensor.rank for tensor in tensors)
    axis = call.axis_of(axis, rank)
    if any(tensor.rank != rank for tensor in tensors):
        raise unproven("joins tensors of different rank")
    shape = [
        next(filter(is_known, sizes), sizes[0]) for sizes in zip(*(tensor.sizes for tensor in tensors), strict=True)
    ]
    batches = {tensor.batch for tensor in tensors if tensor.batch is not None}
    shape = list(tensors[0].sizes)
    for tensor in tensors[1:]:
        shape = [one if is_known(one) else other for one, other in zip(shape, tensor.sizes, strict=True)]
    if not batches:
        shape[axis] = _sum(call, [tensor.sizes[axis] for tensor in tensors])
        return call.make(shape)
    if len({batch.axis for batch in batches}) > 1:
        raise mixes("joins tensors with the batch on different axes")
    batch = next(iter(batches))
    if axis == batch.axis:
        return _joined_rows(call, tensors, shape, axis)
    if len(batches) > 1:
        raise unproven("joins tensors with different numbers of blocks per row")
    for tensor in tensors:
        if tensor.batch is None:
            check_no_rows(tensor, batch.axis)
            raise unproven("joins rows with a tensor without a batch axis")
    shape[axis] = _sum(call, [tensor.sizes[axis] for tensor in tensors])
    return _with_places(tensors, call.make(shape, batch), axis)


def _with_places(tensors: Sequence[Tensor], found: Tensor, axis: int) -> Tensor:
    """Tensors concatenated along the last axis, some with the positions of the rows."""
    if all(tensor.places is None for tensor in tensors):
        return found
    if axis != found.rank - 1 or any(not is_known(tensor.sizes[axis]) for tensor in tensors):
        raise mixes("computes with the position of a row in the batch")
    flags = tuple(flag for tensor in tensors for flag in _flags(tensor))
    return Tensor(found.shape, found.batch, places=Places(parts=flags))


def _flags(tensor: Tensor) -> tuple[bool, ...]:
    size, places = tensor.sizes[-1], tensor.places
    if isinstance(size, int) and size <= 64:
        if places is None or places.is_exact:
            return (places is not None,) * size
        if len(places.parts) == size:
            return places.parts
    raise mixes("computes with the position of a row in the batch")


def _joined_rows(call: Call, tensors: Sequence[Tensor], shape: list[Number], axis: int) -> Tensor:
    """Tensors concatenated along the batch axis: each row then has a block in each."""
    if any(tensor.places is not None for tensor in tensors):
        raise mixes("computes with the position of a row in the batch")
    outer: Number = 0
    inner: Number | None = None
    for tensor in tensors:
        if tensor.batch is None:
            raise mixes("joins rows with tensors without a batch axis")
        if inner is not None and inner != tensor.batch.inner:
            raise unproven("joins tensors with different numbers of blocks per row")
        inner = tensor.batch.inner
        outer = call.algebra.plus(outer, tensor.batch.outer)
    return call.make(shape, Batch(axis, outer, 1 if inner is None else inner))


def _sum(call: Call, sizes: Sequence[Number]) -> Number:
    total: Number = 0
    for size in sizes:
        total = call.algebra.plus(total, size)
    return total


@operator("Slice", counts=True)
def cut(call: Call) -> Result:
    """A slice of each axis."""
    tensor = call.data(0)
    if call.version < 10:
        bounds: list[list[Element | None]] = [[*(call.integers(name) or [])] for name in ("starts", "ends")]
        axes = call.axes(9, tensor.rank)
        steps: list[Element | None] = [1] * len(bounds[0])
    else:
        count = call.tensor(1).sizes[0]
        if not isinstance(count, int) or count > 64:
            raise unproven("slices an unknown number of axes")
        bounds = [_known(call, index, count) for index in (1, 2)]
        axes = call.axes(3, tensor.rank)
        steps = _known(call, 4, count) if call.has(4) else [1] * count
    axes = list(range(len(bounds[0]))) if axes is None else axes
    shape, batch = list(tensor.sizes), tensor.batch
    for axis, start, end, step in zip(axes, *bounds, steps, strict=True):
        if batch is not None and axis == batch.axis:
            batch = _cut_rows(call, tensor.sizes[axis], batch, start, end, step)
        elif any(counts(value) for value in (start, end, step)):
            raise mixes("slices another axis at the number of rows")
        else:
            shape[axis] = cut_size(call, shape[axis], start, end, step)
    return call.make(shape, batch)


def _known(call: Call, index: int, count: int) -> list[Element | None]:
    found = call.elements(index)
    return [None] * count if found is None else [*listed(found)]


def cut_size(call: Call, size: Number, start: Element | None, end: Element | None, step: Element | None) -> Number:
    """Number of elements between two positions of an axis."""
    if start is None or end is None or step is None:
        return call.algebra.fresh()
    if is_known(size) and is_known(start) and is_known(end) and is_known(step) and step:
        if step < 0 and end < -size:
            return len(range(*slice(start, None, step).indices(size)))
        return len(range(*slice(start, end, step).indices(size)))
    if start == 0 and step == 1 and (end == size or (is_known(end) and end >= _UNBOUNDED)):
        return size
    if start == 0 and step == 1 and is_known(size) and size > 1 and _is_positive(end):
        return call.algebra.upto(size, numbers([end])[0])
    return call.algebra.opaque("slice", size, start, end, step, low=0, real=False)


def _is_positive(value: Element) -> bool:
    low = lower(value)
    return low is not None and low >= 0


def _cut_rows(
    call: Call, size: Number, batch: Batch, start: Element | None, end: Element | None, step: Element | None
) -> Batch:
    """The batch axis after a slice: all rows, or some of several whole copies of the batch."""
    algebra = call.algebra
    if start is None or end is None or step is None:
        raise unproven("may select some rows by their position")
    (first, last, stride) = numbers([start, end, step])
    unbounded = is_known(last) and last >= _UNBOUNDED
    whole = unbounded or last == size or (lower(algebra.plus(last, size, -1)) or -1) >= 0
    if first == 0 and stride == 1 and whole:
        return batch
    copy = algebra.times(algebra.rows, batch.inner)
    begun = algebra.divided(first, copy) if first != 0 else 0
    ended = batch.outer if whole else algebra.divided(last, copy)
    if stride != 1 or begun is None or ended is None or not (is_known(begun) and is_known(ended)):
        raise mixes("selects some rows by their position")
    if not is_known(batch.outer) or not 0 <= begun <= ended <= batch.outer:
        raise mixes("selects some rows by their position")
    return Batch(batch.axis, ended - begun, batch.inner)


@operator("Split", counts=True)
def split(call: Call) -> Result:
    """Slices of one axis."""
    tensor = call.data(0)
    axis = call.axis(0, tensor.rank)
    elements = call.elements(1) if call.has(1) else None
    given = call.integers("split")
    parts: list[Number] | None = None
    if elements is not None:
        parts = numbers(listed(elements))
    elif given is not None:
        parts = list(given)
    elif call.has(1):
        parts = [call.algebra.fresh() for _ in range(call.output_count)]
    count = call.output_count
    if parts is None:
        parts = [_share(call, tensor.sizes[axis], count, place) for place in range(count)]
    return split_into(call, tensor, axis, parts)


def _share(call: Call, size: Number, count: int, place: int) -> Number:
    exact = call.algebra.divided(size, count)
    if exact is not None:
        return exact
    if isinstance(size, int):
        share = -(-size // count)
        return max(min(share, size - place * share), 0)
    return call.algebra.opaque("share", size, count, place, low=0)


def split_into(call: Call, tensor: Tensor, axis: int, parts: Sequence[Number]) -> list[Tensor]:
    """A tensor split along an axis; along the batch axis into whole copies of the batch."""
    batch = tensor.batch
    found: list[Tensor] = []
    for part in parts:
        shape = [part if place == axis else size for place, size in enumerate(tensor.sizes)]
        if batch is None or batch.axis != axis:
            if counts(part):
                raise mixes("slices another axis at the number of rows")
            found.append(call.make(shape, batch))
            continue
        outer = call.algebra.divided(part, call.algebra.times(call.algebra.rows, batch.inner))
        if outer is None or not is_known(outer) or not is_known(batch.outer):
            raise mixes("selects some rows by their position")
        found.append(call.make(shape, Batch(axis, outer, batch.inner)))
    return found


@operator("Pad", counts=True)
@operator("Pad", domain="com.microsoft", counts=True)
def pad(call: Call) -> Result:
    """Elements added before and after the axes."""
    tensor = call.data(0)
    if call.has(2):
        call.shared(2)
    given = call.listed(1, "pads")
    if given is None:
        raise unproven("pads by unknown sizes")
    axes = call.axes(3, tensor.rank) if call.has(3) else list(range(tensor.rank))
    if axes is None or len(given) != 2 * len(axes):
        raise unproven("pads unknown axes")
    shape = list(tensor.sizes)
    for place, axis in enumerate(axes):
        before, after = given[place], given[place + len(axes)]
        if tensor.batch is not None and axis == tensor.batch.axis:
            if before != 0 or after != 0:
                raise mixes("adds rows to the batch") if not _any_open(before, after) else unproven("may add rows")
            continue
        if counts(before) or counts(after):
            raise mixes("pads by the number of rows")
        shape[axis] = _padded(call, shape[axis], before, after)
    return call.make(shape, tensor.batch)


def _any_open(*values: Element) -> bool:
    return any(isinstance(value, Size) for value in values)


def _padded(call: Call, size: Number, before: Element, after: Element) -> Number:
    (first, last) = numbers([before, after])
    total = call.algebra.plus(call.algebra.plus(size, first), last)
    return total if (lower(total) or 0) >= 0 and not isinstance(total, bool) else call.algebra.fresh()


@operator("CenterCropPad")
def center_crop_pad(call: Call) -> Result:
    """Axes cropped or padded to given sizes."""
    tensor = call.data(0)
    axes = call.axes(9, tensor.rank) or list(range(tensor.rank))
    if tensor.batch is not None and tensor.batch.axis in axes:
        raise unproven("may remove or add rows")
    elements = call.elements(1)
    sizes = [call.algebra.fresh() for _ in axes] if elements is None else numbers(listed(elements))
    if any(counts(size) for size in sizes) or len(sizes) != len(axes):
        raise unproven("crops to an unknown size")
    shape = list(tensor.sizes)
    for axis, size in zip(axes, sizes, strict=True):
        shape[axis] = size
    return call.make(shape, tensor.batch)
