"""Operators on images and signals with the batch on the first axis: convolution, pooling, resizing, transforms."""

from collections.abc import Sequence

from app.runtime.independence.call import Call, Result, listed, operator
from app.runtime.independence.decisions import impossible, mixes, unproven
from app.runtime.independence.operators.elementwise import MICROSOFT
from app.runtime.independence.operators.shapes import numbers
from app.runtime.independence.sizes import Element, Number, Size, counts, is_known
from app.runtime.independence.values import Tensor, broadcast

# Modes in which an axis that keeps its size keeps its elements.
_KEEPING = {"half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"}


def on_first(tensor: Tensor) -> None:
    """Check that the batch axis, if any, is the first axis.

    Raises:
        Decision: The batch is on another axis.
    """
    if tensor.batch is not None and tensor.batch.axis == 1:
        raise mixes("sums over the batch axis, which it treats as the channels")
    if tensor.batch is not None and tensor.batch.axis > 1:
        raise mixes("slides over the batch axis")


def _window(call: Call, size: Number, place: int, kernel: Element | None, *, up: bool = False) -> Number:
    """The size of an axis after windowing if all numbers are known, else a fresh symbol."""
    strides, dilations = call.integers("strides") or [], call.integers("dilations") or []
    stride = strides[place] if place < len(strides) else 1
    dilation = dilations[place] if place < len(dilations) else 1
    pads, automatic = call.integers("pads") or [], call.string("auto_pad", "NOTSET")
    if up or not is_known(size) or not is_known(kernel) or stride < 1 or call.integer("ceil_mode", 0):
        return call.algebra.fresh()
    if automatic in {"SAME_UPPER", "SAME_LOWER"}:
        return -(-size // stride)
    count = len(pads) // 2
    around = pads[place] + pads[place + count] if place < count and automatic != "VALID" else 0
    return max((size + around - dilation * (kernel - 1) - 1) // stride + 1, 0)


def convolution(call: Call, tensor: Tensor, weight: Tensor, *, last: bool = False, up: bool = False) -> Tensor:
    """A convolution by a weight that all rows share."""
    if weight.batch is not None:
        raise unproven("requires a weight that is the same for all rows")
    if last and tensor.batch is not None and tensor.batch.axis != 0:
        raise mixes("slides over the batch axis")
    on_first(tensor)
    rank = tensor.rank
    if rank < 3 or weight.rank != rank:
        raise impossible("requires an image of the same rank as its weight")
    groups = call.integer("group", 1)
    channels = call.algebra.times(weight.sizes[1], groups) if up else weight.sizes[0]
    places = range(rank - 2)
    spatial = tensor.sizes[1:-1] if last else tensor.sizes[2:]
    found = [
        _window(call, spatial[place], place, weight.sizes[2 + place] if not last else None, up=up) for place in places
    ]
    shape = [tensor.sizes[0], *found, channels] if last else [tensor.sizes[0], channels, *found]
    return call.make(shape, tensor.batch)


@operator("Conv")
@operator("NhwcConv", "FusedConv", "NhwcFusedConv", "Conv", domain=MICROSOFT)
def conv(call: Call) -> Result:
    """A convolution, fused with an addition."""
    call.shared(2)
    last = call.node.op_type.startswith("Nhwc")
    result = convolution(call, call.data(0), call.data(1), last=last)
    if call.has(3):
        added = call.data(3)
        _, batch = broadcast(call.algebra, [result, added])
        if added.rank != result.rank or batch != result.batch:
            raise unproven("adds a tensor without a batch axis")
    return result


@operator("ConvTranspose")
@operator("ConvTransposeWithDynamicPads", domain=MICROSOFT)
def conv_transpose(call: Call) -> Result:
    """A transposed convolution."""
    call.shared(2, 3)
    return convolution(call, call.data(0), call.data(1), up=True)


@operator("DeformConv")
def deform_conv(call: Call) -> Result:
    """A deformable convolution with offsets per row."""
    tensor = call.data(0)
    call.shared(3)
    for index in (2, 4):
        if call.has(index) and call.data(index).batch != tensor.batch:
            raise unproven("has offsets without a batch axis")
    return convolution(call, tensor, call.data(1))


def pooled(call: Call, tensor: Tensor, *, whole: bool, last: bool = False) -> Tensor:
    """A tensor reduced within windows, or over all positions."""
    if tensor.batch is not None and (tensor.batch.axis > 1 or (last and tensor.batch.axis == tensor.rank - 1)):
        raise mixes("pools over the batch axis")
    if last and tensor.batch is not None and tensor.batch.axis != 0:
        raise unproven("requires the batch on the first axis")
    kernel = call.integers("kernel_shape") or []
    spatial = tensor.sizes[1:-1] if last else tensor.sizes[2:]
    found: list[Number] = [
        1 if whole else _window(call, size, place, kernel[place] if place < len(kernel) else None)
        for place, size in enumerate(spatial)
    ]
    shape = [tensor.sizes[0], *found, tensor.sizes[-1]] if last else [*tensor.sizes[:2], *found]
    return call.make(shape, tensor.batch)


@operator("AveragePool", "LpPool")
@operator("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool")
def pool(call: Call) -> Result:
    """Pooling within windows, or over all positions."""
    return pooled(call, call.data(0), whole=call.node.op_type.startswith("Global"))


@operator("MaxPool")
@operator("NhwcMaxPool", domain=MICROSOFT)
def max_pool(call: Call) -> Result:
    """Max pooling. Its indices are numbered across all rows, so they are not supported."""
    tensor = call.data(0)
    if call.output_count > 1 and call.node.outputs[1] and tensor.batch is not None:
        raise mixes("numbers the positions of its maxima across all rows")
    result = pooled(call, tensor, whole=False, last=call.node.op_type.startswith("Nhwc"))
    return [result, result]


@operator("MaxUnpool")
def max_unpool(call: Call) -> Result:
    """Elements written at indices that are numbered across all rows."""
    if not call.all_shared():
        raise mixes("uses positions that are numbered across all rows")
    raise unproven("is not supported by the analysis")


@operator("DepthToSpace", "SpaceToDepth")
@operator("DepthToSpace", "SpaceToDepth", domain=MICROSOFT)
def depth_to_space(call: Call) -> Result:
    """Channels moved to positions, or the reverse."""
    tensor = call.data(0)
    if tensor.batch is not None and tensor.batch.axis != 0:
        raise mixes("treats the batch axis as an axis of an image")
    size, algebra = call.integer("blocksize", 1), call.algebra
    first, channels, *spatial = tensor.sizes
    if call.node.op_type == "DepthToSpace":
        exact = algebra.divided(channels, size * size)
        return call.make(
            [first, algebra.fresh() if exact is None else exact, *(algebra.times(one, size) for one in spatial)],
            tensor.batch,
        )
    places = [algebra.divided(one, size) for one in spatial]
    return call.make(
        [first, algebra.times(channels, size * size), *(algebra.fresh() if one is None else one for one in places)],
        tensor.batch,
    )


@operator("Resize", "Upsample", counts=True)
def resize(call: Call) -> Result:
    """A scaled image; the batch axis must keep its size."""
    tensor = call.data(0)
    rank = tensor.rank
    old = call.node.op_type == "Upsample" or call.version < 11
    axes = call.axes(9, rank) or list(range(rank))
    scales = _given(call, 1 if old else 2)
    if call.node.op_type == "Upsample" and scales is None and (found := call.attribute("scales")) is not None:
        scales = [*found.numbers()]
    sizes = None if old else _given(call, 3)
    if tensor.batch is not None and tensor.batch.axis in axes:
        _check_kept(call, tensor, axes.index(tensor.batch.axis), scales, sizes)
    shape = list(tensor.sizes)
    for place, axis in enumerate(axes):
        shape[axis] = _scaled(call, shape[axis], place, scales, sizes)
    return call.make(shape, tensor.batch)


def _given(call: Call, index: int) -> list[Element] | None:
    if not call.has(index):
        return None
    found = call.elements(index)
    return None if found is None else listed(found) or None


def _check_kept(
    call: Call, tensor: Tensor, place: int, scales: Sequence[Element] | None, sizes: Sequence[Element] | None
) -> None:
    if call.string("coordinate_transformation_mode", "half_pixel") not in _KEEPING:
        raise unproven("may move rows, because its scaling mode can change an axis of the same size")
    if sizes is not None and place < len(sizes):
        if call.string("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise unproven("scales all axes by a common ratio")
        if tensor.batch is not None and sizes[place] == tensor.sizes[tensor.batch.axis]:
            return
        raise (
            mixes("changes the number of rows") if is_known(sizes[place]) else unproven("may change the number of rows")
        )
    if scales is not None and place < len(scales):
        if scales[place] == 1:
            return
        raise (
            unproven("may change the number of rows")
            if isinstance(scales[place], Size)
            else mixes("changes the number of rows")
        )
    raise unproven("scales by an unknown factor")


def _scaled(
    call: Call, size: Number, place: int, scales: Sequence[Element] | None, sizes: Sequence[Element] | None
) -> Number:
    if sizes is not None and place < len(sizes):
        if counts(sizes[place]) and not counts(size):
            raise mixes("scales an axis to the number of rows")
        return numbers([sizes[place]])[0]
    if scales is None or place >= len(scales):
        return call.algebra.fresh()
    scale = scales[place]
    if counts(scale):
        raise mixes("scales by the number of rows")
    if scale == 1:
        return size
    if is_known(size) and isinstance(scale, float) and scale.is_integer():
        return size * int(scale)
    return call.algebra.fresh()


@operator("STFT")
def short_fourier(call: Call) -> Result:
    """Fourier transforms of windows of each signal."""
    tensor = call.data(0)
    call.shared(1, 2, 3)
    if tensor.batch is not None and tensor.batch.axis != 0:
        raise mixes("transforms along the batch axis")
    return call.make([tensor.sizes[0], call.algebra.fresh(), call.algebra.fresh(), 2], tensor.batch)


@operator("DFT")
def fourier(call: Call) -> Result:
    """A Fourier transform along an axis."""
    tensor = call.data(0)
    if call.version < 20:
        axis = call.axis(1, tensor.rank)
    elif call.has(2):
        found = call.elements(2)
        if found is None or found.size != 1:
            raise unproven("transforms along an unknown axis")
        axis = call.axis_of(listed(found)[0], tensor.rank)
    else:
        axis = call.axis_of(-2, tensor.rank)
    if call.has(1):
        call.shared(1)
    if tensor.batch is not None and tensor.batch.axis in {axis, tensor.rank - 1}:
        raise mixes("transforms along the batch axis")
    shape = [call.algebra.fresh() if place == axis else size for place, size in enumerate(tensor.sizes)]
    return call.make([*shape[:-1], 2 if not call.integer("inverse", 0) else call.algebra.fresh()], tensor.batch)


@operator("HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix", counts=True)
def window(call: Call) -> Result:
    """A table computed from sizes only."""
    found = [call.elements(index) for index in range(len(call.inputs))]
    if any(array is not None and any(counts(value) for value in array.flat) for array in found):
        raise mixes("computes with the number of rows")
    rank = 2 if call.node.op_type == "MelWeightMatrix" else 1
    return call.make([call.algebra.fresh() for _ in range(rank)])


@operator("RoiAlign", "MaxRoiPool")
def regions(call: Call) -> Result:
    """Regions of images, which refer to their image by its position."""
    if not call.all_shared():
        raise mixes("selects images by their position in the batch")
    raise unproven("is not supported by the analysis")
