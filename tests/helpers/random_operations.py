"""Operators that ``random_graphs`` draws from; each function adds one or more nodes, and may fail."""

import numpy as np
from onnx import TensorProto, helper

from helpers.random_bodies import branch, loop, scan

ROWS = 5  # no other size is 5, except sizes computed from the rows


def unary(make):
    make.add(make.draw.choice(["Relu", "Tanh", "Neg", "Sigmoid", "Abs", "Identity", "Softplus"]), [make.value()])


def binary(make):
    left = make.value()
    right = make.value() if make.draw.random() < 0.5 else _like(make, left)
    make.add(make.draw.choice(["Add", "Mul", "Sub", "Max"]), make.draw.sample([left, right], 2))


def _like(make, name):
    """A constant that can be added to a value, sometimes with as many rows as the batch or another axis."""
    shape = [size if make.draw.random() < 0.5 and size != ROWS else 1 for size in make.shape(name)]
    if make.draw.random() < 0.1:
        shape = [ROWS if size == ROWS else one for size, one in zip(make.shape(name), shape, strict=True)]
    if make.draw.random() < 0.15:
        shape = [3, *shape]
    return make.floats(*shape[make.draw.choice([0, 0, min(1, len(shape))]) :])


def where(make):
    left = make.value()
    test = make.add("Greater", [make.value(), make.floats()])
    make.add("Where", [test, left, make.draw.choice([make.value(), make.floats()])])


def matmul(make):
    left = make.value(least=1)
    inner = make.shape(left)[-1]
    if make.draw.random() < 0.5:
        make.add("MatMul", [left, make.floats(inner, make.draw.choice([2, 3]))])
    elif make.draw.random() < 0.5:
        make.add("MatMul", [make.floats(2, make.shape(left)[-2] if len(make.shape(left)) > 1 else inner), left])
    else:
        right = make.value(least=2)
        order = [*range(len(make.shape(right)) - 2), len(make.shape(right)) - 1, len(make.shape(right)) - 2]
        make.add("MatMul", [left, make.add("Transpose", [right], perm=order) if make.draw.random() < 0.7 else right])


def gemm(make):
    left = make.value(rank=2)
    trans = make.draw.choice([0, 0, 1])
    inner = make.shape(left)[0 if trans else 1]
    make.add("Gemm", [left, make.floats(inner, 3), make.floats(*make.draw.choice([(3,), (1, 3), (1,)]))],
             transA=trans)  # fmt: skip


def einsum(make):
    equation = make.draw.choice(["ij,kj->ik", "ij,ij->i", "bij,bjk->bik", "bij,kj->bik", "ij,jk", "...i,...i->...i",
                                 "bij,bkj->bik", "ij->ji", "ii->i", "bij->bj", "ij,ij->ij", "ab,cb->ac"])  # fmt: skip
    terms = equation.split("->")[0].split(",")
    first = make.value(least=2)
    make.add("Einsum", [first, *(make.value(least=1) for _ in terms[1:])], equation=equation)


def transpose(make):
    name = make.value(least=2)
    order = list(range(len(make.shape(name))))
    make.draw.shuffle(order)
    make.add("Transpose", [name], perm=order)


def reshape(make):
    name = make.value(least=1)
    shape = make.shape(name)
    kind = make.draw.randrange(6)
    if kind == 0:
        target = [-1]
    elif kind == 1:
        target = [0, -1]
    elif kind == 2:
        target = [-1, shape[-1]]
    elif kind == 3:
        target = [-1, 1, *shape[1:]]
    elif kind == 4:
        target = [*shape[1:], -1]
    else:
        return _reshape_by_shape(make, name, shape)
    return make.add("Reshape", [name, make.ints(*target)])


def _reshape_by_shape(make, name, shape):
    """A reshape by computed sizes: two axes merged, or a merged one split."""
    sizes = make.add("Shape", [name])
    axes = [make.add("Gather", [sizes, make.ints(axis)]) for axis in range(len(shape))]
    if len(axes) > 1 and make.draw.random() < 0.5:
        place = make.draw.randrange(len(axes) - 1)
        axes[place : place + 2] = [make.add("Mul", axes[place : place + 2])]
    elif make.draw.random() < 0.5:
        place = make.draw.randrange(len(axes))
        if shape[place] % 2 == 0:
            axes[place : place + 1] = [make.add("Div", [axes[place], make.ints(2)]), make.ints(2)]
    if make.draw.random() < 0.2:
        make.draw.shuffle(axes)
    if make.draw.random() < 0.4:
        axes[make.draw.randrange(len(axes))] = make.ints(-1)
    return make.add("Reshape", [name, make.add("Concat", axes, axis=0)])


def flatten(make):
    name = make.value(least=1)
    make.add("Flatten", [name], axis=make.draw.randrange(len(make.shape(name)) + 1))


def squeeze(make):
    name = make.value(least=1)
    if make.draw.random() < 0.5:
        make.add("Unsqueeze", [name, make.ints(make.draw.randrange(len(make.shape(name)) + 1))])
    else:
        ones = [axis for axis, size in enumerate(make.shape(name)) if size == 1]
        make.add("Squeeze", [name, make.ints(make.draw.choice(ones))] if ones else [name])


