"""Evaluation of shape arithmetic in graphs: Shape, Gather, Concat, Mul and the like on symbolic sizes."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from app.runtime.independence.call import Call, listed
from app.runtime.independence.graph import MAX_ELEMENTS, Array
from app.runtime.independence.scalars import (
    absolute,
    add,
    ceil,
    conjunction,
    disjunction,
    divide,
    equal,
    floor,
    less,
    maximum,
    minimum,
    modulo,
    multiply,
    negated,
    negative,
    steady,
    subtract,
)
from app.runtime.independence.sizes import Algebra, Element, Size, is_known, is_real, lower
from app.runtime.independence.values import Tensor, as_elements, elements_of

_FLOATS = {1, 11}
_BOOL = 9
_FOLLOWED = {1, 6, 7, 9, 11}  # float, int32, int64, bool, double: the types of shape arithmetic
_LARGEST = 1 << 53
_Binary = Callable[[Algebra, Element, Element], Element]
_Unary = Callable[[Algebra, Element], Element]


def outputs(call: Call) -> list[Tensor] | None:
    """Outputs of a node if all elements of its inputs are known and it is shape arithmetic, else None."""
    if call.node.domain:
        return None
    evaluator = _EVALUATORS.get(call.node.op_type)
    if evaluator is None or not call.inputs:
        return None
    arrays: list[Array | None] = []
    for value in call.inputs:
        if value is None:
            arrays.append(None)
        elif isinstance(value, Tensor) and value.elements is not None:
            arrays.append(value.elements)
        else:
            return None
    try:
        found = evaluator(call, arrays)
    except (ValueError, IndexError, TypeError, OverflowError):
        return None
    return None if found is None else [elements_of(array) for array in found]


_Evaluator = Callable[[Call, Sequence[Array | None]], list[Array] | None]


def _given(arrays: Sequence[Array | None]) -> list[Array]:
    return [array for array in arrays if array is not None]


def _paired(*arrays: Array) -> tuple[tuple[int, ...], Iterator[tuple[Element, ...]]]:
    """The broadcast shape of arrays, and the elements of each array broadcast to it."""
    sides = np.broadcast_arrays(*arrays)
    return sides[0].shape, zip(*(listed(side) for side in sides), strict=True)


def _binary(operation: _Binary, *, inverted: bool = False, swapped: bool = False) -> _Evaluator:
    def evaluator(call: Call, arrays: Sequence[Array | None]) -> list[Array] | None:
        given = _given(arrays)
        if len(given) < 2:
            return [given[0]] if given else None
        found = given[0]
        for other in given[1:]:
            shape, pairs = _paired(found, other)
            if math.prod(shape) > MAX_ELEMENTS:
                return None
            values: list[Element] = []
            for left, right in pairs:
                value = operation(call.algebra, right, left) if swapped else operation(call.algebra, left, right)
                if is_known(value) and abs(value) > _LARGEST:
                    return None
                values.append(negated(call.algebra, value) if inverted else value)
            merged = as_elements(values).reshape(shape)
            found = merged
        return [found]

    return evaluator


def _unary(operation: _Unary) -> _Evaluator:
    def evaluator(call: Call, arrays: Sequence[Array | None]) -> list[Array] | None:
        (array,) = _given(arrays)
        return [as_elements([operation(call.algebra, value) for value in listed(array)]).reshape(array.shape)]

    return evaluator


def _cast(call: Call, arrays: Sequence[Array | None]) -> list[Array] | None:
    target = call.integer("to", 0)
    if target not in _FOLLOWED:
        return None

    def convert(algebra: Algebra, value: Element) -> Element:
        if isinstance(value, Size):
            if target in _FLOATS:
                return value if is_real(value) else algebra.opaque("float", value, real=True)
            if target == _BOOL:
                return True if not is_real(value) and (lower(value) or 0) > 0 else algebra.opaque("bool", value, low=0)
            return algebra.opaque("integer", value, real=False) if is_real(value) else value
        if target in _FLOATS:
            return float(value)
        return bool(value) if target == _BOOL else int(steady(value))

    return _unary(convert)(call, arrays)


def _where(call: Call, arrays: Sequence[Array | None]) -> list[Array] | None:
    shape, triples = _paired(*_given(arrays))
    if math.prod(shape) > MAX_ELEMENTS:
        return None
    found: list[Element] = []
    for condition, left, right in triples:
        if not isinstance(condition, Size):
            found.append(left if condition else right)
        elif call.algebra.same(left, right):
            found.append(left)
        else:
            found.append(call.algebra.opaque("where", condition, left, right))
    return [as_elements(found).reshape(shape)]


def _integers(array: Array | None) -> list[int]:
    if array is None or not all(is_known(value) for value in array.flat):
        raise ValueError("unknown element")
    return [int(value) for value in array.flat]


def _axes(call: Call, arrays: Sequence[Array | None], index: int) -> list[int] | None:
    if index < len(arrays) and arrays[index] is not None:
        return _integers(arrays[index])
    return call.integers("axes")


def _gather(call: Call, arrays: Sequence[Array | None]) -> list[Array] | None:
    data, places = _given(arrays)
    numbers = np.array(_integers(places), np.int64).reshape(places.shape)
    return [as_elements(np.take(data, numbers, axis=call.integer("axis", 0)))]


def _slice(call: Call, arrays: Sequence[Array | None]) -> list[Array] | None:
    data = arrays[0]
    if data is None:
        return None
    if len(arrays) < 3:
        starts, ends = call.integers("starts"), call.integers("ends")
        axes, steps = call.integers("axes"), None
    else:
        starts, ends = _integers(arrays[1]), _integers(arrays[2])
        axes = _axes(call, arrays, 3)
        steps = _integers(arrays[4]) if len(arrays) > 4 and arrays[4] is not None else None
    if starts is None or ends is None:
        return None
    index: list[slice] = [slice(None)] * data.ndim
    for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = axes[place] if axes is not None else place
        step = steps[place] if steps is not None else 1
        if step < 0 and end < -data.shape[axis]:
            index[axis] = slice(start, None, step)
        else:
            index[axis] = slice(start, end, step)
    return [data[tuple(index)]]


def _concat(call: Call, arrays: Sequence[Array | None]) -> list[Array] | None:
    given = _given(arrays)
    if sum(array.size for array in given) > MAX_ELEMENTS:
        return None
    return [np.concatenate(given, axis=call.integer("axis", 0))]


def _unsqueeze(call: Call, arrays: Sequence[Array | None]) -> list[Array] | None:
    data, axes = arrays[0], _axes(call, arrays, 1)
    if data is None or axes is None or len(axes) > 8:
        return None
    return [np.expand_dims(data, tuple(axes))]


def _squeeze(call: Call, arrays: Sequence[Array | None]) -> list[Array] | None:
    data, axes = arrays[0], _axes(call, arrays, 1)
    if data is None:
        return None
    return [as_elements(data.squeeze() if axes is None else data.squeeze(tuple(axes)))]


def _reshape(call: Call, arrays: Sequence[Array | None]) -> list[Array] | None:
    data = arrays[0]
    if data is None or len(arrays) < 2:
        return None
    shape = _integers(arrays[1])
    if not call.integer("allowzero", 0):
        shape = [data.shape[place] if size == 0 else size for place, size in enumerate(shape)]
    return [data.reshape(shape)]


def _transpose(call: Call, arrays: Sequence[Array | None]) -> list[Array] | None:
    (data,) = _given(arrays)
    return [data.transpose(call.integers("perm"))]


def _expand(_: Call, arrays: Sequence[Array | None]) -> list[Array] | None:
    data, shape = arrays[0], tuple(_integers(arrays[1]))
    if data is None or math.prod(shape) > MAX_ELEMENTS:
        return None
    return [np.broadcast_to(data, np.broadcast_shapes(data.shape, shape))]


def _split(call: Call, arrays: Sequence[Array | None]) -> list[Array] | None:
    data = arrays[0]
    if data is None:
        return None
    axis = call.integer("axis", 0)
    given = _integers(arrays[1]) if len(arrays) > 1 and arrays[1] is not None else call.integers("split")
    if given is None:
        return [*np.array_split(data, call.output_count, axis)] if data.shape[axis] % call.output_count == 0 else None
    return [*np.split(data, np.cumsum(given)[:-1], axis)]


def _reduce(operation: _Binary, start: Element) -> _Evaluator:
    def evaluator(call: Call, arrays: Sequence[Array | None]) -> list[Array] | None:
        data, axes = arrays[0], _axes(call, arrays, 1)
        if data is None or data.ndim > 1 or (not axes and call.integer("noop_with_empty_axes", 0)):
            return None
        found = start
        for value in listed(data):
            found = operation(call.algebra, found, value)
        return [as_elements([found]) if call.integer("keepdims", 1) and data.ndim else as_elements(found)]

    return evaluator


def _range(_: Call, arrays: Sequence[Array | None]) -> list[Array] | None:
    start, end, step = (_integers(array)[0] for array in arrays)
    found = range(start, end, step)
    return [as_elements(list(found))] if len(found) <= MAX_ELEMENTS else None


_EVALUATORS: dict[str, _Evaluator] = {
    "Abs": _unary(absolute),
    "Add": _binary(add),
    "And": _binary(conjunction),
    "Cast": _cast,
    "Ceil": _unary(ceil),
    "Concat": _concat,
    "Div": _binary(divide),
    "Equal": _binary(equal),
    "Expand": _expand,
    "Floor": _unary(floor),
    "Gather": _gather,
    "Greater": _binary(less, swapped=True),
    "GreaterOrEqual": _binary(less, inverted=True),
    "Less": _binary(less),
    "LessOrEqual": _binary(less, swapped=True, inverted=True),
    "Max": _binary(maximum),
    "Min": _binary(minimum),
    "Mod": _binary(modulo),
    "Mul": _binary(multiply),
    "Neg": _unary(negative),
    "Not": _unary(negated),
    "Or": _binary(disjunction),
    "Range": _range,
    "ReduceProd": _reduce(multiply, 1),
    "ReduceSum": _reduce(add, 0),
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": _binary(subtract),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
