"""If, Loop and Scan: walk the bodies; repeat loop bodies until the carried values stop changing."""

from collections.abc import Sequence

from app.runtime.independence.call import Call, Result, failure_of, listed, operator
from app.runtime.independence.decisions import Decision, Fork, mixes, unproven
from app.runtime.independence.graph import Graph
from app.runtime.independence.sizes import Algebra, Number, Size, counts
from app.runtime.independence.values import Batch, Failure, Listed, Maps, Tensor, Value

_MAX_ROUNDS = 6
_MAX_FORKS = 5
_DIFFERENT = Failure("unknown", "", "If", "its branches or loop iterations leave the batch on different axes")


def _graph(call: Call, name: str) -> Graph:
    found = call.attribute(name)
    graph = None if found is None else found.graph
    if graph is None:
        raise unproven(f"has no {name}")
    return graph


def _condition(value: Value | None, what: str) -> Tensor:
    """Check that a condition is the same for all rows.

    Raises:
        Decision: The condition depends on the rows or their number.
    """
    if isinstance(value, Failure):
        reason = "a value computed from all rows" if value.finding == "mixed" else "an unknown value"
        raise Decision(value.finding, f"{what} by {reason}")
    if not isinstance(value, Tensor):
        raise unproven(f"{what} by a value that the analysis does not support")
    if value.batch is not None:
        raise mixes(f"{what} by the data of the rows")
    if value.counted:
        raise mixes(f"{what} by the number of rows")
    return value


@operator("If", failures=True, counts=True, places=True, padded=True)
def branch(call: Call) -> Result:
    """One of two graphs; if the condition is unknown, the facts common to both."""
    condition = _condition(call.inputs[0] if call.inputs else None, "chooses")
    known = listed(condition.elements)[0] if condition.elements is not None and condition.elements.size == 1 else None
    atom = known.atoms[0].number if isinstance(known, Size) and len(known.atoms) == 1 else None
    if atom in call.algebra.assumed:
        known = call.algebra.assumed[atom]
    if known is not None and not isinstance(known, Size):
        return call.scope.body(_graph(call, "then_branch" if known else "else_branch"), [])
    first = call.scope.body(_graph(call, "then_branch"), [])
    second = call.scope.body(_graph(call, "else_branch"), [])
    if len(first) != len(second):
        raise unproven("has branches with different outputs")
    found = [_joined(call.algebra, *pair) for pair in zip(first, second, strict=True)]
    if atom is not None and len(call.algebra.assumed) < _MAX_FORKS and any(value is _DIFFERENT for value in found):
        raise Fork(atom)
    return found


def _joined(algebra: Algebra, left: Value, right: Value) -> Value:
    """The facts that hold for both of two values."""
    if left is right:
        return left
    for value, other in ((left, right), (right, left)):
        if isinstance(value, Failure) and value.finding == "impossible":
            return other
    failed = failure_of([left, right])
    if failed is not None:
        return failed
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return _joined_tensors(algebra, left, right)
    if isinstance(left, Listed) and isinstance(right, Listed) and len(left.items) == len(right.items):
        items = [_joined_tensors(algebra, *pair) for pair in zip(left.items, right.items, strict=True)]
        tensors = tuple(item for item in items if isinstance(item, Tensor))
        return Listed(tensors) if len(tensors) == len(items) else _DIFFERENT
    return left if isinstance(left, Maps) and isinstance(right, Maps) else _DIFFERENT


def _joined_tensors(algebra: Algebra, left: Tensor, right: Tensor) -> Value:
    if left.counted or right.counted or left.places != right.places or left.padding != right.padding:
        return left if _same_elements(left, right) else _DIFFERENT
    if left.batch is None and right.batch is None:
        if left.shape is None or right.shape is None or len(left.shape) != len(right.shape):
            return Tensor(None)
        shape = _shape(algebra, left.shape, right.shape)
        return Tensor(shape, elements=left.elements if _same_elements(left, right) else None)
    if left.batch != right.batch or left.rank != right.rank:
        return _DIFFERENT
    return Tensor(_shape(algebra, left.sizes, right.sizes), left.batch, places=left.places, padding=left.padding)


def _same_elements(left: Tensor, right: Tensor) -> bool:
    if left.elements is None or right.elements is None or left.elements.shape != right.elements.shape:
        return False
    pairs = zip(left.elements.flat, right.elements.flat, strict=True)
    return all(type(one) is type(other) and one == other for one, other in pairs)


def _shape(algebra: Algebra, left: Sequence[Number], right: Sequence[Number]) -> tuple[Number, ...]:
    return tuple(one if one == other else algebra.fresh() for one, other in zip(left, right, strict=True))