def reduce(make):
    name = make.value(least=1)
    rank = len(make.shape(name))
    axes = make.draw.sample(range(rank), make.draw.randrange(1, min(rank, 2) + 1))
    keep = make.draw.choice([0, 1])
    if make.draw.random() < 0.3:
        make.add("ReduceSum", [name, make.ints(*axes)], keepdims=keep)
    else:
        make.add(make.draw.choice(["ReduceMean", "ReduceMax", "ReduceL2"]), [name], axes=axes, keepdims=keep)


def along_axis(make):
    name = make.value(least=1)
    axis = make.draw.randrange(len(make.shape(name)))
    kind = make.draw.choice(["Softmax", "LogSoftmax", "CumSum", "TopK", "ArgMax", "LpNormalization"])
    if kind == "CumSum":
        make.add(kind, [name, make.constant(np.array(axis, np.int64))])
    elif kind == "TopK":
        make.add(kind, [name, make.ints(1)], outputs=2, axis=axis)
    else:
        make.add(kind, [name], axis=axis)


def normalization(make):
    kind = make.draw.choice(["LayerNormalization", "InstanceNormalization", "BatchNormalization",
                             "MeanVarianceNormalization", "SkipLayerNormalization"])  # fmt: skip
    name = make.value(least=2)
    shape = make.shape(name)
    if kind == "LayerNormalization":
        axis = make.draw.choice([-1, make.draw.randrange(len(shape))])
        make.add(kind, [name, make.floats(*shape[axis:])], axis=axis)
    elif kind == "SkipLayerNormalization":
        make.add(kind, [name, make.value(rank=len(shape)), make.floats(shape[-1])], domain="com.microsoft")
    elif kind == "MeanVarianceNormalization":
        make.add(kind, [name], axes=make.draw.sample(range(len(shape)), 1))
    else:
        parts = [make.constant(np.linspace(0.5, 2, shape[1], dtype=np.float32)) for _ in range(4)]
        make.add(kind, [name, *parts[: 2 if kind == "InstanceNormalization" else 4]])


def join(make):
    left = make.value(least=1)
    right = make.draw.choice([left, make.value(rank=len(make.shape(left)))])
    if make.draw.random() < 0.15:
        right = make.floats(*(1 if size == ROWS else size for size in make.shape(left)))
    make.add("Concat", [left, right], axis=make.draw.randrange(len(make.shape(left))))


def split(make):
    name = make.value(least=1)
    make.add("Split", [name], outputs=2, axis=make.draw.randrange(len(make.shape(name))))


def cut(make):
    name = make.value(least=1)
    axis = make.draw.randrange(len(make.shape(name)))
    start, end = make.draw.choice([(0, 1), (0, 1 << 40), (1, 1 << 40), (-1, 1 << 40), (0, -1), (0, 2)])
    ends = make.ints(end)
    if make.draw.random() < 0.3:
        other = make.value(least=1)
        ends = make.add("Shape", [other], start=0, end=1)
    step = make.draw.choice([1, 1, 1, -1])
    make.add("Slice", [name, make.ints(start), ends, make.ints(axis), make.ints(step)])


def pad(make):
    name = make.value(least=1)
    pads = [0] * (2 * len(make.shape(name)))
    pads[make.draw.randrange(len(pads))] = 1
    make.add("Pad", [name, make.ints(*pads)])


def tile(make):
    name = make.value(least=1)
    times = [1] * len(make.shape(name))
    times[make.draw.randrange(len(times))] = 2
    make.add("Tile", [name, make.ints(*times)])


def expand(make):
    name = make.draw.choice([make.value(), make.floats(1, 3), make.floats(1, 1, 2)])
    sizes = make.add("Shape", [make.value(least=1)])
    if make.draw.random() < 0.5:
        rows = make.add("Slice", [sizes, make.ints(0), make.ints(1)])
        sizes = make.add("Concat", [rows, make.ints(*[1] * make.draw.randrange(3))], axis=0)
    make.add("Expand", [name, sizes])


def gather(make):
    name = make.value(least=1)
    axis = make.draw.randrange(len(make.shape(name)))
    if make.draw.random() < 0.4:
        indices = make.value("i")
    else:
        indices = make.draw.choice([make.ints(0), make.constant(np.int64(0)), make.ints(1, 0)])
    if make.draw.random() < 0.3:
        name = make.floats(6, 3)
        axis = 0
    make.add(make.draw.choice(["Gather", "Gather", "GatherElements"]), [name, indices], axis=axis)


def cast(make):
    make.add("Cast", [make.value("i")], to=TensorProto.FLOAT)


