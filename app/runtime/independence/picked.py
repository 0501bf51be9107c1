"""Items chosen by the data of the rows, as in a mixture of experts: taken with NonZero, computed, written back.

A condition selects items of an axis of outer · rows · inner items. Their number depends on the data, but each is an
item of one row, in the order of the axis: NonZero returns increasing positions, each once. Three steps in this order
keep the rows independent:

1. Gather takes the items at these positions from a tensor whose axis has the same items.
2. Operators compute each item separately, alone or with others at the same positions.
3. ScatterND writes each item to its position in a tensor whose axis has the same items.

A tensor in between has the batch axis of the whole tensor, and `Picked` beside it. Its true size there is unknown, so
no other operator may take it, and none may take its shape.
"""

from collections.abc import Sequence

from app.runtime.independence.call import Call, Registered
from app.runtime.independence.decisions import Decision, mixes, unproven
from app.runtime.independence.values import Batch, Failure, Picked, Tensor, Value

_EXACT = {6, 7}  # int32, int64
_MOVES = {("", name) for name in ("Cast", "Identity", "Squeeze", "Transpose", "Unsqueeze")}
_MICROSOFT = {"BiasGelu", "FastGelu", "Gelu", "MatMulIntegerToFloat", "MatMulNBits", "QuickGelu"}
_STANDARD = {
    "Abs", "Add", "Clip", "DequantizeLinear", "Div", "Elu", "Equal", "Erf", "Exp", "Gather", "Gelu", "Gemm", "Greater",
    "HardSigmoid", "HardSwish", "LeakyRelu", "Less", "Log", "MatMul", "MatMulInteger", "Max", "Min", "Mish", "Mul",
    "Neg", "Pow", "QuantizeLinear", "Reciprocal", "Relu", "Selu", "Sigmoid", "Slice", "Softplus", "Split", "Sqrt",
    "Sub", "Sum", "Swish", "Tanh", "Where",
}  # fmt: skip
_BY_ITEM = _MOVES | {("", name) for name in _STANDARD} | {("com.microsoft", name) for name in _MICROSOFT}

_RAGGED = "returns a number of elements that depends on the data of the rows"


def any_picked(inputs: Sequence[Value | None]) -> bool:
    """Whether an input holds chosen items."""
    return any(isinstance(value, Tensor) and value.picked is not None for value in inputs)


def outputs(call: Call, found: Registered) -> list[Value]:
    """The outputs of a node with an input of chosen items.

    Raises:
        Decision: The node may combine items, or is not supported.
    """
    if any(isinstance(value, Tensor) and value.counted for value in call.inputs):
        raise mixes("computes with the number of rows")
    name = call.node.domain, call.node.op_type
    if name in {("", "Gather"), ("", "GatherND")} and call.tensor(1).picked is not None:
        return [_taken(call)]
    if name == ("", "ScatterND"):
        return [_written(call)]
    own = [value for value in call.inputs if isinstance(value, Tensor) and value.batch is not None]
    first = own[0]
    if first.picked is None or any(value.picked != first.picked for value in own):
        raise mixes("combines the items that the data choose with others")
    if name not in (_MOVES if first.picked.index else _BY_ITEM) or _rounds_places(call, first.picked):
        raise ragged()
    made = found.rule(call)
    return [_kept(value, first) for value in (made if isinstance(made, Sequence) else [made])]


def _rounds_places(call: Call, picked: Picked) -> bool:
    return picked.index and call.node.op_type == "Cast" and call.integer("to", 0) not in _EXACT


def ragged() -> Decision:
    """A decision to raise: the data choose the number of items of a value."""
    return mixes(_RAGGED, ragged=True)


def left_body(value: Value) -> Value:
    """An output of a subgraph, which must not hold chosen items."""
    if isinstance(value, Tensor) and value.picked is not None:
        return Failure("mixed", "", "", _RAGGED, ragged=True)
    return value


def _kept(value: Value, source: Tensor) -> Tensor:
    """A result with the same items."""
    if not isinstance(value, Tensor) or value.batch is None or _layout(value) != _layout(source):
        raise unproven("changes the items that the data choose")
    return Tensor(value.shape, value.batch, picked=source.picked)


def _layout(tensor: Tensor) -> Batch | None:
    """The items of the batch axis, at any position of the axis."""
    return None if tensor.batch is None else tensor.batch.on(0)


def _taken(call: Call) -> Tensor:
    data, indices = call.data(0), call.data(1)
    axis = call.axis(0, data.rank) if call.node.op_type == "Gather" else 0
    picked = _places(call, indices)
    if data.picked is not None or data.places is not None or data.batch is None or data.batch.axis != axis:
        raise mixes("takes rows by their position in the batch")
    if _layout(data) != _layout(indices):
        raise unproven("takes from other items than those that were chosen")
    return Tensor(data.sizes, data.batch, picked=Picked(picked.choice))


def _written(call: Call) -> Tensor:
    data, indices, updates = call.data(0), call.data(1), call.data(2)
    if indices.picked is None or updates.picked is None:
        raise mixes("writes to rows by their position in the batch")
    picked = _places(call, indices)
    if data.picked is not None or data.places is not None or data.batch is None or data.batch.axis != 0:
        raise mixes("writes to rows by their position in the batch")
    same = _layout(data) == _layout(indices) == _layout(updates) and updates.picked == Picked(picked.choice)
    if not same or updates.batch is None or updates.batch.axis != 0 or updates.rank != data.rank:
        raise unproven("writes other items than those that were chosen")
    return Tensor(data.sizes, data.batch)


def _places(call: Call, indices: Tensor) -> Picked:
    """The choice whose positions the indices are: of shape (chosen,) for Gather, (chosen, 1) for the others."""
    picked, whole = indices.picked, call.node.op_type == "Gather"
    depth = () if whole else (1,)
    if picked is None or not picked.index or indices.batch is None or indices.batch.axis != 0:
        raise ragged()
    if indices.sizes[1:] != depth or call.integer("batch_dims", 0) != 0:
        raise unproven("takes positions in a shape that is not supported")
    return picked
