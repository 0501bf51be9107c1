"""Operators that read or write at indices: Gather and Scatter in their forms, ArrayFeatureExtractor."""

from collections.abc import Sequence

from app.runtime.independence.call import Call, Result, listed, operator
from app.runtime.independence.decisions import mixes, unproven
from app.runtime.independence.operators.shapes import numbers
from app.runtime.independence.sizes import is_known
from app.runtime.independence.values import Batch, Tensor, check_no_rows

_BY_POSITION = "selects rows by their position in the batch"


@operator("Gather", places=True)
@operator("GatherBlockQuantized", domain="com.microsoft")
def gather(call: Call) -> Result:
    """Slices of an axis at indices."""
    data, indices = call.data(0), call.data(1)
    axis = call.axis(0, data.rank, "gather_axis" if call.node.domain else "axis")
    if call.node.domain:
        if data.batch is not None:
            raise unproven("selects quantized rows of the batch")
        call.shared(2, 3)
    shape = [*data.sizes[:axis], *indices.sizes, *data.sizes[axis + 1 :]]
    if data.places is not None:
        raise mixes("computes with the position of a row in the batch")
    if indices.places is not None:
        return call.make(shape, _by_places(data, indices, axis))
    if data.batch is not None and data.batch.axis == axis:
        raise mixes(_BY_POSITION)
    if data.batch is not None and indices.batch is not None:
        raise mixes("selects from every row by the indices of each row")
    if indices.batch is not None:
        return call.make(shape, indices.batch.on(axis + indices.batch.axis))
    if data.batch is None:
        return call.make(shape)
    return call.make(
        shape, data.batch.on(data.batch.axis if data.batch.axis < axis else data.batch.axis - 1 + indices.rank)
    )


def _by_places(data: Tensor, indices: Tensor, axis: int) -> Batch:
    """The batch axis of a gather in which each row reads its own part: index of the row times the part's size.

    The added offset stays within the part, as in a run of a single row.
    """
    places, own = indices.places, data.batch
    if own is None or own.axis != axis or own.outer != 1 or indices.batch is None or places is None:
        raise mixes(_BY_POSITION)
    if places.stride is None or places.stride != own.inner:
        raise mixes(_BY_POSITION)
    return indices.batch.on(axis + indices.batch.axis)


@operator("GatherElements")
def gather_elements(call: Call) -> Result:
    """Elements along an axis at indices of the same rank."""
    data, indices = call.data(0), call.data(1)
    axis = call.axis(0, data.rank)
    if data.batch is None and indices.batch is None:
        return call.make(indices.sizes)
    if data.batch is not None and data.batch.axis == axis:
        raise mixes(_BY_POSITION)
    if data.batch is None:
        if indices.batch is not None and indices.batch.axis == axis:
            return call.make(indices.sizes, indices.batch)
        raise mixes("reads a table at the position of each row")
    if indices.batch is None:
        raise mixes(_BY_POSITION)
    return call.make(indices.sizes, _agreeing(data.batch, indices.batch))


def _agreeing(first: Batch, second: Batch) -> Batch:
    if first.axis != second.axis:
        raise mixes("combines rows with other rows")
    if first != second:
        raise unproven("combines tensors with different numbers of blocks per row")
    return first


@operator("ScatterElements", "Scatter")
def scatter_elements(call: Call) -> Result:
    """A copy with elements written along an axis at indices."""
    data, indices, updates = call.data(0), call.data(1), call.data(2)
    axis = call.axis(0, data.rank)
    tensors = (data, indices, updates)
    if all(tensor.batch is None for tensor in tensors):
        return call.make(data.sizes)
    if data.batch is None or indices.batch is None or updates.batch is None:
        raise unproven("writes at the position of a row, or writes a tensor without a batch axis")
    batch = _agreeing(_agreeing(data.batch, indices.batch), updates.batch)
    if batch.axis == axis:
        raise mixes("writes to rows by their position in the batch")
    return call.make(data.sizes, batch)


@operator("GatherND", places=True)
@operator("GatherND", domain="com.microsoft", places=True)
def gather_nd(call: Call) -> Result:
    """Slices at indices of several axes; leading axes may be batch dimensions of the indices."""
    data, indices = call.data(0), call.data(1)
    joint, depth = call.integer("batch_dims", 0), indices.sizes[-1]
    if not is_known(depth) or data.places is not None:
        raise unproven("has indices of unknown depth")
    lead, first = indices.rank - 1, joint + depth
    if joint < 0 or depth < 0 or first > data.rank or joint > lead:
        raise unproven("has indices that do not fit its data")
    shape = [*indices.sizes[:-1], *data.sizes[first:]]
    own, theirs = data.batch, indices.batch
    if theirs is not None and theirs.axis == lead:
        raise mixes(_BY_POSITION)
    flags = _flags(indices, depth)
    if own is None:
        if any(flags) or (theirs is not None and theirs.axis < joint):
            raise mixes("reads a table at the position of each row")
        return call.make(shape, theirs)
    if own.axis >= first:
        if theirs is not None:
            raise mixes("selects from every row by the indices of each row")
        return call.make(shape, own.on(lead + own.axis - first))
    if theirs is None:
        raise mixes(_BY_POSITION)
    return call.make(shape, _own_rows(own, theirs, joint, flags))


