"""Recurrent layers: the batch is the second axis, the steps are the first."""

from app.runtime.independence.call import Call, Result, operator
from app.runtime.independence.decisions import impossible, mixes, unproven
from app.runtime.independence.sizes import Number
from app.runtime.independence.values import Tensor


@operator("LSTM", "GRU", "RNN")
def recurrent(call: Call) -> Result:
    """An LSTM, a GRU or a plain recurrent layer."""
    tensor = call.data(0)
    if tensor.rank != 3:
        raise impossible("requires steps of rank 3")
    call.shared(1, 2, 3, 7)
    first = bool(call.integer("layout", 0))
    batch = tensor.batch
    states = [call.data(index) for index in (5, 6) if call.has(index)]
    lengths = call.data(4) if call.has(4) else None
    if batch is None:
        if (lengths is not None and lengths.batch is not None) or any(state.batch is not None for state in states):
            raise unproven("has a state per row for steps that all rows share")
    elif batch.axis == (1 if first else 0):
        raise mixes("treats the batch axis as its steps, so each row depends on the previous one")
    elif batch.axis == 2:
        raise mixes("sums over the batch axis")
    else:
        for state in states:
            if state.batch != batch.on(0 if first else 1):
                raise unproven("has a state without the batch axis of its steps")
        if lengths is not None and lengths.batch != batch.on(0):
            raise unproven("has lengths without a batch axis")
    directions = 2 if call.string("direction", "forward") == "bidirectional" else 1
    width = call.integer("hidden_size", -1)
    hidden: Number = width if width >= 0 else call.algebra.fresh()
    whole, last = _shapes(tensor, directions, hidden, first=first)
    place = (0, 0) if first else (2, 1)
    state = call.make(last, None if batch is None else batch.on(place[1]))
    return [call.make(whole, None if batch is None else batch.on(place[0])), state, state]


def _shapes(tensor: Tensor, directions: int, hidden: Number, *, first: bool) -> tuple[list[Number], list[Number]]:
    if first:
        rows, steps = tensor.sizes[:2]
        return [rows, steps, directions, hidden], [rows, directions, hidden]
    steps, rows = tensor.sizes[:2]
    return [steps, directions, rows, hidden], [directions, rows, hidden]