def _settled(left: Value, right: Value) -> bool:
    """Whether every fact about the first value also holds for the second."""
    if left is right:
        return True
    if isinstance(left, Failure) and isinstance(right, Failure):
        return left.finding == right.finding
    if isinstance(left, Listed) and isinstance(right, Listed):
        return len(left.items) == len(right.items) and all(map(_settled, left.items, right.items))
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return isinstance(left, Maps) and isinstance(right, Maps)
    if left.elements is not None and not _same_elements(left, right):
        return False
    return (left.shape, left.batch, left.counted, left.places, left.padding) == (
        right.shape, right.batch, right.counted, right.places, right.padding,
    )  # fmt: skip


class _Fixpoint:
    """The values that a loop carries between iterations, joined until they stop changing.

    A size that differs between two iterations becomes one symbol.
    """

    def __init__(self, algebra: Algebra, carried: Sequence[Value]) -> None:
        self._algebra = algebra
        self.carried = [*carried]
        self._open: dict[tuple[int, int], Size] = {}

    def settle(self, after: Sequence[Value]) -> bool:
        """Join the values of an iteration. Return whether nothing changed."""
        merged = [self._merge(place, *pair) for place, pair in enumerate(zip(self.carried, after, strict=True))]
        settled = all(map(_settled, merged, self.carried))
        self.carried = merged
        return settled

    def ended(self) -> list[Value]:
        """The values after the last iteration; a changing size gets a symbol other than the one inside the body."""
        found: list[Value] = []
        for place, value in enumerate(self.carried):
            if isinstance(value, Tensor) and value.shape is not None and (value.elements is None):
                shape = [
                    self._algebra.fresh() if (place, axis) in self._open else size
                    for axis, size in enumerate(value.shape)
                ]
                found.append(Tensor(tuple(shape), value.batch, None, value.counted, value.places, value.padding))
            else:
                found.append(value)
        return found

    def _merge(self, place: int, before: Value, after: Value) -> Value:
        found = _joined(self._algebra, before, after)
        if not isinstance(found, Tensor) or found.shape is None or not isinstance(before, Tensor):
            return found
        if before.shape is None or not isinstance(after, Tensor) or after.shape is None:
            return Tensor(None) if found.batch is None else _DIFFERENT
        shape = []
        for axis, (one, other) in enumerate(zip(before.shape, after.shape, strict=True)):
            if one == other or counts(one):
                shape.append(one)
            else:
                shape.append(self._open.setdefault((place, axis), self._algebra.fresh()))
        return Tensor(tuple(shape), found.batch, found.elements, found.counted, found.places, found.padding)


def _rounds(
    call: Call, graph: Graph, carried: Sequence[Value], others: Sequence[Value], *, skip: int, first: Sequence[Value]
) -> tuple[list[Value], list[Value]]:
    """The final carried values, and all outputs of the body."""
    fixpoint = _Fixpoint(call.algebra, carried)
    for _ in range(_MAX_ROUNDS):
        results = call.scope.body(graph, [*first, *fixpoint.carried, *others])
        if len(results) < skip + len(carried):
            raise unproven("has a body with too few outputs")
        if fixpoint.settle(results[skip : skip + len(carried)]):
            return fixpoint.ended(), results
    raise unproven("carries a value of a different kind in each iteration")


@operator("Loop", failures=True, counts=True, places=True, padded=True)
def loop(call: Call) -> Result:
    """A body repeated a number of times that all rows share."""
    for index, what in ((0, "repeats"), (1, "ends")):
        if call.has(index):
            _condition(call.inputs[index], what)
    graph = _graph(call, "body")
    carried = [value for value in call.inputs[2:] if value is not None]
    if len(carried) != len(call.inputs[2:]):
        raise unproven("carries a value that is not given")
    if any(isinstance(value, Listed) for value in carried):
        raise unproven("carries a sequence, which the analysis does not support")
    round_number, going_on = Tensor(()), Tensor(())
    ended, results = _rounds(call, graph, carried, [], skip=1, first=[round_number, going_on])
    _condition(results[0], "ends")
    count = call.algebra.fresh()
    return [*ended, *(_stacked(call, value, 0, count) for value in results[1 + len(carried) :])]


