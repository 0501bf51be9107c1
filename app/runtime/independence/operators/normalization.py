"""Normalization over axes, and the fused operators of transformers."""

from app.runtime.independence.call import Call, Result, operator
from app.runtime.independence.decisions import mixes, unproven
from app.runtime.independence.operators.elementwise import MICROSOFT
from app.runtime.independence.operators.reductions import along
from app.runtime.independence.values import Tensor, broadcast, check_no_rows


def normalized(call: Call, tensor: Tensor, axis: int) -> list[Tensor]:
    """A tensor normalized from an axis to the last, and its statistics, which have size 1 there."""
    if tensor.batch is not None and tensor.batch.axis >= axis:
        raise mixes("normalizes over the batch axis")
    shape = [*tensor.sizes[:axis], *[1] * (tensor.rank - axis)]
    whole, statistics = call.make(tensor.sizes, tensor.batch), call.make(shape, tensor.batch)
    return [whole, statistics, statistics]


@operator("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
@operator("LayerNormalization", "SimplifiedLayerNormalization", domain=MICROSOFT)
def layer_normalization(call: Call) -> Result:
    """Normalization over the last axes."""
    tensor = call.data(0)
    axis = call.axis(-1, tensor.rank)
    for index in (1, 2):
        if call.has(index):
            call.shared(index)
            if tensor.batch is not None:
                check_no_rows(call.data(index), tensor.batch.axis - (tensor.rank - call.data(index).rank))
    return normalized(call, tensor, axis)


@operator("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(call: Call) -> Result:
    """The sum of two tensors, normalized over the last axis."""
    call.shared(*range(2, len(call.inputs)))
    shape, batch = broadcast(call.algebra, [call.data(0), call.data(1)])
    if len(shape) != call.data(0).rank:
        raise unproven("adds a larger tensor")
    found = normalized(call, call.make(shape, batch), len(shape) - 1)
    return [*found, found[0]]


@operator("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_normalization(call: Call) -> Result:
    """The normalized embedding of tokens, and the number of unmasked tokens."""
    ids = call.data(0)
    call.shared(2, 3, 4, 5, 6)
    if ids.rank != 2 or ids.batch is None or ids.batch.axis != 0:
        raise unproven("requires the batch on the first axis of its tokens")
    for index in (1, 7):
        if call.has(index) and call.data(index).batch != ids.batch:
            raise unproven("has segments or a mask without a batch axis")
    if call.has(8):
        broadcast(call.algebra, [ids, call.data(8)])
    hidden = call.make([*ids.sizes, call.data(2).sizes[-1]], ids.batch)
    return [hidden, call.make(ids.sizes[:1], ids.batch), hidden]


@operator("InstanceNormalization", "GroupNormalization")
def instance_normalization(call: Call) -> Result:
    """Normalization over all but the first axis, by channels or groups of channels."""
    call.shared(1, 2)
    return first_axis(call, call.data(0))


@operator("GroupNorm", "SkipGroupNorm", domain=MICROSOFT)
def group_norm(call: Call) -> Result:
    """Normalization of groups of channels, which are the last axis."""
    call.shared(1, 2, 4)
    tensor = call.data(0)
    if call.has(3):
        _, batch = broadcast(call.algebra, [tensor, call.data(3)])
        if batch != tensor.batch:
            raise unproven("adds rows to a shared tensor")
    found = first_axis(call, tensor)
    return [found, found]


def first_axis(call: Call, tensor: Tensor) -> Tensor:
    """A tensor of the same shape, computed separately for each element of the first axis.

    Raises:
        Decision: The batch is on another axis.
    """
    if tensor.batch is not None and tensor.batch.axis != 0:
        raise (
            mixes("normalizes over the batch axis")
            if tensor.batch.axis > 1
            else unproven("treats the batch axis as the channels")
        )
    return call.make(tensor.sizes, tensor.batch)


@operator("BatchNormalization")
def batch_normalization(call: Call) -> Result:
    """Normalization by channel with running statistics; channels are the second axis."""
    tensor = call.data(0)
    training = call.integer("training_mode", 0) or (call.version < 14 and call.output_count > 1)
    if training and tensor.batch is not None:
        raise mixes("normalizes by the statistics of the batch")
    call.shared(1, 2, 3, 4)
    if tensor.batch is not None and tensor.batch.axis == 1:
        raise unproven("treats the batch axis as the channels")
    if call.version < 9 and call.integer("spatial", 1) == 0:
        raise unproven("normalizes each position separately")
    return call.make(tensor.sizes, tensor.batch)


@operator("LpNormalization")
def lp_normalization(call: Call) -> Result:
    """Division by the norm along an axis."""
    tensor = call.data(0)
    return along(call, tensor, call.axis(-1, tensor.rank), "normalizes")


@operator("LRN")
def local_response(call: Call) -> Result:
    """Normalization over neighbouring channels."""
    return along(call, call.data(0), 1, "normalizes")


@operator("MeanVarianceNormalization")
def mean_variance(call: Call) -> Result:
    """Normalization over axes, by default including the first."""
    tensor = call.data(0)
    given = call.integers("axes")
    axes = [0, 2, 3] if given is None else given
    if tensor.batch is not None and tensor.batch.axis in {call.axis_of(axis, tensor.rank) for axis in axes}:
        raise mixes("normalizes over the batch axis")
    return call.make(tensor.sizes, tensor.batch)


@operator("BiasSoftmax", domain=MICROSOFT)
def bias_softmax(call: Call) -> Result:
    """A sum of two tensors, and softmax from an axis to the last."""
    shape, batch = broadcast(call.algebra, call.tensors(0, 2))
    if batch is not None and batch.axis >= call.axis(1, len(shape)):
        raise mixes("normalizes over the batch axis")
    if call.integer("is_inner_broadcast", 1) == 0 or batch != call.data(0).batch:
        raise unproven("repeats its bias over the first axes")
    return call.make(shape, batch)