def positions(make):
    """The positions of the rows, used as numbers or as an index into each row."""
    name = make.value(least=2)
    count = make.add("Squeeze", [make.add("Shape", [name], start=0, end=1)])
    numbers = make.add("Range", [make.constant(np.int64(0)), count, make.constant(np.int64(1))])
    if make.draw.random() < 0.3:
        make.add("Cast", [numbers], to=TensorProto.FLOAT)
        return
    rows = make.add("Unsqueeze", [numbers, make.ints(1)])
    if make.draw.random() < 0.5:
        best = make.add("ReduceMax", [make.value(rank=len(make.shape(name)))], axes=[-1], keepdims=1)
        chosen = make.add("Cast", [make.add("Greater", [best, make.floats()])], to=TensorProto.INT64)
        chosen = make.add("Reshape", [chosen, make.ints(-1, 1)])
    else:
        chosen = make.add("Expand", [make.ints(0), make.add("Shape", [rows])])
    indices = make.add("Concat", make.draw.choice([[rows, chosen], [rows, chosen], [chosen, rows]]), axis=1)
    found = make.add("GatherND", [name, indices])
    if make.draw.random() < 0.4:
        make.add("ScatterND", [name, indices, make.add("Neg", [found])])


def flattened(make):
    """An element of each row, gathered from the flattened tensor: at the row times its length, plus an offset."""
    name = make.value(rank=2)
    length = make.shape(name)[1]
    count = make.add("Squeeze", [make.add("Shape", [name], start=0, end=1)])
    rows = make.add("Range", [make.constant(np.int64(0)), count, make.constant(np.int64(1))])
    begins = make.add("Mul", [rows, make.constant(np.int64(length if make.draw.random() < 0.8 else length + 1))])
    kind = make.draw.randrange(4)
    if kind == 0:
        within = make.add("ArgMax", [name], axis=1, keepdims=0)
    elif kind == 1:
        within = make.add("Cast", [make.add("ReduceMin", [name], axes=[1], keepdims=0)], to=TensorProto.INT64)
    else:
        within = make.ints(make.draw.choice([0, length - 1, -1, length]))
    line = make.add("Reshape", [name, make.ints(-1)])
    make.add("Gather", [line, make.add("Add", [begins, within])], axis=0)


def filled(make):
    sizes = make.add("Shape", [make.value(least=1)])
    make.add("ConstantOfShape", [sizes], value=helper.make_tensor("value", TensorProto.FLOAT, [1], [0.5]))


def counted(make):
    """The number of rows, or another size, as a number."""
    name = make.value(least=1)
    axis = make.draw.randrange(len(make.shape(name)))
    size = make.add("Cast", [make.add("Shape", [name], start=axis, end=axis + 1)], to=TensorProto.FLOAT)
    make.add("Div", [name, size])


def quantized(make):
    name = make.value(least=1)
    if make.draw.random() < 0.3:
        values, scale, zero = make.add("DynamicQuantizeLinear", [name], outputs=3)
    else:
        scale, zero = make.constant(np.float32(0.1)), make.constant(np.uint8(128))
        values = make.add("QuantizeLinear", [name, scale, zero])
    make.add("DequantizeLinear", [values, scale, zero])


def spatial(make):
    name = make.value(rank=3)
    kind = make.draw.choice(["Conv", "GlobalAveragePool", "MaxPool", "AveragePool", "ConvTranspose"])
    channels = make.shape(name)[1]
    if kind == "Conv":
        make.add(kind, [name, make.floats(2, channels, 2)], pads=[1, 0])
    elif kind == "ConvTranspose":
        make.add(kind, [name, make.floats(channels, 2, 2)])
    elif kind == "GlobalAveragePool":
        make.add(kind, [name])
    else:
        make.add(kind, [name], kernel_shape=[2], outputs=make.draw.choice([1, 2]) if kind == "MaxPool" else 1)


def resized(make):
    name = make.value(rank=3)
    scales = [1.0, 1.0, 1.0]
    scales[make.draw.choice([2, 2, 0])] = 2.0
    make.add("Resize", [name, "", make.constant(np.array(scales, np.float32))], mode="nearest")


def recurrent(make):
    name = make.value(rank=3)
    width, hidden = make.shape(name)[2], 2
    kind, gates = make.draw.choice([("LSTM", 4), ("GRU", 3), ("RNN", 1)])
    make.add(kind, [name, make.floats(1, gates * hidden, width), make.floats(1, gates * hidden, hidden)],
             outputs=2, hidden_size=hidden)  # fmt: skip


def selected(make):
    name = make.value()
    kind = make.draw.choice(["NonZero", "Compress", "Unique"])
    if kind == "Compress":
        make.add(kind, [name, make.constant(np.array([True, False, True]))], axis=0)
    else:
        make.add(kind, [name])


def matrices(make):
    name = make.value(least=2)
    make.add(make.draw.choice(["Trilu", "EyeLike"]), [name])


OPERATIONS = [
    unary, unary, binary, binary, binary, where, matmul, matmul, gemm, einsum, transpose, transpose, reshape, reshape,
    reshape, flatten, squeeze, squeeze, reduce, reduce, along_axis, along_axis, normalization, normalization, join,
    join, split, split, cut, cut, pad, tile, expand, expand, gather, gather, cast, positions, flattened, filled,
    counted, quantized, spatial, resized, recurrent, branch, scan, loop, selected, matrices,
]  # fmt: skip
