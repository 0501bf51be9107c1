"""Sequences of tensors with a known length, and optional values."""

from app.runtime.independence.call import Call, Result, listed, operator
from app.runtime.independence.decisions import mixes, unproven
from app.runtime.independence.operators.shapes import numbers
from app.runtime.independence.operators.slices import joined, split_into
from app.runtime.independence.sizes import is_known
from app.runtime.independence.values import Listed, elements_of


def _list(call: Call, index: int = 0) -> Listed:
    value = call.inputs[index] if index < len(call.inputs) else None
    if not isinstance(value, Listed):
        raise unproven("has a sequence that the analysis does not support")
    return value


def _place(call: Call, index: int, count: int) -> int:
    found = call.elements(index)
    if found is None or found.size != 1 or not is_known(listed(found)[0]):
        raise unproven("selects an element of a sequence at an unknown position")
    return call.axis_of(listed(found)[0], count)


@operator("SequenceConstruct", places=True, counts=True)
def construct(call: Call) -> Result:
    """A sequence of the inputs."""
    return Listed(tuple(call.tensor(index) for index in range(len(call.inputs))))


@operator("SequenceEmpty")
def empty(call: Call) -> Result:
    """A sequence without elements."""
    del call
    return Listed(())


@operator("SequenceAt", places=True, counts=True)
def at(call: Call) -> Result:
    """One element of a sequence."""
    items = _list(call).items
    return items[_place(call, 1, len(items))]


@operator("SequenceLength", places=True, counts=True)
def length(call: Call) -> Result:
    """The length of a sequence."""
    return elements_of(len(_list(call).items))


@operator("SequenceInsert", places=True, counts=True)
def insert(call: Call) -> Result:
    """A sequence with one more element."""
    items = list(_list(call).items)
    if len(items) > 512:
        raise unproven("makes a sequence with more elements than the analysis supports")
    place = len(items) if not call.has(2) else _place(call, 2, len(items) + 1)
    items.insert(place, call.tensor(1))
    return Listed(tuple(items))


@operator("SequenceErase", places=True, counts=True)
def erase(call: Call) -> Result:
    """A sequence with one element removed."""
    items = list(_list(call).items)
    place = len(items) - 1 if not call.has(1) else _place(call, 1, len(items))
    del items[place]
    return Listed(tuple(items))


@operator("SplitToSequence", counts=True)
def split_to_sequence(call: Call) -> Result:
    """An axis split into a sequence of parts."""
    tensor = call.data(0)
    axis = call.axis(0, tensor.rank)
    if tensor.batch is not None and tensor.batch.axis == axis:
        raise mixes("makes a sequence with an element for each row")
    size = tensor.sizes[axis]
    if not is_known(size) or size > 512:
        raise unproven("splits an axis of unknown size")
    if not call.has(1):
        parts = split_into(call, tensor, axis, [1] * size)
        if call.integer("keepdims", 1):
            return Listed(tuple(parts))
        batch = tensor.batch
        return Listed(
            tuple(
                call.make(
                    [one for place, one in enumerate(part.sizes) if place != axis],
                    None if batch is None else batch.on(batch.axis - (axis < batch.axis)),
                )
                for part in parts
            )
        )
    found = call.elements(1)
    if found is None:
        raise unproven("splits into parts of unknown size")
    sizes = numbers(listed(found))
    if found.ndim == 0 and is_known(sizes[0]) and sizes[0] > 0:
        step = sizes[0]
        sizes = [min(step, size - start) for start in range(0, size, step)]
    return Listed(tuple(split_into(call, tensor, axis, sizes)))


@operator("ConcatFromSequence", places=True)
def concat_from_sequence(call: Call) -> Result:
    """The elements of a sequence, concatenated along an axis or stacked on a new one."""
    items = list(_list(call).items)
    axis = call.integer("axis", 0)
    if not items:
        raise unproven("joins no tensors")
    if call.integer("new_axis", 0):
        place = call.axis_of(axis, items[0].rank + 1)
        if any(item.places is not None for item in items):
            raise mixes("computes with the position of a row in the batch")
        items = [
            call.make(
                [*item.sizes[:place], 1, *item.sizes[place:]],
                None if item.batch is None else item.batch.on(item.batch.axis + (place <= item.batch.axis)),
            )
            for item in items
        ]
    return joined(call, items, axis)


@operator("Optional", "OptionalGetElement", places=True, counts=True, padded=True)
def optional(call: Call) -> Result:
    """The value itself."""
    value = call.inputs[0] if call.inputs else None
    if value is None:
        raise unproven("has no value")
    return value


@operator("OptionalHasElement", places=True, counts=True, padded=True)
def has_element(call: Call) -> Result:
    """Whether a value is given."""
    return elements_of(call.has(0))
