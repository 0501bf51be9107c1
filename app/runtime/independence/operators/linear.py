"""Matrix products: MatMul, Gemm, and their fused and quantized forms."""

from collections.abc import Sequence

from app.runtime.independence.call import Call, Result, operator
from app.runtime.independence.decisions import mixes, unproven
from app.runtime.independence.operators.elementwise import MICROSOFT
from app.runtime.independence.sizes import Number
from app.runtime.independence.values import Batch, Tensor, broadcast

_CONTRACTS = "sums over the batch axis"


def swapped(call: Call, tensor: Tensor) -> Tensor:
    """A tensor with its last two axes swapped."""
    rank = tensor.rank
    if rank < 2:
        return tensor
    order = [*range(rank - 2), rank - 1, rank - 2]
    batch = None if tensor.batch is None else tensor.batch.on(order.index(tensor.batch.axis))
    return call.make([tensor.sizes[axis] for axis in order], batch)


def product(call: Call, left: Tensor, right: Tensor) -> Tensor:
    """The product of two tensors with the semantics of numpy.matmul.

    Raises:
        Decision: Rows are combined with other rows.
    """
    if left.rank == 0 or right.rank == 0:
        raise unproven("requires matrices, but an input is a scalar")
    if left.batch is not None and left.batch.axis == left.rank - 1:
        raise mixes(_CONTRACTS)
    if right.batch is not None and right.batch.axis == max(right.rank - 2, 0):
        raise mixes(_CONTRACTS)
    rows, columns = _rows(left), _columns(right)
    first = _lead(call, left, left.rank - 2)
    second = _lead(call, right, right.rank - 2)
    if (rows is not None and right.batch is not None) or (columns is not None and left.batch is not None):
        raise mixes("multiplies rows with each other")
    lead, batch = broadcast(call.algebra, [first, second])
    shape: list[Number] = [*lead]
    if left.rank > 1:
        if rows is not None:
            batch = rows.on(len(shape))
        shape.append(left.sizes[-2])
    if right.rank > 1:
        if columns is not None:
            batch = columns.on(len(shape))
        shape.append(right.sizes[-1])
    return call.make(shape, batch)


def _rows(left: Tensor) -> Batch | None:
    return left.batch if left.batch is not None and left.rank > 1 and left.batch.axis == left.rank - 2 else None


def _columns(right: Tensor) -> Batch | None:
    return right.batch if right.batch is not None and right.rank > 1 and right.batch.axis == right.rank - 1 else None


def _lead(call: Call, tensor: Tensor, count: int) -> Tensor:
    """The leading axes of a tensor, without the matrix."""
    count = max(count, 0)
    batch = tensor.batch if tensor.batch is not None and tensor.batch.axis < count else None
    return call.make(tensor.sizes[:count], batch)


def with_bias(call: Call, result: Tensor, others: Sequence[Tensor]) -> Tensor:
    """A product plus a bias, which must not be larger than the product."""
    shape, batch = broadcast(call.algebra, [result, *others])
    if len(shape) != result.rank or batch != result.batch:
        raise unproven("adds a bias that is larger than the product")
    return call.make(result.sizes, batch)


@operator("MatMul")
def matmul(call: Call) -> Result:
    """A product of matrices."""
    return product(call, call.data(0), call.data(1))


@operator("MatMulInteger")
@operator("MatMulIntegerToFloat", domain=MICROSOFT)
def matmul_integer(call: Call) -> Result:
    """A product of integers minus their zero points, optionally scaled."""
    result = product(call, call.data(0), call.data(1))
    fused = bool(call.node.domain)
    for index in range(2, 6 if fused else 4):
        if call.has(index):
            _check_parameter(call, index, call.data(0 if index in ({2, 4} if fused else {2}) else 1))
    if fused and call.has(6):
        return with_bias(call, result, [call.data(6)])
    return result


def _check_parameter(call: Call, index: int, *factors: Tensor) -> None:
    """Check that a scale or zero point is the same for each row of its factors."""
    parameter = call.data(index)
    if parameter.batch is not None:
        raise unproven(f"requires input {index} to be the same for all rows")
    if any(factor.batch is not None for factor in factors) and any(size != 1 for size in parameter.sizes):
        raise unproven(f"applies input {index} to each row by position")


@operator("QLinearMatMul")
def qlinear_matmul(call: Call) -> Result:
    """A product of quantized matrices with given scales."""
    left, right = call.data(0), call.data(3)
    for index, factors in (
        (1, [left]),
        (2, [left]),
        (4, [right]),
        (5, [right]),
        (6, [left, right]),
        (7, [left, right]),
    ):
        _check_parameter(call, index, *factors)
    return product(call, left, right)


@operator("Gemm")
@operator("FusedGemm", "GemmFastGelu", domain=MICROSOFT)
def gemm(call: Call) -> Result:
    """A product of two matrices, each transposed or not, plus a third one."""
    left, right = call.data(0), call.data(1)
    if left.rank != 2 or right.rank != 2:
        raise unproven("requires matrices of rank 2")
    left = swapped(call, left) if call.integer("transA", 0) else left
    right = swapped(call, right) if call.integer("transB", 0) else right
    result = product(call, left, right)
    return with_bias(call, result, [call.data(2)]) if call.has(2) else result


@operator("QGemm", domain=MICROSOFT)
def qgemm(call: Call) -> Result:
    """A product of quantized matrices with given scales."""
    for index in (1, 2, 4, 5, 7, 8):
        if call.has(index):
            _check_parameter(call, index, call.data(3 if index in {4, 5} else 0))
    left = swapped(call, call.data(0)) if call.integer("transA", 0) else call.data(0)
    right = swapped(call, call.data(3)) if call.integer("transB", 0) else call.data(3)
    if right.batch is not None:
        raise unproven("requires a weight that is the same for all rows")
    result = product(call, left, right)
    return with_bias(call, result, [call.data(6)]) if call.has(6) else result


@operator("FusedMatMul", "TransposeMatMul", "FusedMatMulActivation", domain=MICROSOFT)
def fused_matmul(call: Call) -> Result:
    """A product of matrices, each optionally transposed."""
    if call.integer("transBatchA", 0) or call.integer("transBatchB", 0):
        raise unproven("moves the first axis into the matrix")
    left = swapped(call, call.data(0)) if call.integer("transA", 0) else call.data(0)
    right = swapped(call, call.data(1)) if call.integer("transB", 0) else call.data(1)
    return product(call, left, right)


@operator("MatMulNBits", "MatMulBnb4", "MatMulFpQ4", domain=MICROSOFT)
def matmul_bits(call: Call) -> Result:
    """A product with a weight of few bits, quantized by blocks."""
    left = call.data(0)
    call.shared(*range(1, len(call.inputs)))
    if left.batch is not None and left.batch.axis == left.rank - 1:
        raise mixes(_CONTRACTS)
    width = call.integer("N", -1)
    return call.make([*left.sizes[:-1], width if width >= 0 else call.algebra.fresh()], left.batch)


@operator("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_matmul(call: Call) -> Result:
    """A product with a first factor that is quantized by the range of the whole tensor."""
    if not call.all_shared():
        raise mixes("computes its scale over the whole tensor, rows included")
    return product(call, call.data(0), call.data(1))


@operator("CDist", domain=MICROSOFT)
def distances(call: Call) -> Result:
    """Pairwise distances between the rows of two matrices."""
    left, right = call.data(0), call.data(1)
    return product(call, left, swapped(call, right))
