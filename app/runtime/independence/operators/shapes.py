"""Constants, shapes, and operators that only change a shape: Reshape, Transpose, Expand, Tile, Range."""

import math
from collections.abc import Callable, Sequence

from app.runtime.independence.call import Call, Result, any_counts, listed, operator
from app.runtime.independence.decisions import mixes, unproven
from app.runtime.independence.graph import MAX_ELEMENTS, Array, Attribute
from app.runtime.independence.sizes import Algebra, Element, Number, Size, counts, is_known, is_real, lower
from app.runtime.independence.values import Batch, Places, Tensor, as_elements, elements_of, meet, tensor_of


def numbers(elements: Sequence[Element]) -> list[Number]:
    """Check that elements are sizes.

    Raises:
        Decision: An element is not a size.
    """
    if any(isinstance(value, bool) or is_real(value) for value in elements):
        raise unproven("has a size that is not an integer")
    return [value for value in elements if isinstance(value, int | Size)]


def moved(call: Call, source: Tensor, shape: Sequence[Number], batch: Batch | None) -> Tensor:
    """A tensor made of the elements of another one; each element stays in its row."""
    found = call.make(shape, batch)
    places = source.places
    if places is not None and places.parts:
        places = Places()
    return Tensor(found.shape, found.batch, places=places, is_index=source.is_index)


@operator("Constant")
def constant(call: Call) -> Result:
    """A constant given by an attribute."""
    found = call.attribute("value")
    if found is not None:
        tensor = found.tensor()
        if tensor is None:
            raise unproven("has no value")
        return Tensor(tensor.shape) if tensor.elements is None else elements_of(tensor.elements)
    for name, read in _CONSTANTS.items():
        found = call.attribute(name)
        if found is not None:
            return read(found)
    return Tensor(None)


_CONSTANTS: dict[str, Callable[[Attribute], Tensor]] = {
    "value_int": lambda found: elements_of(found.integer()),
    "value_ints": lambda found: elements_of([*found.integers()]),
    "value_float": lambda found: elements_of(found.number()),
    "value_floats": lambda found: elements_of([*found.numbers()]),
    "value_string": lambda _: Tensor(()),
    "value_strings": lambda found: Tensor((len(found.strings()),)),
}


@operator("Shape", places=True, counts=True)
def shape_of(call: Call) -> Result:
    """The shape of a tensor."""
    tensor = call.tensor(0)
    rank = tensor.rank
    start, end = call.integer("start", 0), call.integer("end", rank)
    return elements_of(list(tensor.sizes[slice(start, end)]))


@operator("Size", places=True, counts=True)
def size_of(call: Call) -> Result:
    """The number of elements of a tensor."""
    return elements_of(call.algebra.product(call.tensor(0).sizes))


@operator("ConstantOfShape", counts=True)
def constant_of_shape(call: Call) -> Result:
    """One value, repeated to a shape."""
    elements = call.elements(0)
    if elements is None:
        raise unproven("has an unknown target shape")
    shape = numbers(listed(elements))
    known = [size for size in shape if isinstance(size, int)]
    if len(known) == len(shape) and 0 <= math.prod(known) <= MAX_ELEMENTS:
        given = call.attribute("value")
        tensor = Tensor((1,), elements=as_elements([0.0])) if given is None else given.tensor()
        if tensor is not None and tensor.elements is not None and tensor.elements.size == 1:
            return elements_of(tensor.elements.reshape(1).repeat(math.prod(known)).reshape(known))
    return call.make(shape, uniform_batch(call.algebra, shape))


def uniform_batch(algebra: Algebra, shape: Sequence[Number]) -> Batch | None:
    """The batch axis of a tensor with equal blocks for all rows: the axis with a multiple of the number of rows."""
    for axis, size in enumerate(shape):
        if counts(size):
            inner = algebra.divided(size, algebra.rows)
            if inner is None or counts(inner):
                raise unproven("makes a tensor with a size that is not a multiple of the number of rows")
            return Batch(axis, 1, inner)
    return None


@operator("Range", counts=True)
@operator("Range", domain="com.microsoft", counts=True)
def number_range(call: Call) -> Result:
    """Numbers from a start to a limit; up to the number of rows they are the positions of the rows."""
    found = [call.elements(index) for index in range(min(3, len(call.inputs)))]
    known = [listed(array)[0] if array is not None and array.size == 1 else None for array in found]
    start, limit, step = (*known, 1)[:3] if len(known) == 2 else known
    if any_counts([start, limit, step]):
        if start == 0 and step == 1 and limit == call.algebra.rows:
            return Tensor((call.algebra.rows,), Batch(0), places=Places(1))
        raise mixes("counts up to a multiple of the number of rows")
    size: Number = call.algebra.fresh()
    if start == 0 and step == 1 and limit is not None and not is_real(limit) and not isinstance(limit, float):
        size = limit
    is_index = isinstance(start, int) and isinstance(step, int) and start >= 0 and step > 0
    return Tensor(call.make([size]).shape, is_index=is_index)


