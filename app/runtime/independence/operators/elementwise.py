"""Element-wise operators, which broadcast their inputs to one shape."""

from app.runtime.independence.call import Call, Result, listed, operator
from app.runtime.independence.decisions import mixes, unproven
from app.runtime.independence.operators.shapes import numbers
from app.runtime.independence.sizes import Element, is_real, lower
from app.runtime.independence.values import Batch, Places, Tensor, broadcast, check_no_rows

MICROSOFT = "com.microsoft"
LEARNING = "ai.onnx.ml"
_INTEGERS = {6, 7}  # int32, int64


@operator(
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift", "BitwiseAnd", "BitwiseNot",
    "BitwiseOr", "BitwiseXor", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Div", "Elu", "Equal", "Erf", "Exp", "Floor",
    "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "IsInf", "IsNaN", "LeakyRelu", "Less",
    "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal",
    "RegexFullMatch", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign",
    "Sqrt", "StringConcat", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor", places=True,
)  # fmt: skip
@operator(
    "BiasAdd", "BiasGelu", "FastGelu", "Gelu", "MurmurHash3", "QuickGelu", domain=MICROSOFT,
)  # fmt: skip
@operator("Binarizer", "CategoryMapper", "LabelEncoder", domain=LEARNING)
def elementwise(call: Call) -> Result:
    """One output of the broadcast shape of the inputs."""
    tensors = call.tensors()
    shape, batch = broadcast(call.algebra, tensors)
    found = call.make(shape, batch)
    if all(tensor.places is None for tensor in tensors):
        return found
    return Tensor(found.shape, found.batch, places=_places(call, tensors))


def _places(call: Call, tensors: list[Tensor]) -> Places:
    """Positions times a size, or plus a non-negative value; for other values only the shape is known."""
    first, *others = sorted(tensors, key=lambda tensor: tensor.places is None)
    places = first.places
    if places is None or places.stride is None or len(others) != 1 or others[0].places is not None:
        return Places()
    elements = None if others[0].elements is None else listed(others[0].elements)
    if call.node.op_type == "Add" and (others[0].is_index or (elements is not None and all(map(_is_index, elements)))):
        return Places(places.stride, offset=True)
    if call.node.op_type != "Mul" or elements is None or len(elements) != 1 or places.offset or is_real(elements[0]):
        return Places()
    return Places(call.algebra.times(places.stride, numbers(elements)[0]))


def _is_index(value: Element) -> bool:
    low = lower(value)
    return low is not None and low >= 0


@operator("Cast", "Identity", places=True, counts=True, padded=True)
def same(call: Call) -> Result:
    """The input itself, or cast to another type."""
    value = call.inputs[0] if call.inputs else None
    if value is None:
        raise unproven("has no input")
    if call.node.op_type == "Identity" or not isinstance(value, Tensor):
        return value
    if value.counted:
        raise mixes("computes with the number of rows")
    places = Places() if value.places is not None and call.integer("to", 0) not in _INTEGERS else value.places
    is_index = value.is_index and call.integer("to", 0) in _INTEGERS
    return Tensor(value.shape, value.batch, places=places, padding=value.padding, is_index=is_index)


@operator("CastLike", counts=True)
def cast_like(call: Call) -> Result:
    """The first input, cast to the type of the second."""
    value = call.data(0)
    return Tensor(value.shape, value.batch)


@operator("Dropout", counts=True)
@operator("BiasDropout", "BitmaskDropout", domain=MICROSOFT)
def dropout(call: Call) -> Result:
    """Identity, except in training mode."""
    mode = 4 if call.node.op_type == "BiasDropout" else 2
    if call.has(mode):
        elements = call.elements(mode)
        if elements is None:
            raise unproven("may drop elements at random")
        if any(value is not False for value in listed(elements)):
            raise mixes("drops elements at random")
    elif call.integer("is_test", 1) == 0 and call.version < 7:
        raise mixes("drops elements at random")
    parts = [call.data(index) for index in range(3 if mode == 4 else 1) if call.has(index)]
    shape, batch = broadcast(call.algebra, parts)
    found = call.make(shape, batch)
    return [found, found]


@operator("ComplexMul", "ComplexMulConj", domain=MICROSOFT)
def complex_product(call: Call) -> Result:
    """Products of complex numbers, stored as pairs on the last axis."""
    shape, batch = broadcast(call.algebra, call.tensors())
    if batch is not None and batch.axis == len(shape) - 1:
        raise unproven("treats rows as the parts of complex numbers")
    return call.make(shape, batch)


@operator("Einsum")
def einsum(call: Call) -> Result:
    """A sum of products by an equation; the rows must keep their letter."""
    equation = call.string("equation").replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms, tensors = left.split(","), call.tensors()
    if len(terms) != len(tensors) or len(equation) > 512:
        raise unproven("has an equation that is too long or does not match the number of inputs")
    names = [_letters(term, tensor) for term, tensor in zip(terms, tensors, strict=True)]
    output = list(right.replace("...", "")) if arrow else _implicit(names)
    dots = max((sum(name.startswith(".") for name in one) for one in names), default=0)
    if "..." in right or (not arrow and dots):
        place = right.index("...") if arrow else 0
        output[place:place] = [f".{count}" for count in range(dots - 1, -1, -1)]
    sizes = {
        name: size
        for one, tensor in zip(names, tensors, strict=True)
        for name, size in zip(one, tensor.sizes, strict=True)
        if size != 1
    }
    shape = [sizes.get(name, 1) for name in output]
    found = _batch_letter(names, tensors)
    if found is None:
        return call.make(shape)
    letter, batch = found
    for one, tensor in zip(names, tensors, strict=True):
        if tensor.batch is None and letter in one:
            check_no_rows(tensor, one.index(letter))
    if output.count(letter) != 1:
        raise mixes("sums over the batch axis")
    return call.make(shape, batch.on(output.index(letter)))


def _batch_letter(names: list[list[str]], tensors: list[Tensor]) -> tuple[str, Batch] | None:
    """The letter of the batch axis, which must be the same in all inputs."""
    found: tuple[str, Batch] | None = None
    for one, tensor in zip(names, tensors, strict=True):
        if tensor.batch is None:
            continue
        letter, batch = one[tensor.batch.axis], tensor.batch.on(0)
        if one.count(letter) > 1:
            raise mixes("takes the diagonal of the batch axis")
        if found is not None and found[0] != letter:
            raise mixes("combines rows with other rows")
        if found is not None and found[1] != batch:
            raise unproven("combines tensors with different numbers of blocks per row")
        found = letter, batch
    return found


def _letters(term: str, tensor: Tensor) -> list[str]:
    """A name for each axis of an input: its letter, or its position from the right within the ellipsis."""
    before, dots, after = term.partition("...")
    hidden = tensor.rank - len(before) - len(after)
    if hidden < 0 or (hidden and not dots) or not all(letter.isalpha() for letter in before + after):
        raise unproven("has an equation that does not fit its inputs")
    return [*before, *(f".{count}" for count in range(hidden - 1, -1, -1)), *after]


def _implicit(names: list[list[str]]) -> list[str]:
    letters = [name for one in names for name in one if not name.startswith(".")]
    return sorted(name for name in set(letters) if letters.count(name) == 1)