def _own_rows(own: Batch, theirs: Batch, joint: int, flags: Sequence[bool]) -> Batch:
    """The batch axis if indices select within each row: by a batch dimension, or by the position of each row."""
    if own.axis < joint:
        if any(flags):
            raise mixes("computes with the position of a row in the batch")
        return _agreeing(own, theirs)
    if theirs.axis < joint or not own.is_plain or not flags[own.axis - joint] or sum(flags) != 1:
        raise mixes(_BY_POSITION)
    return theirs


def _flags(indices: Tensor, depth: int) -> Sequence[bool]:
    if indices.places is None:
        return (False,) * depth
    flags = (True,) * depth if indices.places.is_exact else indices.places.parts
    if len(flags) != depth:
        raise mixes("computes with the position of a row in the batch")
    return flags


@operator("ScatterND", places=True)
def scatter_nd(call: Call) -> Result:
    """A copy with slices written at indices of several axes."""
    data, indices, updates = call.data(0), call.data(1), call.data(2)
    depth = indices.sizes[-1]
    if all(tensor.batch is None for tensor in (data, indices, updates)):
        return call.make(data.sizes)
    if not is_known(depth) or data.places is not None or updates.places is not None or depth > data.rank:
        raise unproven("has indices of unknown depth")
    lead = indices.rank - 1
    if data.batch is None:
        raise mixes("writes the rows into a shared tensor")
    axis = data.batch.axis
    if axis >= depth:
        if indices.batch is not None:
            raise mixes("writes to every row by the indices of each row")
        place = lead + axis - depth
        if updates.batch is None or updates.batch != data.batch.on(place):
            raise unproven("writes values to the rows that do not match their batch axis")
        return call.make(data.sizes, data.batch)
    flags = _flags(indices, depth)
    if indices.batch is None or not flags[axis] or sum(flags) != 1 or not data.batch.is_plain:
        raise mixes("writes to rows by their position in the batch")
    if updates.batch is None or updates.batch != indices.batch:
        raise unproven("writes values to the rows that do not match their batch axis")
    return call.make(data.sizes, data.batch)


@operator("ArrayFeatureExtractor", domain="ai.onnx.ml")
def array_feature_extractor(call: Call) -> Result:
    """The columns of a matrix at indices, in order, whatever the shape of the indices."""
    data, indices = call.data(0), call.data(1)
    count = call.algebra.product(indices.sizes)
    shape = [*(data.sizes[:-1] or (1,)), count]
    if indices.batch is None:
        if data.batch is not None and data.batch.axis == data.rank - 1:
            raise mixes(_BY_POSITION)
        return call.make(shape, data.batch)
    if data.batch is not None:
        raise mixes("selects from every row by the indices of each row")
    batch = indices.batch
    outer = call.algebra.product([*indices.sizes[: batch.axis], batch.outer])
    inner = call.algebra.product([batch.inner, *indices.sizes[batch.axis + 1 :]])
    return call.make(shape, Batch(len(shape) - 1, outer, inner))


@operator("Col2Im", "GridSample", "AffineGrid", counts=True)
@operator("GridSample", domain="com.microsoft")
def sampling(call: Call) -> Result:
    """Operators with the rows on the first axis of each input."""
    tensor = call.data(0)
    if call.node.op_type == "AffineGrid":
        return _affine_grid(call, tensor)
    if call.node.op_type == "Col2Im":
        if tensor.batch is not None and tensor.batch.axis != 0:
            raise mixes("treats the batch axis as an axis of an image")
        elements = call.elements(1)
        spatial = [call.algebra.fresh() for _ in range(2)] if elements is None else numbers(listed(elements))
        return call.make([tensor.sizes[0], call.algebra.fresh(), *spatial], tensor.batch)
    grid = call.data(1)
    shape = [*tensor.sizes[:2], *grid.sizes[1:-1]]
    if tensor.batch is None and grid.batch is None:
        return call.make(shape)
    if tensor.batch is None or grid.batch is None:
        check_no_rows(tensor if tensor.batch is None else grid, 0)
        raise unproven("samples one image for all rows")
    batch = _agreeing(tensor.batch, grid.batch)
    if batch.axis != 0:
        raise mixes("treats the batch axis as an axis of an image")
    return call.make(shape, batch)


def _affine_grid(call: Call, theta: Tensor) -> Tensor:
    elements = call.elements(1)
    if elements is None or theta.batch is None or theta.batch.axis != 0:
        raise unproven("makes a grid of unknown size")
    sizes = numbers(listed(elements))
    if sizes[0] != theta.sizes[0]:
        raise unproven("makes a grid with a different number of rows")
    return call.make([sizes[0], *sizes[2:], len(sizes) - 2], theta.batch)