@operator("Reshape", counts=True, places=True)
def reshape(call: Call) -> Result:
    """Reshape: elements keep their order."""
    tensor = call.data(0)
    given = call.integers("shape") if len(call.inputs) < 2 else None
    elements: Array | None = as_elements([*given]) if given is not None else call.elements(1)
    if elements is None:
        raise unproven("has an unknown target shape")
    target = numbers(listed(elements))
    if not call.integer("allowzero", 0):
        target = [tensor.sizes[axis] if size == 0 and axis < tensor.rank else size for axis, size in enumerate(target)]
    return reshaped(call, tensor, target)


def reshaped(call: Call, tensor: Tensor, target: list[Number]) -> Tensor:
    """A tensor in another shape; one of the sizes may be -1.

    Raises:
        Decision: The elements of a row do not stay together, or this is unknown.
    """
    algebra = call.algebra
    open_axes = [axis for axis, size in enumerate(target) if size == -1]
    if len(open_axes) > 1 or any(is_known(size) and size < -1 for size in target):
        raise unproven("has an invalid target shape")
    if open_axes:
        known = algebra.product([size for size in target if size != -1])
        target[open_axes[0]] = _remaining(algebra, algebra.product(tensor.sizes), known)
    if tensor.batch is None:
        return moved(call, tensor, target, None)
    axis = next((axis for axis, size in enumerate(target) if counts(size)), None)
    if axis is None:
        raise unproven("reshapes to a shape that fixes the number of rows")
    return moved(call, tensor, target, _placed(algebra, tensor, target, axis))


def _placed(algebra: Algebra, tensor: Tensor, target: list[Number], axis: int) -> Batch:
    """The batch axis in a new shape: the number of elements before or after it must match."""
    if tensor.batch is None:
        raise unproven("has no batch axis")
    place, block = tensor.batch.axis, algebra.divided(target[axis], algebra.rows)
    before = algebra.times(algebra.product(tensor.sizes[:place]), tensor.batch.outer)
    after = algebra.times(algebra.product(tensor.sizes[place + 1 :]), tensor.batch.inner)
    prefix, suffix = algebra.product(target[:axis]), algebra.product(target[axis + 1 :])
    if block is not None:
        outer = algebra.divided(before, prefix)
        if outer is not None and (inner := algebra.divided(block, outer)) is not None:
            return Batch(axis, outer, inner)
        inner = algebra.divided(after, suffix)
        if inner is not None and (outer := algebra.divided(block, inner)) is not None:
            return Batch(axis, outer, inner)
    if all(size is None or is_known(size) for size in (before, prefix, block)):
        raise mixes("merges rows in a different order than the batch")
    raise unproven("reshapes to a shape with an unknown batch axis")


def _remaining(algebra: Algebra, total: Number, known: Number) -> Number:
    """The size that -1 resolves to. A run of one row is valid, so dividing by a row's elements has no remainder."""
    if known == 0:
        return algebra.fresh()
    above, below = algebra.reduced(total, known)
    if below == 1:
        return above
    rows = algebra.divided(above, algebra.rows)
    if rows is not None and not counts(below) and not counts(rows):
        return algebra.times(algebra.rows, algebra.opaque("divide", rows, below, low=0))
    return algebra.opaque("divide", above, below, low=0)


@operator("Flatten", places=True, padded=True)
def flatten(call: Call) -> Result:
    """A matrix: the axes before a given one merged, and the others merged."""
    tensor = call.data(0)
    axis = call.integer("axis", 1)
    if tensor.padding is not None:
        if tensor.rank == 2 and axis == 1:
            return tensor
        raise mixes("uses rows padded to the longest row of the batch")
    axis = axis if axis == tensor.rank else call.axis_of(axis, tensor.rank)
    sides = tensor.sizes[:axis], tensor.sizes[axis:]
    return reshaped(call, tensor, [call.algebra.product(side) for side in sides])


@operator("Squeeze", places=True)
def squeeze(call: Call) -> Result:
    """Axes of size 1 removed."""
    tensor = call.data(0)
    axes = call.axes(1, tensor.rank)
    batch = tensor.batch
    if axes is None:
        if batch is not None:
            raise mixes("drops every axis of size 1, including the batch axis of a single row")
        if not all(is_known(size) or (lower(size) or 0) > 1 for size in tensor.sizes):
            raise unproven("drops axes that may not have size 1")
        axes = [axis for axis, size in enumerate(tensor.sizes) if size == 1]
    if batch is not None and batch.axis in axes:
        raise mixes("removes the batch axis, which allows only one row")
    shape = [size for axis, size in enumerate(tensor.sizes) if axis not in axes]
    if batch is not None:
        batch = batch.on(batch.axis - sum(axis < batch.axis for axis in set(axes)))
    return moved(call, tensor, shape, batch)


