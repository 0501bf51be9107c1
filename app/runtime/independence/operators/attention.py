"""Attention operators of ONNX and the fused operators of transformers; the batch is the first axis."""

from app.runtime.independence.call import Call, Result, operator
from app.runtime.independence.decisions import mixes, unproven
from app.runtime.independence.operators.elementwise import MICROSOFT
from app.runtime.independence.sizes import Number
from app.runtime.independence.values import Batch, Tensor, check_no_rows

_FIRST = Batch(0)


def _rows(call: Call, *indices: int, axis: int = 0) -> None:
    """Check that inputs have the batch on an axis, one block per row.

    Raises:
        Decision: An input has a different layout.
    """
    for index in indices:
        if not call.has(index):
            continue
        batch = call.data(index).batch
        if batch is None:
            raise unproven(f"has an input {index} without a batch axis")
        if batch.axis != axis:
            raise (
                mixes("attends over the batch axis")
                if index == 0 and batch.axis == 1
                else unproven(f"has an input {index} with the batch on axis {batch.axis}")
            )
        if not batch.is_plain:
            raise unproven(f"has an input {index} with several blocks per row")


def _bias(call: Call, index: int, rank: int) -> None:
    """Check that a tensor added to the scores has the same batch axis, or is the same for all rows."""
    if not call.has(index):
        return
    bias = call.data(index)
    place = bias.rank - rank
    if bias.batch is None:
        check_no_rows(bias, place)
    elif bias.batch != Batch(place):
        raise unproven("adds a tensor with an unknown batch axis to the scores")


def _cache(call: Call, rank: int, axis: int) -> Tensor:
    shape: list[Number] = [call.algebra.fresh() for _ in range(rank)]
    return call.make(shape, Batch(axis))


@operator("Attention")
def attention(call: Call) -> Result:
    """Scaled dot-product attention of queries, keys and values."""
    if call.all_shared():
        raise unproven("is not supported by the analysis")
    query = call.data(0)
    _rows(call, 0, 1, 2, 4, 5, 6)
    if query.rank not in {3, 4}:
        raise unproven("requires queries of rank 3 or 4")
    _bias(call, 3, 4)
    heads = call.algebra.fresh()
    shape = [*query.sizes[:-1], heads]
    return [call.make(shape, _FIRST), _cache(call, 4, 0), _cache(call, 4, 0), _cache(call, 4, 0)]


@operator("Attention", "QAttention", domain=MICROSOFT)
def fused_attention(call: Call) -> Result:
    """Self-attention with its projections."""
    if call.all_shared():
        raise unproven("is not supported by the analysis")
    quantized = call.node.op_type == "QAttention"
    call.shared(*((1, 2, 3, 4, 6, 7) if quantized else (1, 2, 6)))
    mask, past = (5, 8) if quantized else (3, 4)
    _rows(call, 0, mask)
    _rows(call, past, axis=1)
    if not quantized:
        _bias(call, 5, 4)
    tensor = call.data(0)
    if tensor.rank != 3:
        raise unproven("requires tokens of rank 3")
    width: Number = call.algebra.fresh()
    return [call.make([*tensor.sizes[:2], width], _FIRST), _cache(call, 5, 1)]


@operator("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(call: Call) -> Result:
    """Attention of projected queries, keys and values."""
    if call.all_shared():
        raise unproven("is not supported by the analysis")
    _rows(call, 0, 1, 2, 4, 6, 7)
    call.shared(3, 8)
    _bias(call, 5, 4)
    if any(call.has(index) for index in range(9, len(call.inputs))):
        raise unproven("has caches that the analysis does not support")
    query = call.data(0)
    shape = [*query.sizes[:2], call.algebra.fresh()]
    return [call.make(shape, _FIRST), _cache(call, 4, 0), _cache(call, 4, 0)]


@operator("GroupQueryAttention", domain=MICROSOFT)
def group_query_attention(call: Call) -> Result:
    """Attention with fewer keys than queries, and a cache."""
    if call.all_shared():
        raise unproven("is not supported by the analysis")
    _rows(call, 0, 1, 2, 3, 4, 5)
    call.shared(6, 7, 8, 11)
    if call.has(9):
        _rows(call, 9)
    _bias(call, 10, 4)
    if any(call.has(index) for index in range(12, len(call.inputs))):
        raise unproven("has cache scales that the analysis does not support")
    query = call.data(0)
    shape = [*query.sizes[:2], call.algebra.fresh()]
    return [call.make(shape, _FIRST), _cache(call, 4, 0), _cache(call, 4, 0)]


@operator("RotaryEmbedding")
def rotary_embedding(call: Call) -> Result:
    """Rotary embedding of tokens by their positions."""
    tensor = call.data(0)
    if call.has(3):
        call.shared(1, 2)
        _same_rows(tensor, call.data(3), 2)
    else:
        for index in (1, 2):
            _same_rows(tensor, call.data(index), 3)
    return _first(call, tensor)


@operator("RotaryEmbedding", domain=MICROSOFT)
def fused_rotary_embedding(call: Call) -> Result:
    """Rotary embedding of tokens by positions that are shared or per row."""
    tensor, positions = call.data(0), call.data(1)
    call.shared(2, 3)
    if positions.batch is not None or positions.shape != (1,):
        _same_rows(tensor, positions, 2)
    if call.integer("is_packed_batching", 0):
        raise unproven("has several rows packed into one sequence")
    return _first(call, tensor)


def _same_rows(tensor: Tensor, other: Tensor, rank: int) -> None:
    if other.rank != rank or other.batch != tensor.batch:
        raise unproven("has positions without the batch axis of the tokens")


def _first(call: Call, tensor: Tensor) -> Tensor:
    if tensor.batch is not None and tensor.batch != _FIRST:
        raise unproven("requires the batch on the first axis")
    return call.make(tensor.sizes, tensor.batch)
