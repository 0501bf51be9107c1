"""Quantization by given scales, or by scales computed from the data of all rows."""

from app.runtime.independence.call import Call, Result, operator
from app.runtime.independence.decisions import mixes, unproven
from app.runtime.independence.operators.elementwise import MICROSOFT
from app.runtime.independence.operators.reductions import along, reduced
from app.runtime.independence.operators.spatial import convolution, pooled
from app.runtime.independence.values import broadcast


@operator("QuantizeLinear", "DequantizeLinear")
@operator("QuantizeLinear", "DequantizeLinear", domain=MICROSOFT)
def quantize_linear(call: Call) -> Result:
    """Elements multiplied or divided by a scale per tensor, per element of an axis, or per block."""
    tensor, scale = call.data(0), call.data(1)
    parameters = [call.data(index) for index in (1, 2) if call.has(index)]
    if tensor.batch is None:
        if any(one.batch is not None for one in parameters):
            raise unproven("scales a shared tensor by the rows")
        return call.make(tensor.sizes)
    if all(one.batch is None and all(size == 1 for size in one.sizes) for one in parameters):
        return call.make(tensor.sizes, tensor.batch)
    axis = call.axis(1, tensor.rank)
    for one in parameters:
        if one.rank == 1:
            wanted = tensor.batch.on(0) if tensor.batch.axis == axis else None
            if wanted is None and one.batch is not None:
                raise unproven("scales another axis by the rows")
            if wanted is not None and one.batch is None:
                raise mixes("scales each row by its position in the batch")
        else:
            wanted = tensor.batch
            if one.rank != tensor.rank or axis == tensor.batch.axis:
                raise unproven("scales blocks with an unknown batch axis")
        if one.batch != wanted:
            raise unproven("has scales with an unknown batch axis")
    del scale
    return call.make(tensor.sizes, tensor.batch)


@operator("DynamicQuantizeLinear")
def dynamic_quantize(call: Call) -> Result:
    """Quantization by the range of the whole tensor."""
    tensor = call.data(0)
    if tensor.batch is not None:
        raise mixes("computes its scale over the whole tensor, rows included")
    return [call.make(tensor.sizes), call.make(()), call.make(())]


@operator("DynamicQuantizeLSTM", domain=MICROSOFT)
def dynamic_lstm(call: Call) -> Result:
    """An LSTM with inputs quantized by their range."""
    if not call.all_shared():
        raise mixes("computes its scale over the whole tensor, rows included")
    raise unproven("is not supported by the analysis")


def _parameters(call: Call, *indices: int) -> None:
    """Check that scales and zero points are scalars, shared by the whole tensor."""
    call.shared(*indices)
    for index in indices:
        if call.has(index) and any(size != 1 for size in call.data(index).sizes):
            raise unproven(f"requires input {index} to be a single value for the whole tensor")


@operator("QLinearAdd", "QLinearMul", "QLinearSub", domain=MICROSOFT)
def qlinear_binary(call: Call) -> Result:
    """Two quantized tensors, element by element."""
    _parameters(call, 1, 2, 4, 5, 6, 7)
    shape, batch = broadcast(call.algebra, [call.data(0), call.data(3)])
    return call.make(shape, batch)


@operator("QLinearWhere", domain=MICROSOFT)
def qlinear_where(call: Call) -> Result:
    """One of two quantized tensors, by a condition."""
    _parameters(call, 2, 3, 5, 6, 7, 8)
    shape, batch = broadcast(call.algebra, [call.data(0), call.data(1), call.data(4)])
    return call.make(shape, batch)


@operator("QLinearSigmoid", "QLinearLeakyRelu", domain=MICROSOFT)
def qlinear_unary(call: Call) -> Result:
    """A quantized tensor, element by element."""
    _parameters(call, 1, 2, 3, 4)
    tensor = call.data(0)
    return call.make(tensor.sizes, tensor.batch)


@operator("QLinearSoftmax", domain=MICROSOFT)
def qlinear_softmax(call: Call) -> Result:
    """A softmax of a quantized tensor."""
    _parameters(call, 1, 2, 3, 4)
    tensor = call.data(0)
    axis = call.axis(-1, tensor.rank)
    if call.integer("opset", 13) >= 13:
        return along(call, tensor, axis, "normalizes")
    if tensor.batch is not None and tensor.batch.axis >= axis:
        raise mixes("normalizes over the batch axis")
    return call.make(tensor.sizes, tensor.batch)


@operator("QLinearReduceMean", domain=MICROSOFT)
def qlinear_mean(call: Call) -> Result:
    """A mean of a quantized tensor."""
    _parameters(call, 1, 2, 3, 4)
    tensor = call.data(0)
    axes = call.axes(9, tensor.rank)
    return reduced(call, tensor, axes or None, keep=bool(call.integer("keepdims", 1)))


@operator("QLinearConv")
@operator("QLinearConv", domain=MICROSOFT)
def qlinear_conv(call: Call) -> Result:
    """A convolution of quantized tensors."""
    call.shared(*range(1, len(call.inputs)))
    return convolution(call, call.data(0), call.data(3), last=bool(call.integer("channels_last", 0)))


@operator("ConvInteger")
def conv_integer(call: Call) -> Result:
    """A convolution of integers minus their zero points."""
    call.shared(*range(1, len(call.inputs)))
    return convolution(call, call.data(0), call.data(1))


@operator("QLinearAveragePool", "QLinearGlobalAveragePool", domain=MICROSOFT)
def qlinear_pool(call: Call) -> Result:
    """Average pooling of a quantized tensor within windows, or over all positions."""
    _parameters(call, 1, 2, 3, 4)
    whole = call.node.op_type == "QLinearGlobalAveragePool"
    return pooled(call, call.data(0), whole=whole, last=bool(call.integer("channels_last", 0)))