def _stacked(call: Call, value: Value, axis: int, count: Number) -> Value:
    """The values of all iterations, stacked on a new axis."""
    if isinstance(value, Failure):
        return value
    if not isinstance(value, Tensor) or value.places is not None or value.padding is not None:
        return Failure("unknown", "", call.node.op_type, "a loop returns a value that the analysis does not support")
    if value.counted:
        return Failure("mixed", "", call.node.op_type, "a loop computes with the number of rows")
    if value.shape is None:
        return Tensor(None)
    place = call.axis_of(axis, value.rank + 1)
    shape = [*value.shape[:place], count, *value.shape[place:]]
    batch = value.batch
    return call.make(shape, None if batch is None else batch.on(batch.axis + (place <= batch.axis)))


@operator("Scan", failures=True, counts=True, places=True)
def scan(call: Call) -> Result:
    """A body for each element of an axis: any axis but the batch, or the batch if nothing is carried over."""
    if call.version < 9:
        raise unproven("uses a version of Scan that the analysis does not support")
    graph = _graph(call, "body")
    scanned = call.integer("num_scan_inputs", 1)
    split = len(call.inputs) - scanned
    if scanned < 1 or split < 0 or any(value is None for value in call.inputs):
        raise unproven("scans an input that is not given")
    carried = [value for value in call.inputs[:split] if value is not None]
    failed = failure_of(call.inputs)
    if failed is not None:
        return [failed] * call.output_count
    tensors = [call.data(index) for index in range(split, len(call.inputs))]
    axes = call.integers("scan_input_axes") or [0] * scanned
    axes = [call.axis_of(axis, tensor.rank) for axis, tensor in zip(axes, tensors, strict=True)]
    count = tensors[0].sizes[axes[0]]
    outputs = call.integers("scan_output_axes") or []
    over = [tensor.batch is not None and tensor.batch.axis == axis for tensor, axis in zip(tensors, axes, strict=True)]
    if any(over):
        return _over_rows(call, graph, carried, list(zip(tensors, axes, strict=True)), outputs)
    if counts(count):
        raise unproven("scans an axis as long as the batch")
    parts = [_part(call, tensor, axis) for tensor, axis in zip(tensors, axes, strict=True)]
    ended, results = _rounds(call, graph, carried, parts, skip=0, first=[])
    given = results[len(carried) :]
    places = [outputs[place] if place < len(outputs) else 0 for place in range(len(given))]
    return [*ended, *(_stacked(call, value, axis, count) for value, axis in zip(given, places, strict=True))]


def _part(call: Call, tensor: Tensor, axis: int) -> Tensor:
    """One element of a tensor along an axis."""
    shape = [size for place, size in enumerate(tensor.sizes) if place != axis]
    batch = tensor.batch
    return call.make(shape, None if batch is None else batch.on(batch.axis - (axis < batch.axis)))


def _over_rows(
    call: Call, graph: Graph, carried: list[Value], scanned: list[tuple[Tensor, int]], outputs: list[int]
) -> list[Value]:
    """A scan over the rows, which are independent if the carried values never change.

    Other rows are unknown within the body, so each of its values belongs to the row or is shared.
    """
    batches = {tensor.batch.on(0) for tensor, axis in scanned if tensor.batch is not None and tensor.batch.axis == axis}
    if len(batches) != 1 or any(tensor.batch is None or tensor.batch.axis != axis for tensor, axis in scanned):
        raise unproven("scans the rows together with a tensor without a batch axis")
    if any(call.integers("scan_input_directions") or []) or any(call.integers("scan_output_directions") or []):
        raise mixes("scans the rows in reverse order")
    if any(not isinstance(value, Tensor) or not value.is_shared for value in carried):
        raise mixes("carries the data of one row to the next")
    parts = [
        Tensor(tuple(size for place, size in enumerate(tensor.sizes) if place != axis)) for tensor, axis in scanned
    ]
    results = call.scope.body(graph, [*carried, *parts], isolated=True)
    if len(results) < len(carried):
        raise unproven("has a body with too few outputs")
    for before, after in zip(carried, results, strict=False):
        if isinstance(after, Failure):
            raise Decision(after.finding, "carries a value from row to row that differs between rows")
        if after is not before:
            raise mixes("carries a value from row to row that may change")
    batch = next(iter(batches))
    given = enumerate(results[len(carried) :])
    return [
        *carried,
        *(_row_by_row(call, value, outputs[at] if at < len(outputs) else 0, batch) for at, value in given),
    ]


def _row_by_row(call: Call, value: Value, axis: int, batch: Batch) -> Value:
    """The output of a body for one row, as a tensor of all rows."""
    if isinstance(value, Failure):
        return value
    if not isinstance(value, Tensor) or value.shape is None or not value.is_shared:
        raise unproven("returns a value that the analysis does not support")
    place = call.axis_of(axis, len(value.shape) + 1)
    return call.make([*value.shape[:place], 1, *value.shape[place:]], batch.on(place))
