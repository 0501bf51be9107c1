"""Blocked channel layout of onnxruntime's optimized convolutions; the batch is still the first axis."""

from app.runtime.independence.call import Call, Result, operator
from app.runtime.independence.decisions import unproven
from app.runtime.independence.operators.spatial import convolution, pooled
from app.runtime.independence.sizes import Number
from app.runtime.independence.values import Tensor, broadcast

_BLOCKED = "com.microsoft.nchwc"


def _image(call: Call) -> Tensor:
    tensor = call.data(0)
    if tensor.batch is not None and tensor.batch.axis != 0:
        raise unproven("requires the batch on the first axis")
    return tensor


@operator("ReorderInput", "ReorderOutput", domain="com.microsoft")
@operator("ReorderInput", "ReorderOutput", domain=_BLOCKED)
def reorder(call: Call) -> Result:
    """Conversion of an image between layouts."""
    tensor = _image(call)
    last, outwards = bool(call.integer("channels_last", 0)), call.node.op_type == "ReorderOutput"
    spatial = tensor.sizes[1:-1] if last and not outwards else tensor.sizes[2:]
    channels: Number = call.integer("channels", 0) if outwards else call.algebra.fresh()
    shape = [*spatial, channels] if last and outwards else [channels, *spatial]
    return call.make([tensor.sizes[0], *shape], tensor.batch)


@operator("Conv", domain=_BLOCKED)
def conv(call: Call) -> Result:
    """A convolution with an optional addend."""
    call.shared(2)
    result = convolution(call, _image(call), call.data(1))
    if call.has(3):
        _, batch = broadcast(call.algebra, [result, call.data(3)])
        if batch != result.batch or call.data(3).rank != result.rank:
            raise unproven("adds a tensor without a batch axis")
    return result


@operator("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool", domain=_BLOCKED)
def pool(call: Call) -> Result:
    """Pooling within windows, or over all positions."""
    return pooled(call, _image(call), whole=call.node.op_type.startswith("Global"))


@operator("Upsample", domain=_BLOCKED)
def upsample(call: Call) -> Result:
    """Scaling of an image by integer factors."""
    tensor = _image(call)
    scales = call.integers("scales") or []
    if len(scales) != tensor.rank or scales[0] != 1:
        raise unproven("may change the number of rows")
    return call.make(
        [call.algebra.times(size, scale) for size, scale in zip(tensor.sizes, scales, strict=True)], tensor.batch
    )