@operator("Unsqueeze", places=True)
def unsqueeze(call: Call) -> Result:
    """Axes of size 1 added."""
    tensor = call.data(0)
    given = call.listed(1, "axes")
    if given is None or len(given) > 64:
        raise unproven("adds axes at unknown positions")
    rank = tensor.rank + len(given)
    axes = {call.axis_of(axis, rank) for axis in given}
    rest = iter(enumerate(tensor.sizes))
    shape: list[Number] = []
    batch = tensor.batch
    for place in range(rank):
        if place in axes:
            shape.append(1)
            continue
        axis, size = next(rest)
        shape.append(size)
        if tensor.batch is not None and axis == tensor.batch.axis:
            batch = tensor.batch.on(place)
    return moved(call, tensor, shape, batch)


@operator("ExpandDims", domain="com.microsoft")
def expand_dims(call: Call) -> Result:
    """One axis of size 1 added."""
    tensor, found = call.data(0), call.elements(1)
    if found is None or found.size != 1:
        raise unproven("adds an axis at an unknown position")
    axis = call.axis_of(listed(found)[0], tensor.rank + 1)
    shape = [*tensor.sizes[:axis], 1, *tensor.sizes[axis:]]
    batch = tensor.batch
    return call.make(shape, None if batch is None else batch.on(batch.axis + (axis <= batch.axis)))


@operator("Transpose", places=True)
def transpose(call: Call) -> Result:
    """Axes permuted."""
    tensor = call.data(0)
    order = call.integers("perm") or list(range(tensor.rank))[::-1]
    if sorted(order) != list(range(tensor.rank)):
        raise unproven("permutes axes that the tensor does not have")
    batch = None if tensor.batch is None else tensor.batch.on(order.index(tensor.batch.axis))
    return moved(call, tensor, [tensor.sizes[axis] for axis in order], batch)


@operator("Expand", counts=True, places=True)
def expand(call: Call) -> Result:
    """A tensor repeated along axes of size 1."""
    tensor, elements = call.data(0), call.elements(1)
    if elements is None:
        raise unproven("has an unknown target shape")
    target = numbers(listed(elements))
    if any((lower(size) is None or (lower(size) or 0) < 0) for size in target if is_known(size)):
        raise unproven("has a target shape with a negative size")
    rank = max(tensor.rank, len(target))
    sizes = [*[1] * (rank - tensor.rank), *tensor.sizes]
    target = [*[1] * (rank - len(target)), *target]
    batch = None if tensor.batch is None else tensor.batch.on(tensor.batch.axis + rank - tensor.rank)
    shape: list[Number] = []
    for axis, (size, wanted) in enumerate(zip(sizes, target, strict=True)):
        if batch is not None and axis == batch.axis:
            if wanted not in {1, size}:
                raise mixes("repeats a single row") if is_known(wanted) else unproven("may repeat a single row")
            shape.append(size)
        elif counts(wanted) and size != 1:
            raise mixes("broadcasts an axis outside the batch to the number of rows")
        else:
            shape.append(meet(call.algebra, size, wanted))
    if batch is None:
        batch = uniform_batch(call.algebra, shape)
    elif any(counts(size) for axis, size in enumerate(shape) if axis != batch.axis):
        raise mixes("repeats each row for every row of the batch")
    return moved(call, tensor, shape, batch)


@operator("Tile", counts=True)
def tile(call: Call) -> Result:
    """A tensor repeated along its axes."""
    tensor, elements = call.data(0), call.elements(1)
    if elements is None:
        raise unproven("repeats an unknown number of times")
    times = numbers(listed(elements))
    if len(times) != tensor.rank:
        raise unproven("repeats axes that the tensor does not have")
    algebra, batch = call.algebra, tensor.batch
    shape = [algebra.times(size, count) for size, count in zip(tensor.sizes, times, strict=True)]
    if batch is not None:
        count = times[batch.axis]
        if any_counts(times):
            raise mixes("repeats rows as often as there are rows")
        return call.make(shape, Batch(batch.axis, algebra.times(count, batch.outer), batch.inner))
    return call.make(shape, uniform_batch(algebra, shape))


@operator("EyeLike")
def eye_like(call: Call) -> Result:
    """A matrix with ones on the diagonal, in the shape of another tensor."""
    tensor = call.data(0)
    if tensor.batch is not None:
        raise mixes("numbers the rows of the batch")
    return tensor_of(call.algebra, tensor.sizes)
