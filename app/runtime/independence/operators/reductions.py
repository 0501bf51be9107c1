"""Reductions over axes, and operators that sort or accumulate along one axis."""

from app.runtime.independence.call import Call, Result, listed, operator
from app.runtime.independence.decisions import mixes, unproven
from app.runtime.independence.operators.shapes import numbers
from app.runtime.independence.picked import ragged
from app.runtime.independence.sizes import Number, counts
from app.runtime.independence.values import Batch, Picked, Tensor


def reduced(call: Call, tensor: Tensor, axes: list[int] | None, *, keep: bool) -> Tensor:
    """A tensor reduced over axes; None reduces over all of them.

    Raises:
        Decision: The batch axis is among them.
    """
    over = set(range(tensor.rank)) if axes is None else set(axes)
    batch = tensor.batch
    if batch is not None and batch.axis in over:
        raise mixes("reduces over the batch axis")
    shape = [1 if axis in over else size for axis, size in enumerate(tensor.sizes) if keep or axis not in over]
    if batch is not None and not keep:
        batch = batch.on(batch.axis - sum(axis < batch.axis for axis in over))
    return call.make(shape, batch)


@operator(
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
def reduce(call: Call) -> Result:
    """A reduction; without axes it covers all of them, unless the node is set to do nothing then."""
    tensor = call.data(0)
    if call.has(1) and call.elements(1) is None and tensor.batch is not None:
        raise unproven("reduces over unknown axes")
    axes = call.axes(1, tensor.rank)
    if not axes and call.integer("noop_with_empty_axes", 0):
        return tensor
    return reduced(call, tensor, axes or None, keep=bool(call.integer("keepdims", 1)))


@operator("ArgMax", "ArgMin")
def arg_extreme(call: Call) -> Result:
    """The index of the largest or smallest element along an axis."""
    tensor = call.data(0)
    found = reduced(call, tensor, [call.axis(0, tensor.rank)], keep=bool(call.integer("keepdims", 1)))
    return Tensor(found.shape, found.batch, is_index=True)


@operator("CumSum", "CumProd")
def cumulative(call: Call) -> Result:
    """A running sum along an axis."""
    tensor = call.data(0)
    axis = call.elements(1)
    if axis is None or axis.size != 1:
        raise unproven("accumulates along an unknown axis")
    return along(call, tensor, call.axis_of(listed(axis)[0], tensor.rank), "accumulates")


def along(call: Call, tensor: Tensor, axis: int, what: str) -> Tensor:
    """A tensor of the same shape, computed along one axis.

    Raises:
        Decision: The axis is the batch axis.
    """
    if tensor.batch is not None and tensor.batch.axis == axis:
        raise mixes(f"{what} along the batch axis")
    return call.make(tensor.sizes, tensor.batch)


@operator("Softmax", "LogSoftmax", "Hardmax")
def softmax(call: Call) -> Result:
    """Softmax over one axis; before operator set 13, from an axis to the last."""
    tensor = call.data(0)
    if call.version >= 13:
        return along(call, tensor, call.axis(-1, tensor.rank), "normalizes")
    axis = call.axis(1, tensor.rank)
    if tensor.batch is not None and tensor.batch.axis >= axis:
        raise mixes("normalizes over the batch axis")
    return call.make(tensor.sizes, tensor.batch)


@operator("TopK")
def top_k(call: Call) -> Result:
    """The largest elements along an axis, and their indices."""
    tensor = call.data(0)
    axis = call.axis(-1, tensor.rank)
    if tensor.batch is not None and tensor.batch.axis == axis:
        raise mixes("sorts along the batch axis", ragged=True)
    size: Number = call.integer("k", 0) if call.version < 10 else call.algebra.fresh()
    if call.has(1):
        found = call.elements(1)
        if found is not None and found.size == 1:
            size = numbers(listed(found))[0]
    if counts(size):
        raise mixes("selects as many elements as there are rows")
    shape = [size if place == axis else one for place, one in enumerate(tensor.sizes)]
    result = call.make(shape, tensor.batch)
    return [result, result]


@operator("Trilu", "Det")
@operator("Inverse", "Trilu", domain="com.microsoft")
def matrices(call: Call) -> Result:
    """An operation on the matrices of the last two axes."""
    tensor = call.data(0)
    if tensor.batch is not None and tensor.batch.axis >= tensor.rank - 2:
        raise mixes("treats the batch axis as an axis of a matrix")
    if call.has(1):
        call.shared(1)
    shape = tensor.sizes[:-2] if call.node.op_type == "Det" else tensor.sizes
    return call.make(shape, tensor.batch)


@operator("OneHot", counts=True)
def one_hot(call: Call) -> Result:
    """One-hot encoding on a new axis of size ``depth``."""
    tensor = call.data(0)
    call.shared(2)
    depth = call.elements(1)
    size: Number = call.algebra.fresh() if depth is None or depth.size != 1 else numbers(listed(depth))[0]
    if counts(size):
        raise mixes("makes an axis of as many elements as there are rows")
    axis = call.axis_of(call.integer("axis", -1), tensor.rank + 1)
    return inserted(call, tensor, axis, size)


def inserted(call: Call, tensor: Tensor, axis: int, size: Number) -> Tensor:
    """A tensor with one more axis."""
    shape = [*tensor.sizes[:axis], size, *tensor.sizes[axis:]]
    batch = tensor.batch
    return call.make(shape, None if batch is None else batch.on(batch.axis + (axis <= batch.axis)))


@operator("Compress")
def compress(call: Call) -> Result:
    """The elements of an axis that a condition selects; without an axis, of the flattened tensor."""
    tensor, condition = call.data(0), call.data(1)
    flat = call.attribute("axis") is None
    axis = 0 if flat else call.axis(0, tensor.rank)
    if condition.batch is not None or (tensor.batch is not None and (flat or tensor.batch.axis == axis)):
        raise mixes("keeps a number of elements that depends on the data of the rows", ragged=True)
    kept = call.algebra.fresh()
    shape = [kept] if flat else [kept if place == axis else size for place, size in enumerate(tensor.sizes)]
    return call.make(shape, tensor.batch)


@operator("NonZero", "Unique")
@operator("Unique", domain="com.microsoft")
def selected(call: Call) -> Result:
    """A data-dependent number of elements."""
    tensor = call.data(0)
    if not call.all_shared():
        if call.node.op_type != "NonZero" or tensor.rank != 1 or tensor.batch is None:
            raise ragged()
        places = call.make([1, *tensor.sizes], tensor.batch.on(1))
        return Tensor(places.shape, places.batch, picked=Picked(call.algebra.fresh(), index=True))
    size = call.algebra.fresh()
    if call.node.op_type == "NonZero":
        return call.make([max(tensor.rank, 1), size])
    raise unproven("is not supported by the analysis")


@operator("NonMaxSuppression", counts=True)
def boxes(call: Call) -> Result:
    """The selected boxes of all rows in one list."""
    if not call.all_shared():
        raise mixes("lists the boxes of all rows together", ragged=True)
    return call.make([call.algebra.fresh(), 3])


@operator("ReverseSequence")
def reverse_sequence(call: Call) -> Result:
    """Each row reversed up to its length."""
    tensor, lengths = call.data(0), call.data(1)
    row_axis, time_axis = call.axis(1, tensor.rank, "batch_axis"), call.axis(0, tensor.rank, "time_axis")
    if tensor.batch is None and lengths.batch is None:
        return call.make(tensor.sizes)
    if tensor.batch is None or tensor.batch.axis == time_axis:
        raise mixes("reverses the order of the rows")
    if tensor.batch.axis == row_axis:
        if lengths.batch != Batch(0, tensor.batch.outer, tensor.batch.inner):
            raise unproven("has lengths without a batch axis")
    elif lengths.batch is not None:
        raise unproven("reads lengths from the rows for another axis")
    return call.make(tensor.sizes, tensor.batch)
